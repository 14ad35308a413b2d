"""mrad_med: zero-shot anomaly detection for medical images, on MONAI.

MRAD (Memory-Retrieval Anomaly Detection, arXiv 2602.00522) keeps features of labeled industrial images in a memory
bank. It scores unlabeled medical images by retrieval from this bank.

Names are imported when they are first used: importing the package loads neither torch nor MONAI. This module has the
names that most programs need; the subpackages (`mrad_med.io`, `mrad_med.networks`, ...) have the others.
"""

from importlib.metadata import version
from typing import Any

import lazy_loader

_lazy_getattr, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("mrad-med")

# Names of this module in version 0.1, by the module that has them now. To be removed in version 0.3.
_MOVED = {
    "bundle": "find_bundle",
    "data": (
        "DATASETS DEFECTS SURFACES FoundCases InventoryRow PublicDataset check_masks find_duplicates load_visa "
        "make_surface survey write_sample_series"
    ),
    "detector": "Results",
    "errors": (
        "BackboneError DatasetError ExportError FailedCasesError HeadError ImageFileError MemoryBankError "
        "OutputError TrainingError"
    ),
    "evaluation": "CaseRecord MapMaker SetMeasurement evaluate_together undefined_metrics",
    "io": (
        "DicomReader DicomSeries Frame PhotographReader SourceSeries VolumeReader list_frames read_frame "
        "read_source_series slice_positions warn_burned_in write_overlay_captures write_parametric_map "
        "write_segmentation write_volume"
    ),
    "metrics": (
        "LesionMetrics OverlapMetrics bootstrap delong delong_difference "
        "image_metrics weighted_auroc weighted_average_precision"
    ),
    "networks": (
        "CLIPImageEncoder CLIPTextEncoder FineTunedHead NonBlack PromptedHead TrainFreeHead average_neighbors "
        "fuse_scores load_head retrieve top_fraction_mean upsample_and_blur"
    ),
    "results": "ResultCollector draw_montage slice_rows",
    "training": "FeatureDataset FineTuneLoss PromptLoss",
    "transforms": (
        "WINDOWS ApplyWindow ApplyWindowd LoadMedicalImage LoadMedicalImaged RemoveArtifacts RemoveArtifactsd "
        "ToDisplayOrientation ToDisplayOrientationd apply_window"
    ),
    "types": "BackboneCard BankCard FailedCase HeadCard",
}


# Names of version 0.1 that were renamed, with their new names. To be removed in version 0.3.
_RENAMED = {
    "AnomalyMapMetric": "metrics.PixelMonaiMetric",
    "AnomalyScoreMetric": "metrics.ImageMonaiMetric",
    "PictureLoader": "ImageView",
    "PixelMetric": "PixelMetricHandler",
    "ScoreMetric": "ImageMetricHandler",
    "load_labelled_folder": "load_labeled_folder",
}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        raise ImportError(f"mrad_med.{name} is now mrad_med.{_RENAMED[name]}; use the new name")
    for place, names in _MOVED.items():
        if name in names.split():
            # Not an AttributeError, because `from mrad_med import name` and MONAI's configs would hide its message.
            raise ImportError(f"mrad_med.{name} has moved to mrad_med.{place}.{name}; use the new name")
    return _lazy_getattr(name)
