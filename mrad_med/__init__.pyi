from . import (
    benchmark as benchmark,
    bundle as bundle,
    cli as cli,
    data as data,
    detector as detector,
    distributed as distributed,
    errors as errors,
    evaluation as evaluation,
    files as files,
    io as io,
    metrics as metrics,
    networks as networks,
    results as results,
    store as store,
    training as training,
    transforms as transforms,
    types as types,
)
from .benchmark import run_benchmark as run_benchmark
from .bundle import BundleWorkflow as BundleWorkflow
from .data.dicom_series import find_series as find_series
from .data.folders import (
    choose_held_out as choose_held_out,
    load_labeled_folder as load_labeled_folder,
    load_training_set as load_training_set,
)
from .data.loader import CaseDataset as CaseDataset, CaseLoader as CaseLoader
from .data.phantoms import (
    make_chest_phantom as make_chest_phantom,
    make_phantom as make_phantom,
    write_sample_dataset as write_sample_dataset,
    write_sample_images as write_sample_images,
    write_sample_study as write_sample_study,
)
from .data.public_sets import list_datasets as list_datasets, load_datalist as load_datalist
from .data.search import find_cases as find_cases
from .data.surfaces import write_surface_dataset as write_surface_dataset
from .detector import AnomalyDetector as AnomalyDetector
from .evaluation.evaluation import Evaluation as Evaluation
from .io.dicom.series import read_series as read_series
from .io.image import read_image as read_image
from .metrics.pixel import PixelMetrics as PixelMetrics
from .networks.backbones import load_clip as load_clip
from .networks.clip import CLIP as CLIP
from .networks.export import export_network as export_network
from .networks.head_files import save_head as save_head
from .networks.inferers import (
    AnomalyInferer as AnomalyInferer,
    FeatureInferer as FeatureInferer,
    SliceAnomalyInferer as SliceAnomalyInferer,
)
from .networks.memory_bank import (
    MemoryBank as MemoryBank,
    build_memory_bank as build_memory_bank,
    load_memory_bank as load_memory_bank,
    merge_memory_banks as merge_memory_banks,
)
from .networks.mrad import (
    MRAD as MRAD,
    build_mrad_clip as build_mrad_clip,
    build_mrad_ft as build_mrad_ft,
    build_mrad_tf as build_mrad_tf,
)
from .networks.official import (
    load_official_bank as load_official_bank,
    load_official_checkpoint as load_official_checkpoint,
)
from .networks.provenance import describe_run as describe_run
from .networks.sliding_window import SlidingWindowAnomalyInferer as SlidingWindowAnomalyInferer
from .results.case_result import CaseResult as CaseResult
from .results.handlers import ResultSaver as ResultSaver
from .results.writer import ResultWriter as ResultWriter
from .training.feature_cache import FeatureCache as FeatureCache
from .training.features import collate_features as collate_features, feature_loader as feature_loader
from .training.handlers import (
    EarlyStop as EarlyStop,
    ImageMetricHandler as ImageMetricHandler,
    PixelMetricHandler as PixelMetricHandler,
    TrainingCheckpoint as TrainingCheckpoint,
)
from .training.trainers import (
    FineTuneTrainer as FineTuneTrainer,
    PrepareFeatures as PrepareFeatures,
    PromptTrainer as PromptTrainer,
    describe_head as describe_head,
    select_trainable as select_trainable,
)
from .transforms.preprocessing import (
    ImageView as ImageView,
    build_postprocessing as build_postprocessing,
    build_preprocessing as build_preprocessing,
)
from .types import AnomalyKeys as AnomalyKeys, ImageFeatures as ImageFeatures

__version__: str

__all__ = [
    "CLIP",
    "MRAD",
    "AnomalyDetector",
    "AnomalyInferer",
    "AnomalyKeys",
    "BundleWorkflow",
    "CaseDataset",
    "CaseLoader",
    "CaseResult",
    "EarlyStop",
    "Evaluation",
    "FeatureCache",
    "FeatureInferer",
    "FineTuneTrainer",
    "ImageFeatures",
    "ImageView",
    "MemoryBank",
    "PixelMetricHandler",
    "PixelMetrics",
    "PrepareFeatures",
    "PromptTrainer",
    "ResultSaver",
    "ResultWriter",
    "ImageMetricHandler",
    "SliceAnomalyInferer",
    "SlidingWindowAnomalyInferer",
    "TrainingCheckpoint",
    "benchmark",
    "build_memory_bank",
    "build_mrad_clip",
    "build_mrad_ft",
    "build_mrad_tf",
    "build_postprocessing",
    "build_preprocessing",
    "bundle",
    "choose_held_out",
    "cli",
    "collate_features",
    "data",
    "describe_head",
    "describe_run",
    "detector",
    "distributed",
    "errors",
    "evaluation",
    "export_network",
    "feature_loader",
    "files",
    "find_cases",
    "find_series",
    "io",
    "list_datasets",
    "load_clip",
    "load_datalist",
    "load_labeled_folder",
    "load_memory_bank",
    "load_official_bank",
    "load_official_checkpoint",
    "load_training_set",
    "make_chest_phantom",
    "make_phantom",
    "merge_memory_banks",
    "metrics",
    "networks",
    "read_image",
    "read_series",
    "results",
    "run_benchmark",
    "save_head",
    "select_trainable",
    "store",
    "training",
    "transforms",
    "types",
    "write_sample_dataset",
    "write_sample_images",
    "write_sample_study",
    "write_surface_dataset",
]
