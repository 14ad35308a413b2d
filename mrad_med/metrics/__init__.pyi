from .image import image_metrics as image_metrics
from .intervals_bootstrap import (
    Interval as Interval,
    bootstrap as bootstrap,
    weighted_auroc as weighted_auroc,
    weighted_average_precision as weighted_average_precision,
)
from .intervals_delong import (
    DeLong as DeLong,
    DeLongDifference as DeLongDifference,
    delong as delong,
    delong_difference as delong_difference,
)
from .lesions import LesionMetrics as LesionMetrics, OverlapMetrics as OverlapMetrics
from .monai import ImageMonaiMetric as ImageMonaiMetric, PixelMonaiMetric as PixelMonaiMetric
from .pixel import PixelMetrics as PixelMetrics, pixel_metrics as pixel_metrics

__all__ = [
    "PixelMonaiMetric",
    "ImageMonaiMetric",
    "DeLong",
    "DeLongDifference",
    "Interval",
    "LesionMetrics",
    "OverlapMetrics",
    "PixelMetrics",
    "bootstrap",
    "delong",
    "delong_difference",
    "image_metrics",
    "pixel_metrics",
    "weighted_auroc",
    "weighted_average_precision",
]
