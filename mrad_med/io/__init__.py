"""Read image files and DICOM series as arrays on their own grid, and write results to files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
