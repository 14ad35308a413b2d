"""Detection of anomalies below a path."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from mrad_med import CLIP, AnomalyDetector, AnomalyInferer, ImageView, MemoryBank, build_mrad_tf, make_phantom
from mrad_med.errors import DatasetError, FailedCasesError, MemoryBankError
from tests.conftest import TINY_SIZE, make_tiny_clip


@pytest.fixture
def detector(tiny_clip: CLIP, tiny_bank: MemoryBank) -> AnomalyDetector:
    network = build_mrad_tf(tiny_clip, tiny_bank, temperature=0.1)
    return AnomalyDetector(tiny_clip, tiny_bank, network, batch_size=2, view=ImageView(image_size=TINY_SIZE))


def test_a_folder_gives_one_result_a_file_on_the_files_own_grid(detector: AnomalyDetector, image_folder: Path):
    results = detector.detect(image_folder, progress=False)
    assert list(results.scores) == ["a", "b", "c"]
    assert len(results) == 3
    for case in results:
        assert case.anomaly_map.shape == (40, 60)
        assert case.anomaly_map.dtype == np.float32
        assert 0 <= case.anomaly_map.min() <= case.anomaly_map.max() <= 1
        assert 0 <= case.anomaly_score <= 1
    assert results.failures == []


def test_a_result_equals_the_network_by_hand(detector: AnomalyDetector, image_folder: Path):
    result = detector.detect(image_folder / "a.png", progress=False).cases[0]
    image = detector.preprocessing({"image": str(image_folder / "a.png")})["image"].as_tensor()[None]
    expected = AnomalyInferer()(image, detector.network)
    assert result.anomaly_score == pytest.approx(expected["anomaly_score"].item(), abs=1e-6)
    resized = torch.nn.functional.interpolate(expected["anomaly_map"], (40, 60), mode="bilinear", antialias=True)
    np.testing.assert_allclose(result.anomaly_map, resized[0, 0].numpy(), atol=1e-6)


def test_batch_size_does_not_matter(detector: AnomalyDetector, image_folder: Path):
    together = detector.detect(image_folder, progress=False)
    detector.batch_size = 1
    alone = detector.detect(image_folder, progress=False)
    assert list(together.scores.values()) == pytest.approx(list(alone.scores.values()), abs=1e-6)


def test_volumes_keep_their_grid_and_affine(detector: AnomalyDetector, tmp_path: Path):
    affine = np.array([[0, -1.5, 0, 10], [2.0, 0, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1]])
    volume = np.random.RandomState(0).normal(size=(20, 30, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "volume.nii.gz")
    Image.fromarray(make_phantom((40, 50))[0]).save(tmp_path / "photo.png")
    results = detector.detect(tmp_path, progress=False)
    by_name = {case.case_id: case for case in results}
    assert by_name["volume"].anomaly_map.shape == (20, 30, 5)
    np.testing.assert_allclose(by_name["volume"].affine, affine, atol=1e-6)
    assert by_name["photo"].affine is None
    results.save(tmp_path / "out")
    saved = nibabel.load(tmp_path / "out" / "maps" / "volume.nii.gz")
    np.testing.assert_allclose(saved.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(saved.get_fdata(dtype=np.float32), by_name["volume"].anomaly_map)
    assert (tmp_path / "out" / "overlays" / "volume.png").is_file()


def test_a_bad_file_costs_only_itself(detector: AnomalyDetector, image_folder: Path):
    (image_folder / "b_broken.png").write_bytes(b"")
    results = detector.detect(image_folder, progress=False)
    assert list(results.scores) == ["a", "b", "c"]
    assert [failure.case_id for failure in results.failures] == ["b_broken"]
    assert "empty" in results.failures[0].reason


def test_nothing_but_bad_files_ends_without_results(detector: AnomalyDetector, tmp_path: Path):
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    results = detector.detect(tmp_path, progress=False)
    assert len(results) == 0
    assert len(results.failures) == 1


def test_a_path_without_images_is_refused(detector: AnomalyDetector, tmp_path: Path):
    with pytest.raises(DatasetError, match="no image below"):
        detector.detect(tmp_path)
    with pytest.raises(DatasetError, match="there is no file or folder"):
        detector.detect(tmp_path / "missing")


def test_extending_the_bank_changes_results_at_once_and_leaves_the_first_detector_alone(
    detector: AnomalyDetector, image_folder: Path, tmp_path: Path
):
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    before = detector.detect(image_folder, progress=False).scores
    cases = [
        {"image": image_folder / "a.png", "label": 1, "mask": tmp_path / "mask.png"},
        {"image": image_folder / "b.jpg", "label": 0},
    ]
    extended = detector.extend_bank(cases, share=0, source="two local cases")
    assert len(extended.bank.image_keys) == len(detector.bank.image_keys) + 2
    assert extended.bank.card.sources[-1] == {"name": "two local cases", "images": 2}
    after = extended.detect(image_folder, progress=False).scores
    assert max(abs(after[name] - before[name]) for name in before) > 1e-4
    assert detector.detect(image_folder, progress=False).scores == before


def test_local_cases_are_remembered_through_the_window_they_are_seen_through(
    tiny_clip: CLIP, tiny_bank: MemoryBank, tmp_path: Path
):
    shown = np.random.RandomState(0).randint(0, 256, (40, 60)).astype(np.uint8)
    Image.fromarray(shown).save(tmp_path / "shown.png")
    values = shown * np.float32(399 / 255) - 160  # seen through center 40, width 400
    values[shown == 0], values[shown == 255] = -1000, 1000
    Image.fromarray(values).save(tmp_path / "deep.tif")
    network = build_mrad_tf(tiny_clip, tiny_bank)
    deep, shallow = (
        AnomalyDetector(tiny_clip, tiny_bank, network, view=ImageView(image_size=TINY_SIZE, window=window))
        .extend_bank([{"image": tmp_path / name, "label": 0}], share=0)
        .bank.image_keys[-1]
        for name, window in (("deep.tif", (40, 400)), ("shown.png", "auto"))
    )
    assert torch.cosine_similarity(deep, shallow, dim=0) > 0.9999


def test_local_cases_have_the_share_that_is_asked_for(detector: AnomalyDetector, image_folder: Path):
    cases = [{"image": image_folder / "a.png", "label": 0}]
    before = len(detector.bank.patch_keys)
    extended = detector.extend_bank(cases, share=0.5)
    assert len(extended.bank.patch_keys) == 2 * before
    assert extended.bank.card.sources[-1]["copies"] == before
    with pytest.raises(ValueError, match="share must be in"):
        detector.extend_bank(cases, share=1)


def test_cases_that_cannot_be_remembered_are_named(detector: AnomalyDetector, image_folder: Path):
    with pytest.raises(FailedCasesError, match=r"missing\.png: there is no such file"):
        detector.extend_bank(
            [{"image": image_folder / "a.png", "label": 0}, {"image": image_folder / "missing.png", "label": 1}]
        )
    with pytest.raises(ValueError, match="at least one case"):
        detector.extend_bank([])


def test_a_bank_of_another_backbone_is_refused(detector: AnomalyDetector, tiny_bank: MemoryBank):
    other = make_tiny_clip(seed=3)
    with pytest.raises(MemoryBankError, match="built with backbone"):
        AnomalyDetector(other, tiny_bank, detector.network).with_bank(tiny_bank)


def test_provenance_names_backbone_bank_and_settings(detector: AnomalyDetector):
    provenance = detector.provenance
    assert provenance["backbone"]["name"] == "tiny 0"
    assert provenance["memory_bank"]["sha256"] == detector.bank.sha256
    assert provenance["settings"]["view"]["image_size"] == TINY_SIZE


def test_a_bundle_gives_a_detector_and_takes_overrides():
    detector = AnomalyDetector.from_bundle("mrad_tf", image_size=126, temperature=0.5, device="cpu")
    assert detector.network.head.temperature == 0.5
    assert detector.view.image_size == 126
    assert detector.provenance["settings"]["bundle"] == "mrad_tf"
    assert AnomalyDetector.from_bundle(device="cpu").provenance["settings"]["bundle"] == "mrad_clip"


def test_an_unknown_override_is_refused():
    with pytest.raises(KeyError, match="no value named temprature"):
        AnomalyDetector.from_bundle("mrad_tf", temprature=0.5)
