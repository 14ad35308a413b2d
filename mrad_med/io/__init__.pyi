from .dicom.frames import DicomFrame as DicomFrame, DicomStack as DicomStack
from .dicom.reader import DicomReader as DicomReader
from .dicom.series import DicomSeries as DicomSeries, read_series as read_series
from .dicom.source import (
    SourceSeries as SourceSeries,
    read_source_series as read_source_series,
    warn_burned_in as warn_burned_in,
)
from .dicom.writer import (
    write_overlay_captures as write_overlay_captures,
    write_parametric_map as write_parametric_map,
    write_segmentation as write_segmentation,
)
from .file_types import detect_file_type as detect_file_type
from .frames import (
    Frame as Frame,
    FrameReader as FrameReader,
    close_frames as close_frames,
    list_frames as list_frames,
    read_frame as read_frame,
)
from .image import ImageSource as ImageSource, read_image as read_image, read_image_file as read_image_file
from .limits import MAX_EXPANSION as MAX_EXPANSION, MAX_PIXELS as MAX_PIXELS, MAX_VOXELS as MAX_VOXELS
from .photographs import PhotographReader as PhotographReader
from .volume_header import VolumeHeader as VolumeHeader
from .volume_reader import VolumeReader as VolumeReader, read_volume_header as read_volume_header
from .volume_writer import slice_positions as slice_positions, write_volume as write_volume

__all__ = [
    "MAX_EXPANSION",
    "MAX_PIXELS",
    "MAX_VOXELS",
    "DicomFrame",
    "DicomReader",
    "DicomSeries",
    "DicomStack",
    "Frame",
    "FrameReader",
    "ImageSource",
    "PhotographReader",
    "SourceSeries",
    "VolumeHeader",
    "VolumeReader",
    "close_frames",
    "detect_file_type",
    "list_frames",
    "read_frame",
    "read_image",
    "read_image_file",
    "read_series",
    "read_source_series",
    "read_volume_header",
    "slice_positions",
    "warn_burned_in",
    "write_overlay_captures",
    "write_parametric_map",
    "write_segmentation",
    "write_volume",
]
