from .image import image_metrics as image_metrics
from .intervals_bootstrap import (
    Interval as Interval,
)
from .intervals_bootstrap import (
    bootstrap as bootstrap,
)
from .intervals_bootstrap import (
    weighted_auroc as weighted_auroc,
)
from .intervals_bootstrap import (
    weighted_average_precision as weighted_average_precision,
)
from .intervals_delong import (
    DeLong as DeLong,
)
from .intervals_delong import (
    DeLongDifference as DeLongDifference,
)
from .intervals_delong import (
    delong as delong,
)
from .intervals_delong import (
    delong_difference as delong_difference,
)
from .lesions import LesionMetrics as LesionMetrics
from .lesions import OverlapMetrics as OverlapMetrics
from .monai import AnomalyMapMetric as AnomalyMapMetric
from .monai import AnomalyScoreMetric as AnomalyScoreMetric
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
