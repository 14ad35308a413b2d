from .feature_cache import FeatureCache as FeatureCache
from .features import (
    FeatureDataset as FeatureDataset,
    collate_features as collate_features,
    feature_loader as feature_loader,
)
from .handlers import (
    EarlyStop as EarlyStop,
    ImageMetricHandler as ImageMetricHandler,
    PixelMetricHandler as PixelMetricHandler,
    TrainingCheckpoint as TrainingCheckpoint,
)
from .losses import FineTuneLoss as FineTuneLoss, PromptLoss as PromptLoss
from .trainers import (
    FineTuneTrainer as FineTuneTrainer,
    PrepareFeatures as PrepareFeatures,
    PromptTrainer as PromptTrainer,
    describe_head as describe_head,
    select_trainable as select_trainable,
)

__all__ = [
    "EarlyStop",
    "FeatureCache",
    "FeatureDataset",
    "FineTuneLoss",
    "FineTuneTrainer",
    "PixelMetricHandler",
    "PrepareFeatures",
    "PromptLoss",
    "PromptTrainer",
    "ImageMetricHandler",
    "TrainingCheckpoint",
    "collate_features",
    "describe_head",
    "feature_loader",
    "select_trainable",
]
