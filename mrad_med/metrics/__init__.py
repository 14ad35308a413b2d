"""Metrics of anomaly maps, scores, masks and labels, with error bounds and confidence intervals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
