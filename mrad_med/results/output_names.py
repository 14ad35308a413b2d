"""The names of the outputs that results can be written as, apart from the code that writes them: help needs no more."""

from __future__ import annotations

__all__ = ["DEFAULT_OUTPUTS", "OUTPUT_DESCRIPTIONS"]

# What is written where nothing is chosen. The maps of all frames of a video would be gigabytes.
DEFAULT_OUTPUTS = {"image": ("tiff", "overlay"), "volume": ("nifti", "overlay", "montage"), "frame": ("video",)}

OUTPUT_DESCRIPTIONS = {
    "tiff": "float32 map of an image",
    "png": "map of an image, 0 to 1 in 16 bits",
    "nifti": "float32 map of a volume",
    "nrrd": "float32 map of a volume",
    "mask": "map at or above the threshold",
    "overlay": "picture and map; of a volume, of its worst slice",
    "montage": "a volume's most suspicious slices",
    "seg": "DICOM Segmentation",
    "parametric-map": "DICOM Parametric Map",
    "capture": "DICOM Secondary Captures of overlays",
    "video": "overlay video",
}
