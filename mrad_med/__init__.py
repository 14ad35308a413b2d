"""mrad_med: zero-shot anomaly detection for medical images, on MONAI.

MRAD (Memory-Retrieval Anomaly Detection, arXiv 2602.00522) keeps features of labelled industrial images in a memory
bank and scores medical images nobody labelled by retrieving from it.
"""

from importlib.metadata import version

from mrad_med.backbones import load_clip
from mrad_med.checkpoints import BackboneError
from mrad_med.clip import CLIP, CLIPImageEncoder
from mrad_med.datasets import DatasetError, find_cases, load_labelled_folder
from mrad_med.detector import AnomalyDetector
from mrad_med.handlers import MetricsSaver, ResultCollector, ResultSaver
from mrad_med.inferers import AnomalyInferer, SliceAnomalyInferer
from mrad_med.loaders import CaseDataset, CaseLoader, FailedCasesError
from mrad_med.maps import fuse_scores, top_fraction_mean, upsample_and_blur
from mrad_med.memory import (
    MemoryBank,
    MemoryBankError,
    build_memory_bank,
    load_memory_bank,
    merge_memory_banks,
)
from mrad_med.metrics import PixelMetrics, image_metrics
from mrad_med.networks import MRAD, build_mrad_clip, build_mrad_ft, build_mrad_tf
from mrad_med.official import load_official_bank, load_official_checkpoint
from mrad_med.preprocessing import build_postprocessing, build_preprocessing
from mrad_med.readers import ImageFileError, PhotographReader
from mrad_med.results import CaseResult, OutputError, Results, ResultWriter, describe_run
from mrad_med.retrieval import average_neighbors, retrieve
from mrad_med.samples import make_phantom, write_sample_dataset, write_sample_images
from mrad_med.types import AnomalyKeys, BackboneCard, BankCard, FailedCase, ImageFeatures
from mrad_med.workflow import BundleWorkflow, find_bundle

__version__ = version("mrad-med")

__all__ = [
    "CLIP",
    "MRAD",
    "AnomalyDetector",
    "AnomalyInferer",
    "AnomalyKeys",
    "BackboneCard",
    "BackboneError",
    "BankCard",
    "BundleWorkflow",
    "CLIPImageEncoder",
    "CaseDataset",
    "CaseLoader",
    "CaseResult",
    "DatasetError",
    "FailedCase",
    "FailedCasesError",
    "ImageFeatures",
    "ImageFileError",
    "MemoryBank",
    "MemoryBankError",
    "MetricsSaver",
    "OutputError",
    "PixelMetrics",
    "PhotographReader",
    "ResultCollector",
    "ResultSaver",
    "ResultWriter",
    "Results",
    "SliceAnomalyInferer",
    "average_neighbors",
    "build_memory_bank",
    "build_mrad_clip",
    "build_mrad_ft",
    "build_mrad_tf",
    "build_postprocessing",
    "build_preprocessing",
    "describe_run",
    "find_bundle",
    "find_cases",
    "fuse_scores",
    "image_metrics",
    "load_clip",
    "load_labelled_folder",
    "load_memory_bank",
    "load_official_bank",
    "load_official_checkpoint",
    "make_phantom",
    "merge_memory_banks",
    "retrieve",
    "top_fraction_mean",
    "upsample_and_blur",
    "write_sample_dataset",
    "write_sample_images",
]
