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
from .monai import AnomalyMapMetric as AnomalyMapMetric, AnomalyScoreMetric as AnomalyScoreMetric
from .pixel import PixelMetrics as PixelMetrics

__all__ = [
    "AnomalyMapMetric",
    "AnomalyScoreMetric",
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
    "weighted_auroc",
    "weighted_average_precision",
]
