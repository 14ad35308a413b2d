from .catalog import DATASETS as DATASETS
from .catalog import PublicDataset as PublicDataset
from .datalist import Datalist as Datalist
from .dicom_series import find_series as find_series
from .duplicates import find_duplicates as find_duplicates
from .folders import (
    choose_held_out as choose_held_out,
)
from .folders import (
    load_labelled_folder as load_labelled_folder,
)
from .folders import (
    load_training_set as load_training_set,
)
from .folders import (
    load_visa as load_visa,
)
from .loader import CaseDataset as CaseDataset
from .loader import CaseLoader as CaseLoader
from .masks import check_masks as check_masks
from .phantoms import (
    make_chest_phantom as make_chest_phantom,
)
from .phantoms import (
    make_phantom as make_phantom,
)
from .phantoms import (
    write_sample_dataset as write_sample_dataset,
)
from .phantoms import (
    write_sample_images as write_sample_images,
)
from .phantoms import (
    write_sample_series as write_sample_series,
)
from .phantoms import (
    write_sample_study as write_sample_study,
)
from .public_sets import InventoryRow as InventoryRow
from .public_sets import list_datasets as list_datasets
from .public_sets import load_datalist as load_datalist
from .search import FoundCases as FoundCases
from .search import find_cases as find_cases
from .search import survey as survey
from .surfaces import (
    DEFECTS as DEFECTS,
)
from .surfaces import (
    SURFACES as SURFACES,
)
from .surfaces import (
    make_surface as make_surface,
)
from .surfaces import (
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
    "PublicDataset",
    "check_masks",
    "choose_held_out",
    "find_cases",
    "find_duplicates",
    "find_series",
    "list_datasets",
    "load_datalist",
    "load_labelled_folder",
    "load_training_set",
    "load_visa",
    "make_chest_phantom",
    "make_phantom",
    "make_surface",
    "survey",
    "write_sample_dataset",
    "write_sample_images",
    "write_sample_series",
    "write_sample_study",
    "write_surface_dataset",
]
