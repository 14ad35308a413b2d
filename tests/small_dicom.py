"""Small DICOM files written with pydicom, for the tests of the readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS = 18, 22


def make_image(pixels: np.ndarray, *, photometric: str = "MONOCHROME2", bits: int | None = None, **tags) -> Dataset:
    """A dataset of pixels (rows, columns[, 3]), or (frames, rows, columns[, 3]) with NumberOfFrames among the tags."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID = "Beeblebrox^Zaphod", "42-424242"
    has_colors = pixels.ndim > 2 and pixels.shape[-1] == 3 and photometric not in ("MONOCHROME1", "MONOCHROME2")
    dataset.SamplesPerPixel = 3 if has_colors else 1
    if has_colors:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    spatial = pixels.shape[:-1] if has_colors else pixels.shape
    dataset.Rows, dataset.Columns = spatial[-2:]
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    content = pixels.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    return dataset


def write_image(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**tags) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def write_series(
    folder: Path,
    values: np.ndarray,
    *,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float] = (1.0, 1.0),
    step: tuple[float, float, float] = (0.0, 0.0, 2.0),
    uid: str | None = None,
    names: list[str] | None = None,
    **tags,
) -> list[Path]:
    """Files of slices (rows, columns, slices); spacing is between rows and between columns, steps in LPS."""
    uid = uid or generate_uid()
    paths = []
    for index in range(values.shape[-1]):
        position = np.asarray(origin) + index * np.asarray(step)
        dataset = make_image(
            np.ascontiguousarray(values[..., index]).astype(np.int16),
            Modality="CT",
            SeriesInstanceUID=uid,
            SeriesNumber=3,
            InstanceNumber=values.shape[-1] - index,  # contradicts the positions
            ImagePositionPatient=[f"{value:.6f}" for value in position],
            ImageOrientationPatient=[f"{value:.10f}" for value in orientation],
            PixelSpacing=[str(value) for value in spacing],
            RescaleSlope="1",
            RescaleIntercept="-1024",
        )
        for name, value in tags.items():
            setattr(dataset, name, value)
        paths.append(write_image(folder / (names[index] if names else f"slice{index:03d}.dcm"), dataset))
    return paths


def lookup_table(first: int, bits: int, entries: list[int], *, as_words: bool = False) -> Dataset:
    """An item of a sequence of lookup tables, its entries as numbers or as the bytes of words."""
    dataset = Dataset()
    dataset.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    dataset.add_new(
        "LUTData", "OW" if as_words else "US", np.asarray(entries, "<u2").tobytes() if as_words else entries
    )
    dataset.ModalityLUTType = "US"
    return dataset
