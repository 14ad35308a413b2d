from .catalog import DATASETS as DATASETS, PublicDataset as PublicDataset
from .datalist import Datalist as Datalist
from .dicom_series import find_series as find_series
from .duplicates import find_duplicates as find_duplicates
from .folders import (
    choose_held_out as choose_held_out,
    load_labeled_folder as load_labeled_folder,
    load_training_set as load_training_set,
    load_visa as load_visa,
)
from .loader import CaseDataset as CaseDataset, CaseLoader as CaseLoader
from .masks import check_masks as check_masks
from .paths import holds_dicom as holds_dicom
from .phantoms import (
    make_chest_phantom as make_chest_phantom,
    make_phantom as make_phantom,
    write_sample_dataset as write_sample_dataset,
    write_sample_images as write_sample_images,
    write_sample_series as write_sample_series,
    write_sample_study as write_sample_study,
)
from .privacy import Origin as Origin, check_key as check_key, write_key as write_key
from .public_sets import InventoryRow as InventoryRow, list_datasets as list_datasets, load_datalist as load_datalist
from .search import FoundCases as FoundCases, find_cases as find_cases, survey as survey
from .surfaces import (
    DEFECTS as DEFECTS,
    SURFACES as SURFACES,
    make_surface as make_surface,
    write_surface_dataset as write_surface_dataset,
)

__all__ = [
    "DATASETS",
    "DEFECTS",
    "SURFACES",
    "CaseDataset",
    "CaseLoader",
    "Datalist",
    "FoundCases",
    "InventoryRow",
    "Origin",
    "PublicDataset",
    "check_key",
    "check_masks",
    "choose_held_out",
    "find_cases",
    "find_duplicates",
    "find_series",
    "holds_dicom",
    "list_datasets",
    "load_datalist",
    "load_labeled_folder",
    "load_training_set",
    "load_visa",
    "make_chest_phantom",
    "make_phantom",
    "make_surface",
    "survey",
    "write_key",
    "write_sample_dataset",
    "write_sample_images",
    "write_sample_series",
    "write_sample_study",
    "write_surface_dataset",
]
