"""Errors that the package defines.

ValueError
|-- ImageFileError        an image file cannot be used
|   |-- NotAnImageError   a DICOM object is not an image
|   `-- NothingToScoreError  an image shows one gray value or color only
|-- DatasetError          a folder or table does not contain what is expected
|-- BackboneError         a backbone cannot be found, downloaded or read
|-- MemoryBankError       a memory bank is damaged or belongs to another backbone
|-- HeadError             a head is damaged or belongs to another backbone or bank
`-- ExportError           a network cannot be exported
RuntimeError
|-- FailedCasesError      some cases of a finished run failed
`-- TrainingError         a training cannot start or continue
OSError
`-- OutputError           results cannot be written to a folder
    `-- UnfitSourceError  one output cannot be made from a source
"""

from __future__ import annotations

__all__ = [
    "BackboneError",
    "DatasetError",
    "ExportError",
    "FailedCasesError",
    "HeadError",
    "ImageFileError",
    "MemoryBankError",
    "NotAnImageError",
    "NothingToScoreError",
    "OutputError",
    "TrainingError",
    "UnfitSourceError",
]


class ImageFileError(ValueError):
    """An image file cannot be used. The message states why and what to do, and never quotes the file's content."""


class NotAnImageError(ImageFileError):
    """A DICOM object is not an image but, for example, a structured report, a plan or a segmentation."""


class NothingToScoreError(ImageFileError):
    """An image has one value in all pixels, so no part of it can be more anomalous than another."""


class DatasetError(ValueError):
    """A folder or table does not contain what is expected."""


class FailedCasesError(RuntimeError):
    """Some cases of a finished run failed; the others are complete."""


class BackboneError(ValueError):
    """A backbone cannot be found, downloaded or read."""


class MemoryBankError(ValueError):
    """A memory bank is damaged or empty, or belongs to another backbone."""


class HeadError(ValueError):
    """The file of a head is damaged, or the head belongs to another backbone or memory bank."""


class TrainingError(RuntimeError):
    """A training cannot start or continue; files that were saved before are not changed."""


class ExportError(ValueError):
    """A network cannot be exported, or the output of its file differs from that of the network."""


class OutputError(OSError):
    """Results cannot be written to a folder or file."""


class UnfitSourceError(OutputError):
    """One output cannot be made from this source; other outputs can."""
