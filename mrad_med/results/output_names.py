"""Names and descriptions of the outputs, without the code that writes them: ``--help`` loads only this file."""

from __future__ import annotations

__all__ = ["DEFAULT_OUTPUTS", "OUTPUT_DESCRIPTIONS"]

# Outputs of each kind of case by default. Maps are left out for frames: those of a whole video would take gigabytes.
DEFAULT_OUTPUTS = {"image": ("tiff", "overlay"), "volume": ("nifti", "overlay", "montage"), "frame": ("video",)}

OUTPUT_DESCRIPTIONS = {
    "tiff": "float32 map of an image",
    "png": "map of an image, 0 to 1 in 16 bits",
    "nifti": "float32 map of a volume",
    "nrrd": "float32 map of a volume",
    "mask": "map at or above the threshold",
    "overlay": "image and map; for a volume, its slice with the highest score",
    "montage": "a volume's slices with the highest scores",
    "seg": "DICOM Segmentation",
    "parametric-map": "DICOM Parametric Map",
    "capture": "DICOM Secondary Captures of overlays",
    "video": "overlay video",
}
