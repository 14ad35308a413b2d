"""Readers and writers for DICOM images and series."""
