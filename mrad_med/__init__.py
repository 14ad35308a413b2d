"""mrad_med: zero-shot anomaly detection for medical images, on MONAI.

MRAD (Memory-Retrieval Anomaly Detection, arXiv 2602.00522) keeps features of labelled industrial images in a memory
bank and scores medical images nobody labelled by retrieving from it.
"""

from importlib.metadata import version

from mrad_med.benchmark import run_benchmark
from mrad_med.bundle import BundleWorkflow, find_bundle
from mrad_med.data.catalog import DATASETS, PublicDataset
from mrad_med.data.dicom_series import find_series
from mrad_med.data.duplicates import find_duplicates
from mrad_med.data.folders import (
    choose_held_out,
    load_labelled_folder,
    load_training_set,
    load_visa,
)
from mrad_med.data.loader import CaseDataset, CaseLoader
from mrad_med.data.masks import check_masks
from mrad_med.data.phantoms import (
    make_chest_phantom,
    make_phantom,
    write_sample_dataset,
    write_sample_images,
    write_sample_series,
    write_sample_study,
)
from mrad_med.data.public_sets import InventoryRow, list_datasets, load_datalist
from mrad_med.data.search import FoundCases, find_cases, survey
from mrad_med.data.surfaces import DEFECTS, SURFACES, make_surface, write_surface_dataset
from mrad_med.detector import AnomalyDetector, Results
from mrad_med.errors import (
    BackboneError,
    DatasetError,
    ExportError,
    FailedCasesError,
    HeadError,
    ImageFileError,
    OutputError,
    TrainingError,
)
from mrad_med.evaluation.evaluation import Evaluation, evaluate_together
from mrad_med.evaluation.measurement import SetMeasurement, undefined_metrics
from mrad_med.evaluation.records import CaseRecord, MapMaker
from mrad_med.io.dicom.reader import DicomReader
from mrad_med.io.dicom.series import DicomSeries, read_series
from mrad_med.io.dicom.source import SourceSeries, read_source_series, warn_burned_in
from mrad_med.io.dicom.writer import write_overlay_captures, write_parametric_map, write_segmentation
from mrad_med.io.frames import Frame, list_frames, read_frame
from mrad_med.io.image import read_image
from mrad_med.io.photographs import PhotographReader
from mrad_med.io.volume_reader import VolumeReader
from mrad_med.io.volume_writer import slice_positions, write_volume
from mrad_med.metrics.image import image_metrics
from mrad_med.metrics.intervals_bootstrap import bootstrap, weighted_auroc, weighted_average_precision
from mrad_med.metrics.intervals_delong import delong, delong_difference
from mrad_med.metrics.lesions import LesionMetrics, OverlapMetrics
from mrad_med.metrics.monai import AnomalyMapMetric, AnomalyScoreMetric
from mrad_med.metrics.pixel import PixelMetrics
from mrad_med.networks.backbones import load_clip
from mrad_med.networks.clip import CLIP, CLIPImageEncoder, CLIPTextEncoder
from mrad_med.networks.export import export_network
from mrad_med.networks.head_files import load_head, save_head
from mrad_med.networks.heads import FineTunedHead, PromptedHead, TrainFreeHead
from mrad_med.networks.inferers import AnomalyInferer, FeatureInferer, SliceAnomalyInferer
from mrad_med.networks.maps import fuse_scores, top_fraction_mean, upsample_and_blur
from mrad_med.networks.memory_bank import (
    MemoryBank,
    MemoryBankError,
    build_memory_bank,
    load_memory_bank,
    merge_memory_banks,
)
from mrad_med.networks.mrad import MRAD, build_mrad_clip, build_mrad_ft, build_mrad_tf
from mrad_med.networks.official import load_official_bank, load_official_checkpoint
from mrad_med.networks.provenance import describe_run
from mrad_med.networks.retrieval import average_neighbors, retrieve
from mrad_med.networks.sliding_window import NonBlack, SlidingWindowAnomalyInferer
from mrad_med.results.case_result import CaseResult
from mrad_med.results.handlers import ResultCollector, ResultSaver
from mrad_med.results.overlays import draw_montage
from mrad_med.results.tables import slice_rows
from mrad_med.results.writer import ResultWriter
from mrad_med.training.feature_cache import FeatureCache
from mrad_med.training.features import FeatureDataset, collate_features, feature_loader
from mrad_med.training.handlers import EarlyStop, PixelMetric, ScoreMetric, TrainingCheckpoint
from mrad_med.training.losses import FineTuneLoss, PromptLoss
from mrad_med.training.trainers import FineTuneTrainer, PrepareFeatures, PromptTrainer, describe_head, select_trainable
from mrad_med.transforms.artifacts import RemoveArtifacts, RemoveArtifactsd
from mrad_med.transforms.intensity import WINDOWS, ApplyWindow, ApplyWindowd, apply_window
from mrad_med.transforms.load import LoadMedicalImage, LoadMedicalImaged
from mrad_med.transforms.preprocessing import PictureLoader, build_postprocessing, build_preprocessing
from mrad_med.transforms.spatial import ToDisplayOrientation, ToDisplayOrientationd
from mrad_med.types import AnomalyKeys, BackboneCard, BankCard, FailedCase, HeadCard, ImageFeatures

