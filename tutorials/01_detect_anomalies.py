"""Find anomalies in a folder of images, add two local cases to the memory bank, and score the folder again.

Usage:
    python tutorials/01_detect_anomalies.py [FOLDER] [OUTPUT]
"""

import sys

import mrad_med

folder = sys.argv[1] if len(sys.argv) > 1 else mrad_med.write_sample_images("tutorial/images")
output = sys.argv[2] if len(sys.argv) > 2 else "tutorial"
# Paths of a folder of your own may name a patient. The samples name nobody.
detector = mrad_med.AnomalyDetector.from_bundle("mrad_tf", keep_identifiers=len(sys.argv) < 2)
before = detector.detect(folder)
before.save(f"{output}/before")

local = mrad_med.write_sample_dataset(f"{output}/local", count=1)
cases = [
    {"image": f"{local}/defect/phantom_0.png", "label": 1, "mask": f"{local}/mask/phantom_0.png"},
    {"image": f"{local}/normal/phantom_0.png", "label": 0},
]
after = detector.extend_bank(cases).detect(folder)
after.save(f"{output}/after")
for name, score in after.scores.items():
    print(f"{name:<20} {before.scores[name]:.4f} -> {score:.4f}")
