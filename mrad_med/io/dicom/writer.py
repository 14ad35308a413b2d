"""Results as DICOM objects that a viewer overlays on their source images. Needs highdicom: ``mrad-med[seg]``.

For this, the objects keep the UIDs of study, frame of reference and source instances. The UIDs contain no names but
refer to the source, so the objects can be linked to a patient as easily as the source's UIDs. All other attributes are
read from a list of harmless ones. Names, numbers, dates and free texts of the patient, the study and the site are not
read unless identifiers are requested.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from mrad_med.errors import OutputError, UnfitSourceError
from mrad_med.files import atomic_path
from mrad_med.io.dicom.headers import silent
from mrad_med.io.dicom.source import SourceSeries, frames_on_source, warn_burned_in

__all__ = ["require_highdicom", "write_overlay_captures", "write_parametric_map", "write_segmentation"]

logger = logging.getLogger(__name__)

_PRODUCT = "mrad_med"
_UNDATED = datetime(1900, 1, 1)  # as used by anonymizers
_SERIES_NUMBERS = {"segmentation": 9101, "parametric map": 9102, "overlay": 9103}  # above the usual numbers of scanners


@silent()  # writing validates values again
def write_segmentation(
    path: str | os.PathLike[str],
    anomaly_map: NDArray[np.float32],
    source: SourceSeries,
    *,
    threshold: float,
    affine: NDArray[np.float64] | None = None,
    created: datetime | None = None,
) -> None:
    """Write the region at or above a threshold as a DICOM Segmentation (BINARY, one segment "anomaly").

    Each source frame gets a frame, even an empty one. The same input gives the same bytes.

    Args:
        path: file to write.
        anomaly_map: float32 (rows, columns) of a single frame, or (X, Y, Z) of a volume.
        source: source images of the map.
        threshold: threshold in the unit of the map; a voxel equal to it is inside.
        affine: (4, 4) voxel to world matrix (RAS, mm) of a volume. Without it X are the source's columns, Y its rows
            and Z its frames in the given order.
        created: creation time stated in the file; None writes the year 1900, so results do not depend on the clock.

    Raises:
        OutputError: the map is not on the source's grid, a segmentation of this kind of source is not possible,
            highdicom is not installed, or the file cannot be written.
    """
    highdicom, frames = require_highdicom(), frames_on_source(anomaly_map, source, affine)
    _require_place(source, "a segmentation of several frames", needed=len(frames) > 1)
    if not np.isfinite(threshold):
        raise UnfitSourceError(f"the threshold must be finite, got {threshold}; give a number in the unit of the map")
    mask = (frames >= threshold).astype(np.uint8)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_PRODUCT, family=codes.DCM.ArtificialIntelligence, version=version("mrad-med")
    )
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="anomaly",
        # Category and type are the same concept, because a zero-shot method does not know the kind of anomaly.
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.MorphologicallyAbnormalStructure,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    dataset = _build(
        highdicom.seg.Segmentation,
        source_images=source.images,
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        omit_empty_frames=False,
        content_label="ANOMALY",
        content_description=f"anomaly map at or above {threshold:.6g}",
        **_equipment("segmentation", source, created, mask, repr(float(threshold))),
    )
    _save(dataset, path, created)


@silent()  # writing validates values again
def write_parametric_map(
    path: str | os.PathLike[str],
    anomaly_map: NDArray[np.float32],
    source: SourceSeries,
    *,
    affine: NDArray[np.float64] | None = None,
    created: datetime | None = None,
) -> None:
    """Write a map as a DICOM Parametric Map: unchanged float32 values, unit "no units", quantity probability.

    The stored window spans the range of the map, because anomaly values of MRAD may span only 0.01.

    Args:
        path: file to write.
        anomaly_map: float32 (rows, columns) of a single frame, or (X, Y, Z) of a volume.
        source: source images of the map.
        affine: voxel to world matrix; see `write_segmentation`.
        created: creation time; see `write_segmentation`.

    Raises:
        OutputError: the reasons of `write_segmentation`, or the source states no position.
    """
    highdicom, frames = require_highdicom(), frames_on_source(anomaly_map, source, affine)
    _require_place(source, "a parametric map", needed=True)
    low, high = float(frames.min()), float(frames.max())
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="anomaly",
        lut_explanation="anomaly value, not calibrated",
        unit=codes.UCUM.NoUnits,
        value_range=(min(low, 0.0), max(high, 1.0)),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.Probability,
    )
    window = highdicom.VOILUTTransformation(
        window_center=(low + high) / 2, window_width=max(high - low, 1e-6), voi_lut_function="LINEAR_EXACT"
    )
    dataset = _build(
        highdicom.pm.ParametricMap,
        source_images=source.images,
        pixel_array=frames,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label="ANOMALY",
        content_description="anomaly value, not calibrated",
        **_equipment("parametric map", source, created, frames),
    )
    _save(dataset, path, created)


@silent()  # writing validates values again
def write_overlay_captures(
    folder: str | os.PathLike[str],
    overlays: Mapping[int, NDArray[np.uint8]],
    source: SourceSeries,
    *,
    created: datetime | None = None,
    warn: bool = True,
) -> list[Path]:
    """Write overlays of frames as DICOM Secondary Captures, which every viewer shows, and return their paths.

    An overlay with the size of its frame gets the position of the frame. An overlay of another size, such as a figure
    with a color bar, only refers to its source. Text burned into the source's pixels appears in overlays too; a warning
    is logged.

    Args:
        folder: folder of the files ``overlay_0001.dcm`` and so on, numbered by frame from 1.
        overlays: overlay of each frame, uint8 (H, W, 3) RGB, by index of the frame from 0 in the order of the files.
        source: source images of the overlays.
        created: creation time; see `write_segmentation`.
        warn: whether to log the warning; False if the caller has warned already.

    Raises:
        OutputError: an overlay is not uint8 RGB, there is no such frame, highdicom is not installed, or a file cannot
            be written.
    """
    highdicom = require_highdicom()
    for index, overlay in overlays.items():
        if overlay.dtype != np.uint8 or overlay.ndim != 3 or overlay.shape[-1] != 3:
            raise UnfitSourceError(f"overlays are uint8 (H, W, 3); frame {index} has {overlay.dtype} {overlay.shape}")
        if not 0 <= index < source.frame_count:
            raise UnfitSourceError(f"there is no frame {index}: the source has {source.frame_count}, counted from 0")
    warning = warn_burned_in(source.images[0]) if warn else ""
    if warning:
        logger.warning("%s", warning)
    paths = []
    for index, overlay in sorted(overlays.items()):
        paths.append(Path(folder) / f"overlay_{index + 1:04d}.dcm")
        _save(_capture(highdicom, index, overlay, source, created), paths[-1], created)
    return paths


def _capture(
    highdicom: Any, index: int, overlay: NDArray[np.uint8], source: SourceSeries, created: datetime | None
) -> Dataset:
    """Return the Secondary Capture of one frame."""
    image, frame_number = source.frame(index)
    equipment = _equipment("overlay", source, created, overlay, str(index)) | {"instance_number": index + 1}
    dataset = _build(
        highdicom.sc.SCImage,
        pixel_array=overlay,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # highdicom requires one; it is replaced below
        study_instance_uid=image.StudyInstanceUID,
        **equipment,
    )
    dataset.update(source.identifiers)
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    if frame_number is not None:
        reference.ReferencedFrameNumber = frame_number
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    reference.PurposeOfReferenceCodeSequence = [highdicom.sr.CodedConcept.from_code(purpose)]
    dataset.SourceImageSequence = [reference]
    dataset.DerivationDescription = "anomaly map laid over the image"
    for keyword in ("BurnedInAnnotation", "LossyImageCompression", "LossyImageCompressionRatio"):
        if keyword in image:
            dataset[keyword] = image[keyword]
    if overlay.shape[:2] == (image.Rows, image.Columns):
        dataset.update(source.place(index))  # without a position, `_save` blanks the orientation
    return dataset


def require_highdicom() -> Any:
    """Return highdicom.

    Raises:
        OutputError: highdicom is not installed.
    """
    highdicom, is_installed = optional_import("highdicom")
    if not is_installed:
        raise OutputError('DICOM output needs highdicom; pip install "mrad-med[seg]"')
    return highdicom


def _require_place(source: SourceSeries, what: str, *, needed: bool) -> None:
    """Raise an `UnfitSourceError` if a position is needed and the source states none."""
    if needed and source.planes is None:
        raise UnfitSourceError(
            f"{what} needs source images with position and orientation, but these have none; write overlays of the "
            "frames instead (write_overlay_captures)"
        )


def _equipment(
    kind: str, source: SourceSeries, created: datetime | None, pixels: NDArray[Any], *settings: str
) -> dict[str, Any]:
    """Return series, instance and equipment attributes. The UIDs are hashes of all inputs of the file."""
    versions = [f"{package} {version(package)}" for package in ("mrad-med", "highdicom", "pydicom")]
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    inputs = [str(image.SOPInstanceUID) for image in source.images]
    if any(element.value for element in source.identifiers):
        inputs.append(hashlib.sha256(source.identifiers.to_json().encode()).hexdigest())
    origin = [kind, *versions, *inputs, str(created)]
    # Overlays of one source form one series; maps and masks with different content form different series.
    of_series = origin if kind == "overlay" else [*origin, str(pixels.shape), digest, *settings]
    return {
        "series_instance_uid": generate_uid(entropy_srcs=["series", "\n".join(of_series)]),
        "sop_instance_uid": generate_uid(
            entropy_srcs=["instance", "\n".join([*origin, str(pixels.shape), digest, *settings])]
        ),
        "series_number": _SERIES_NUMBERS[kind],
        "series_description": f"anomaly {kind} ({_PRODUCT}, not for diagnosis)",
        "instance_number": 1,
        "manufacturer": _PRODUCT,
        "manufacturer_model_name": "MRAD",
        "software_versions": version("mrad-med"),
        "device_serial_number": "0",
        "content_date": (created or _UNDATED).date(),
        "content_time": (created or _UNDATED).time(),
    }


def _build(kind: Any, **arguments: Any) -> Dataset:
    """Build an object of highdicom; its errors are replaced, because they may quote headers of the source."""
    try:
        dataset: Dataset = kind(**arguments)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnfitSourceError(
            f"highdicom cannot build a {kind.__name__} from these source images ({type(error).__name__}); check that "
            "they are one complete series of a standard image class"
        ) from None
    return dataset


def _save(dataset: Dataset, path: str | os.PathLike[str], created: datetime | None) -> None:
    """Write an object completely or not at all, after replacing its clock times and random UIDs."""
    # Attributes of type 2C: leaving them out would mean that they do not apply.
    if dataset.Modality != "SEG" and "Laterality" not in dataset:
        dataset.Laterality = None
    if "FrameOfReferenceUID" not in dataset:
        dataset.PatientOrientation = None
    organization = generate_uid(entropy_srcs=["dimensions", str(dataset.SOPInstanceUID)])
    for item in [*dataset.get("DimensionOrganizationSequence", []), *dataset.get("DimensionIndexSequence", [])]:
        item.DimensionOrganizationUID = organization
    for item in dataset.get("ContributingEquipmentSequence", []):
        item.pop("ContributionDateTime", None)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture"):
        if dataset.pop(keyword, None) is not None and created is not None:
            setattr(dataset, keyword, created.date() if "Date" in keyword else created.time())
    try:
        with atomic_path(path) as partial:
            dataset.save_as(partial, enforce_file_format=True)
    except OSError as error:
        raise OutputError(f"cannot write DICOM results to {Path(path).parent} ({error.strerror})") from error
