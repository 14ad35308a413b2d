"""All errors that the package raises on its own account.

ValueError
|-- ImageFileError        an image file cannot be used
|   `-- NotAnImageError   a DICOM object is not an image
|-- DatasetError          a folder or table does not hold what is expected
|-- BackboneError         a backbone cannot be found, downloaded or read
|-- MemoryBankError       a memory bank is damaged or belongs to another backbone
|-- HeadError             a head is damaged or belongs to another backbone or bank
`-- ExportError           a network cannot be exported
RuntimeError
|-- FailedCasesError      some cases of a finished run failed
`-- TrainingError         a training cannot start or continue
OSError
`-- OutputError           results cannot be written to a folder
    `-- UnfitSourceError  one kind of result cannot be made of a source
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
    "OutputError",
    "TrainingError",
    "UnfitSourceError",
]


class ImageFileError(ValueError):
    """An image file that cannot be used. The message says why and what to do, and never quotes the file's content."""


class NotAnImageError(ImageFileError):
    """A DICOM object of another kind: a report, a plan, a segmentation, ..."""


class DatasetError(ValueError):
    """A folder that does not hold what is expected of it."""


class FailedCasesError(RuntimeError):
    """Some cases of a finished run failed; everything else is done."""


class BackboneError(ValueError):
    """A backbone that cannot be found, downloaded, or read."""


class MemoryBankError(ValueError):
    """A memory bank that is damaged, empty, or does not belong to the backbone at hand."""


class HeadError(ValueError):
    """A file of a head that is damaged, or does not belong to the backbone or memory bank at hand."""


class TrainingError(RuntimeError):
    """A training that cannot start or go on; nothing that was saved before is touched."""


class ExportError(ValueError):
    """A network that cannot be exported, or whose file does not give what the network gives."""


class OutputError(OSError):
    """Results cannot be written where they should be."""


class UnfitSourceError(OutputError):
    """Results of this kind cannot be made of this source; others can."""
