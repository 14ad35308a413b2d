from .dicom.reader import DicomReader as DicomReader
from .dicom.series import DicomSeries as DicomSeries
from .dicom.series import read_series as read_series
from .dicom.source import (
    SourceSeries as SourceSeries,
)
from .dicom.source import (
    read_source_series as read_source_series,
)
from .dicom.source import (
    warn_burned_in as warn_burned_in,
)
from .dicom.writer import (
    write_overlay_captures as write_overlay_captures,
)
from .dicom.writer import (
    write_parametric_map as write_parametric_map,
)
from .dicom.writer import (
    write_segmentation as write_segmentation,
)
from .file_types import kind_of as kind_of
from .frames import Frame as Frame
from .frames import FrameReader as FrameReader
from .frames import close_frames as close_frames
from .frames import list_frames as list_frames
from .frames import read_frame as read_frame
from .image import ImageSource as ImageSource
from .image import read_image as read_image
from .image import read_image_file as read_image_file
from .limits import MAX_PIXELS as MAX_PIXELS
from .limits import MAX_VOXELS as MAX_VOXELS
from .photographs import PhotographReader as PhotographReader
from .volume_reader import VolumeReader as VolumeReader
from .volume_writer import slice_positions as slice_positions
from .volume_writer import write_volume as write_volume

__all__ = [
    "MAX_PIXELS",
    "MAX_VOXELS",
    "DicomReader",
    "DicomSeries",
    "Frame",
    "FrameReader",
    "ImageSource",
    "PhotographReader",
    "SourceSeries",
    "VolumeReader",
    "close_frames",
    "kind_of",
    "list_frames",
    "read_frame",
    "read_image",
    "read_image_file",
    "read_series",
    "read_source_series",
    "slice_positions",
    "warn_burned_in",
    "write_overlay_captures",
    "write_parametric_map",
    "write_segmentation",
    "write_volume",
]
