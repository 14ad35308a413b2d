"""Build two memory banks from labeled folders, merge them, add local cases, save the bank and compare the scores.

Usage:
    python tutorials/02_build_and_share_a_memory_bank.py [OUTPUT]
"""

import sys
from pathlib import Path

import mrad_med

output = Path(sys.argv[1] if len(sys.argv) > 1 else "tutorial_bank")
image_size = 252  # pixels; the bundles use 518, which is slower and gives finer maps
clip = mrad_med.load_clip("embedded")
steps = mrad_med.build_preprocessing(clip.card, mrad_med.ImageView(image_size=image_size), with_mask=True)


def read(folder):
    """Return a loader for a folder with normal/, defect/ and mask/, or for a folder of such folders."""
    cases = mrad_med.load_labeled_folder(folder)
    return mrad_med.CaseLoader(mrad_med.CaseDataset(cases, steps), progress=False)


banks = []
for name, surfaces in (("woven", ["fabric", "leather"]), ("hard", ["granite", "plastic"])):
    folder = mrad_med.write_surface_dataset(output / name, surfaces=surfaces, count=2)
    sources = [{"name": name, "license": "CC0-1.0"}]
    banks.append(mrad_med.build_memory_bank(clip, read(folder), sources=sources, progress=False))
merged = mrad_med.merge_memory_banks(banks)

local = mrad_med.write_sample_dataset(output / "local", count=1)
extended = merged.extend(clip, read(local), share=0.2, sources=[{"name": "local phantoms"}], progress=False)
extended.save(output / "ours.safetensors")
received = mrad_med.load_memory_bank(output / "ours.safetensors")
print(received, [source["name"] for source in received.card.sources], f"sha256 {received.sha256}", sep="\n")

detector = mrad_med.AnomalyDetector.from_bundle("mrad_tf", image_size=image_size)
images = mrad_med.write_sample_images(output / "images")
before, after = (detector.with_bank(bank).detect(images, progress=False).scores for bank in (merged, received))
for name, score in after.items():
    print(f"{name:<16} {before[name]:.4f} -> {score:.4f}")
