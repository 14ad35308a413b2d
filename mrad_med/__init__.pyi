from . import (
    benchmark as benchmark,
)
from . import (
    bundle as bundle,
)
from . import (
    cli as cli,
)
from . import (
    data as data,
)
from . import (
    detector as detector,
)
from . import (
    distributed as distributed,
)
from . import (
    errors as errors,
)
from . import (
    evaluation as evaluation,
)
from . import (
    files as files,
)
from . import (
    io as io,
)
from . import (
    metrics as metrics,
)
from . import (
    networks as networks,
)
from . import (
    results as results,
)
from . import (
    training as training,
)
from . import (
    transforms as transforms,
)
from . import (
    types as types,
)
from .benchmark import run_benchmark as run_benchmark
from .bundle import BundleWorkflow as BundleWorkflow
from .data.dicom_series import find_series as find_series
from .data.folders import (
    choose_held_out as choose_held_out,
)
from .data.folders import (
    load_labelled_folder as load_labelled_folder,
)
from .data.folders import (
    load_training_set as load_training_set,
)
from .data.loader import CaseDataset as CaseDataset
from .data.loader import CaseLoader as CaseLoader
from .data.phantoms import (
    make_chest_phantom as make_chest_phantom,
)
from .data.phantoms import (
    make_phantom as make_phantom,
)
from .data.phantoms import (
    write_sample_dataset as write_sample_dataset,
)
from .data.phantoms import (
    write_sample_images as write_sample_images,
)
from .data.phantoms import (
    write_sample_study as write_sample_study,
)
from .data.public_sets import list_datasets as list_datasets
from .data.public_sets import load_datalist as load_datalist
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
)
from .networks.inferers import (
    FeatureInferer as FeatureInferer,
)
from .networks.inferers import (
    SliceAnomalyInferer as SliceAnomalyInferer,
)
from .networks.memory_bank import (
    MemoryBank as MemoryBank,
)
from .networks.memory_bank import (
    build_memory_bank as build_memory_bank,
)
from .networks.memory_bank import (
    load_memory_bank as load_memory_bank,
)
from .networks.memory_bank import (
    merge_memory_banks as merge_memory_banks,
)
from .networks.mrad import (
    MRAD as MRAD,
)
from .networks.mrad import (
    build_mrad_clip as build_mrad_clip,
)
from .networks.mrad import (
    build_mrad_ft as build_mrad_ft,
)
from .networks.mrad import (
    build_mrad_tf as build_mrad_tf,
)
from .networks.official import (
    load_official_bank as load_official_bank,
)
from .networks.official import (
    load_official_checkpoint as load_official_checkpoint,
)
from .networks.provenance import describe_run as describe_run
from .networks.sliding_window import SlidingWindowAnomalyInferer as SlidingWindowAnomalyInferer
from .results.case_result import CaseResult as CaseResult
from .results.handlers import ResultSaver as ResultSaver
from .results.writer import ResultWriter as ResultWriter
from .training.feature_cache import FeatureCache as FeatureCache
from .training.features import collate_features as collate_features
from .training.features import feature_loader as feature_loader
from .training.handlers import (
    EarlyStop as EarlyStop,
)
from .training.handlers import (
    PixelMetric as PixelMetric,
)
from .training.handlers import (
    ScoreMetric as ScoreMetric,
)
from .training.handlers import (
    TrainingCheckpoint as TrainingCheckpoint,
)
from .training.trainers import (
    FineTuneTrainer as FineTuneTrainer,
)
from .training.trainers import (
    PrepareFeatures as PrepareFeatures,
)
from .training.trainers import (
    PromptTrainer as PromptTrainer,
)
from .training.trainers import (
    describe_head as describe_head,
)
from .training.trainers import (
    select_trainable as select_trainable,
)
from .transforms.preprocessing import (
    PictureLoader as PictureLoader,
)
from .transforms.preprocessing import (
    build_postprocessing as build_postprocessing,
)
from .transforms.preprocessing import (
    build_preprocessing as build_preprocessing,
)
from .types import AnomalyKeys as AnomalyKeys
from .types import ImageFeatures as ImageFeatures

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
    "MemoryBank",
    "PictureLoader",
    "PixelMetric",
    "PixelMetrics",
    "PrepareFeatures",
    "PromptTrainer",
    "ResultSaver",
    "ResultWriter",
    "ScoreMetric",
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
    "load_labelled_folder",
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
    "training",
    "transforms",
    "types",
    "write_sample_dataset",
    "write_sample_images",
    "write_sample_study",
    "write_surface_dataset",
]
