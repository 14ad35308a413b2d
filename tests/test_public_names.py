"""The public surface of the package: what others may rely on."""

from __future__ import annotations

import subprocess
import sys

import mrad_med

PUBLIC = {
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
    "CLIP",
    "CLIPImageEncoder",
    "CLIPTextEncoder",
    "CaseDataset",
    "CaseLoader",
    "CaseRecord",
    "CaseResult",
    "DATASETS",
    "DEFECTS",
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
    "MRAD",
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
    "SURFACES",
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
    "WINDOWS",
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
}


def test_public_names_are_these_and_no_others():
    assert set(mrad_med.__all__) == PUBLIC
    assert all(hasattr(mrad_med, name) for name in PUBLIC)


def test_every_public_name_is_documented():
    named = [name for name in PUBLIC if not name.isupper() or name in ("CLIP", "MRAD")]  # all but constants
    undocumented = [name for name in named if not (getattr(mrad_med, name).__doc__ or "").strip()]
    assert undocumented == []


def test_importing_touches_no_network_and_changes_no_global_state():
    program = (
        "import socket\n"
        "def refuse(*arguments, **keywords): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import random, numpy, torch\n"
        "before = (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())\n"
        "threads = torch.get_num_threads()\n"
        "import mrad_med\n"
        "after = (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())\n"
        "assert before == after and threads == torch.get_num_threads()\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