__version__ = version("mrad-med")

__all__ = [
    "CLIP",
    "DATASETS",
    "DEFECTS",
    "MRAD",
    "SURFACES",
    "WINDOWS",
    "AnomalyDetector",
    "AnomalyInferer",
    "AnomalyKeys",
    "AnomalyMapMetric",
    "AnomalyScoreMetric",
    "ApplyWindow",
    "ApplyWindowd",
    "BackboneCard",
    "BackboneError",
    "BankCard",
    "BundleWorkflow",
    "CLIPImageEncoder",
    "CLIPTextEncoder",
    "CaseDataset",
    "CaseLoader",
    "CaseRecord",
    "CaseResult",
    "DatasetError",
    "DicomReader",
    "DicomSeries",
    "EarlyStop",
    "Evaluation",
    "ExportError",
    "FailedCase",
    "FailedCasesError",
    "FeatureCache",
    "FeatureDataset",
    "FeatureInferer",
    "FineTuneLoss",
    "FineTuneTrainer",
    "FineTunedHead",
    "FoundCases",
    "Frame",
    "HeadCard",
    "HeadError",
    "ImageFeatures",
    "ImageFileError",
    "InventoryRow",
    "LesionMetrics",
    "LoadMedicalImage",
    "LoadMedicalImaged",
    "MapMaker",
    "MemoryBank",
    "MemoryBankError",
    "NonBlack",
    "OutputError",
    "OverlapMetrics",
    "PhotographReader",
    "PictureLoader",
    "PixelMetric",
    "PixelMetrics",
    "PrepareFeatures",
    "PromptLoss",
    "PromptTrainer",
    "PromptedHead",
    "PublicDataset",
    "RemoveArtifacts",
    "RemoveArtifactsd",
    "ResultCollector",
    "ResultSaver",
    "ResultWriter",
    "Results",
    "ScoreMetric",
    "SetMeasurement",
    "SliceAnomalyInferer",
    "SlidingWindowAnomalyInferer",
    "SourceSeries",
    "ToDisplayOrientation",
    "ToDisplayOrientationd",
    "TrainFreeHead",
    "TrainingCheckpoint",
    "TrainingError",
    "VolumeReader",
    "apply_window",
    "average_neighbors",
    "bootstrap",
    "build_memory_bank",
    "build_mrad_clip",
    "build_mrad_ft",
    "build_mrad_tf",
    "build_postprocessing",
    "build_preprocessing",
    "check_masks",
    "choose_held_out",
    "collate_features",
    "delong",
    "delong_difference",
    "describe_head",
    "describe_run",
    "draw_montage",
    "evaluate_together",
    "export_network",
    "feature_loader",
    "find_bundle",
    "find_cases",
    "find_duplicates",
    "find_series",
    "fuse_scores",
    "image_metrics",
    "list_datasets",
    "list_frames",
    "load_clip",
    "load_datalist",
    "load_head",
    "load_labelled_folder",
    "load_memory_bank",
    "load_official_bank",
    "load_official_checkpoint",
    "load_training_set",
    "load_visa",
    "make_chest_phantom",
    "make_phantom",
    "make_surface",
    "merge_memory_banks",
    "read_frame",
    "read_image",
    "read_series",
    "read_source_series",
    "retrieve",
    "run_benchmark",
    "save_head",
    "select_trainable",
    "slice_positions",
    "slice_rows",
    "survey",
    "top_fraction_mean",
    "undefined_metrics",
    "upsample_and_blur",
    "warn_burned_in",
    "weighted_auroc",
    "weighted_average_precision",
    "write_overlay_captures",
    "write_parametric_map",
    "write_sample_dataset",
    "write_sample_images",
    "write_sample_series",
    "write_sample_study",
    "write_segmentation",
    "write_surface_dataset",
    "write_volume",
]
