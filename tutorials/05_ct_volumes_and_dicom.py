"""Score a study of DICOM series and volumes, and write results that lie on it: NIfTI, DICOM Segmentation, montage.

Usage:
    python tutorials/05_ct_volumes_and_dicom.py [STUDY] [OUTPUT] [WINDOW]

Without a study a chest phantom with a nodule in its left lung is made.
"""

import sys

import numpy as np

import mrad_med

study = sys.argv[1] if len(sys.argv) > 1 else mrad_med.write_sample_study("tutorial/phantom")
output = sys.argv[2] if len(sys.argv) > 2 else "tutorial"
window = sys.argv[3] if len(sys.argv) > 3 else "lung"

print(f"{study}:")
found = mrad_med.data.survey(study)
for name, what in found.descriptions.items():
    print(f"  {name:<20} {what} {found.remarks.get(name, '')}")

detector = mrad_med.AnomalyDetector.from_bundle("mrad_tf", profiles=["volume"], window=window)
results = detector.detect(study)
# For a look: what one voxel in fifty is above. A threshold for patients must come from other patients.
threshold = float(np.median([np.quantile(case.anomaly_map, 0.98) for case in results]))
results.save(f"{output}/results", write=["nifti", "mask", "seg", "montage"], threshold=threshold)
for case in results:
    where = f"pixel {case.peak}"
    if case.kind == "volume":
        where = f"{(case.affine @ [*case.peak, 1])[:3].round(1)} mm (right, front, head)"
    print(f"{case.case_id:<20} {case.anomaly_score:.4f}, highest at {where}")
