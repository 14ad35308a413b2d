"""Score a study of DICOM series and volumes, and write results on its grid: NIfTI, DICOM Segmentation, montage.

Usage:
    python tutorials/05_ct_volumes_and_dicom.py [STUDY] [OUTPUT] [WINDOW]

Without a study, the script writes a chest phantom with a nodule in the left lung.
"""

import sys

import numpy as np

import mrad_med

study = sys.argv[1] if len(sys.argv) > 1 else mrad_med.write_sample_study("tutorial/phantom")
output = sys.argv[2] if len(sys.argv) > 2 else "tutorial"
window = sys.argv[3] if len(sys.argv) > 3 else "lung"

print(f"{study}:")
found = mrad_med.data.survey(study)
for name, description in found.descriptions.items():
    print(f"  {name:<20} {description} {found.remarks.get(name, '')}")

detector = mrad_med.AnomalyDetector.from_bundle("mrad_clip", profiles=["volume"], window=window)
results = detector.detect(study)
# The value that 2 % of the voxels exceed. For patients, choose a threshold on images of other patients.
threshold = float(np.median([np.quantile(case.anomaly_map, 0.98) for case in results]))
results.save(f"{output}/results", write=["nifti", "mask", "seg", "montage"], threshold=threshold)
for case in results:
    position = f"pixel {case.peak}"
    if case.kind == "volume":
        position = f"{(case.affine @ [*case.peak, 1])[:3].round(1)} mm (right, front, head)"
    print(f"{case.case_id:<20} {case.anomaly_score:.4f}, highest at {position}")
