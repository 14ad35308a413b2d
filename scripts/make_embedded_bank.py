"""Make the memory bank of the embedded backbone, and choose its temperature on held-out industrial images.

Usage:
    python scripts/make_embedded_bank.py INDUSTRIAL_FOLDER --out bundles/memory_banks/embedded_industrial.safetensors

INDUSTRIAL_FOLDER holds one folder per set, each with ``normal/``, ``defect/`` and ``mask/``. Every image is encoded
once. Then each set in turn is held out: a bank of the other sets scores a seeded sample of it at every candidate
temperature. The temperature with the best mean pixel AUROC over the held-out sets is written into the card together
with the whole table; the bank that is saved holds all sets. No medical image takes part.
"""

from __future__ import annotations

import logging

TEMPERATURES = (1.0, 0.3, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
SOURCES = {
    "magnetic_tile": {
        "name": "Magnetic-tile-defect-datasets",
        "reference": "Huang et al., Surface defect saliency of magnetic tile, The Visual Computer 2018",
        "license": "free to use with citation",
    },
    "deep_pcb": {
        "name": "DeepPCB",
        "reference": "Tang et al., Online PCB defect detector on a new PCB defect dataset, 2019",
        "license": "MIT",
    },
    "procedural": {"name": "procedural textures with painted defects", "license": "Apache-2.0"},
}

logger = logging.getLogger("make_embedded_bank")


class Recorder:
    """Stands in for the image encoder while a bank is built: keeps the features of a sample for scoring later."""
