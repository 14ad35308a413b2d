from .backbones import load_clip as load_clip
from .clip import CLIP as CLIP, CLIPImageEncoder as CLIPImageEncoder, CLIPTextEncoder as CLIPTextEncoder
from .export import export_network as export_network
from .head_files import load_head as load_head, save_head as save_head
from .heads import FineTunedHead as FineTunedHead, PromptedHead as PromptedHead, TrainFreeHead as TrainFreeHead
from .inferers import (
    AnomalyInferer as AnomalyInferer,
    FeatureInferer as FeatureInferer,
    SliceAnomalyInferer as SliceAnomalyInferer,
)
from .maps import (
    fuse_scores as fuse_scores,
    top_fraction_mean as top_fraction_mean,
    upsample_and_blur as upsample_and_blur,
)
from .memory_bank import (
    MemoryBank as MemoryBank,
    build_memory_bank as build_memory_bank,
    load_memory_bank as load_memory_bank,
    merge_memory_banks as merge_memory_banks,
)
from .mrad import (
    MRAD as MRAD,
    build_mrad_clip as build_mrad_clip,
    build_mrad_ft as build_mrad_ft,
    build_mrad_tf as build_mrad_tf,
)
from .official import load_official_bank as load_official_bank, load_official_checkpoint as load_official_checkpoint
from .provenance import describe_run as describe_run, fingerprint as fingerprint, package_versions as package_versions
from .retrieval import average_neighbors as average_neighbors, retrieve as retrieve
from .sliding_window import NonBlack as NonBlack, SlidingWindowAnomalyInferer as SlidingWindowAnomalyInferer

__all__ = [
    "CLIP",
    "MRAD",
    "AnomalyInferer",
    "CLIPImageEncoder",
    "CLIPTextEncoder",
    "FeatureInferer",
    "FineTunedHead",
    "MemoryBank",
    "NonBlack",
    "PromptedHead",
    "SliceAnomalyInferer",
    "SlidingWindowAnomalyInferer",
    "TrainFreeHead",
    "average_neighbors",
    "build_memory_bank",
    "build_mrad_clip",
    "build_mrad_ft",
    "build_mrad_tf",
    "describe_run",
    "export_network",
    "fingerprint",
    "fuse_scores",
    "load_clip",
    "load_head",
    "load_memory_bank",
    "load_official_bank",
    "load_official_checkpoint",
    "merge_memory_banks",
    "package_versions",
    "retrieve",
    "save_head",
    "top_fraction_mean",
    "upsample_and_blur",
]
