from .feature_cache import FeatureCache as FeatureCache
from .features import (
    FeatureDataset as FeatureDataset,
)
from .features import (
    collate_features as collate_features,
)
from .features import (
    feature_loader as feature_loader,
)
from .handlers import (
    EarlyStop as EarlyStop,
)
from .handlers import (
    PixelMetric as PixelMetric,
)
from .handlers import (
    ScoreMetric as ScoreMetric,
)
from .handlers import (
    TrainingCheckpoint as TrainingCheckpoint,
)
from .losses import FineTuneLoss as FineTuneLoss
from .losses import PromptLoss as PromptLoss
from .trainers import (
    FineTuneTrainer as FineTuneTrainer,
)
from .trainers import (
    PrepareFeatures as PrepareFeatures,
)
from .trainers import (
    PromptTrainer as PromptTrainer,
)
from .trainers import (
    describe_head as describe_head,
)
from .trainers import (
    select_trainable as select_trainable,
)

__all__ = [
    "EarlyStop",
    "FeatureCache",
    "FeatureDataset",
    "FineTuneLoss",
    "FineTuneTrainer",
    "PixelMetric",
    "PrepareFeatures",
    "PromptLoss",
    "PromptTrainer",
    "ScoreMetric",
    "TrainingCheckpoint",
    "collate_features",
    "describe_head",
    "feature_loader",
    "select_trainable",
]
