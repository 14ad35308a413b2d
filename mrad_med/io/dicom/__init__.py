"""DICOM images and series: read, described and written."""
