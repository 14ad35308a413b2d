"""One image, one result: from a file, in memory, through MONAI's readers, as DICOM or not; and effects of profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from PIL import Image
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from mrad_med import (
    AnomalyDetector,
    CaseResult,
    Evaluation,
    ImageView,
    ResultWriter,
    SlidingWindowAnomalyInferer,
    build_mrad_tf,
    export_network,
    find_cases,
)
from mrad_med.bundle import read_bundle
from mrad_med.detector import Results
from mrad_med.errors import ExportError
from mrad_med.io.frames import OverlayVideo, list_frames
from tests.conftest import TINY_SIZE
from tests.io.test_frames import handles_of, on_linux
from tests.small_dicom import make_image, write_image, write_series

ROOT = Path(__file__).parent.parent
AFFINE = np.array([[0, 0, -3.0, 20], [1.5, 0, 0, -9], [0, -1.0, 0, 4], [0, 0, 0, 1]])  # sagittal, and turned
SMALL = {"image_size": 70, "device": "cpu"}
pytestmark = pytest.mark.usefixtures("embedded_is_loaded")


def make_pixels(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    """Random, with a corner of its own, so that a wrong axis shows."""
    pixels = np.random.RandomState(0).randint(0, np.iinfo(dtype).max // 2, shape).astype(dtype)
    pixels[:10, -20:] = np.iinfo(dtype).max - 5
    return pixels


@pytest.fixture
def make(tiny_clip, tiny_bank):
    def make(*, window: str = "auto", **keywords: Any) -> AnomalyDetector:
        network, view = build_mrad_tf(tiny_clip, tiny_bank, temperature=0.1), ImageView(TINY_SIZE, window=window)
        return AnomalyDetector(tiny_clip, tiny_bank, network, batch_size=1, view=view, **keywords)

    return make


def detect(detector: AnomalyDetector, source: Any) -> Results:
    results = detector.detect(source, progress=False)
    assert results.failures == []
    return results


def one(detector: AnomalyDetector, source: Any) -> CaseResult:
    (case,) = detect(detector, source)
    return case


def assert_same(first: CaseResult, second: CaseResult) -> None:
    np.testing.assert_array_equal(first.anomaly_map, second.anomaly_map)
    assert first.anomaly_score == second.anomaly_score
    assert np.ptp(first.anomaly_map) > 1e-4  # or else any two would be the same


# in memory


@pytest.mark.parametrize(
    "pixels",
    [make_pixels(40, 60, 3), make_pixels(40, 60), make_pixels(40, 60, dtype=np.uint16)],
    ids=["color", "gray", "16 bit"],
)
def test_array_and_pillow_image_give_what_their_file_gives(tmp_path, make, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    detector = make()
    of_file = one(detector, tmp_path / "a.png")
    assert of_file.anomaly_map.shape == (40, 60)
    for source in (pixels, Image.fromarray(pixels), Image.open(tmp_path / "a.png")):
        assert_same(one(detector, source), of_file)


@pytest.mark.parametrize("affine", [AFFINE, np.diag([-1.0, -1, 2, 1])], ids=["sagittal", "axial"])
def test_volume_that_monai_loaded_gives_what_its_file_gives(tmp_path, make, affine):
    values = np.random.RandomState(0).normal(100, 30, (20, 24, 18)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    loaded = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")
    assert isinstance(loaded, MetaTensor)
    detector = make()
    of_file, of_tensor = one(detector, tmp_path / "a.nii.gz"), one(detector, loaded)
    assert_same(of_tensor, of_file)
    np.testing.assert_allclose(of_tensor.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(of_tensor.slice_scores, of_file.slice_scores)
    assert of_tensor.slice_axis == of_file.slice_axis


def test_photograph_that_monai_loaded_as_bytes_gives_what_its_file_gives(tmp_path, make):
    Image.fromarray(make_pixels(40, 60, 3)).save(tmp_path / "a.png")
    load = LoadImage(reader="PILReader", dtype=np.uint8, image_only=True, ensure_channel_first=True)
    detector = make()
    assert_same(one(detector, load(tmp_path / "a.png")), one(detector, tmp_path / "a.png"))


@pytest.mark.filterwarnings("ignore:NvImgCodec")
def test_series_that_monai_loaded_gives_the_values_of_the_files_at_the_same_places(tmp_path, make):
    write_series(tmp_path / "s", np.random.RandomState(0).randint(0, 900, (20, 24, 5)), step=(0, 0, 3))
    loaded = LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True)(tmp_path / "s")
    detector = make()
    of_files, of_tensor = one(detector, tmp_path / "s"), one(detector, loaded)
    turn = np.rint(np.linalg.inv(of_tensor.affine) @ of_files.affine).astype(int)  # of voxels into MONAI's
    index = np.einsum("ij,j...->i...", turn[:3, :3], np.indices(of_files.anomaly_map.shape))
    index += turn[:3, 3].reshape(3, 1, 1, 1)
    np.testing.assert_array_equal(of_tensor.anomaly_map[tuple(index)], of_files.anomaly_map)
    assert of_tensor.anomaly_score == of_files.anomaly_score


def test_list_of_paths_is_one_series_in_whatever_order(tmp_path, make):
    paths = write_series(tmp_path / "s", np.random.RandomState(0).randint(0, 900, (20, 24, 5)))
    detector = make()
    of_folder = one(detector, tmp_path / "s")
    assert of_folder.kind == "volume"
    for order in (paths, paths[::-1], [str(paths[i]) for i in (2, 0, 4, 1, 3)]):
        assert_same(one(detector, order), of_folder)
        assert one(detector, order).case_id == "image"


def test_list_of_photographs_is_refused_with_advice(tmp_path, make):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        Image.fromarray(make_pixels(40, 60, 3)).save(path)
    (failure,) = make().detect(paths, progress=False).failures
    assert failure.reason.startswith("a list of files must be one DICOM series; give several images by name")


def test_images_of_all_kinds_are_scored_together_by_their_names(tmp_path, make):
    pixels = make_pixels(40, 60, 3)
    values = np.random.RandomState(0).normal(100, 30, (20, 24, 18)).astype(np.float32)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.gif", save_all=True, append_images=[Image.new("RGB", (60, 40))])
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "a.nii")
    given = {
        "path": tmp_path / "a.png",
        "array": pixels,
        "series": write_series(tmp_path / "s", np.random.RandomState(0).randint(0, 900, (20, 24, 5))),
        "stored volume": values,
        "volume": MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(AFFINE)),
        "page": list_frames(tmp_path / "b.gif")[1],
        "folder/picture": Image.fromarray(pixels),
    }
    detector = make()
    results = detect(detector, given)
    assert [case.case_id for case in results] == list(given)
    kinds = ["image", "image", "volume", "volume", "volume", "frame", "image"]
    assert [case.kind for case in results] == kinds
    by_name = {case.case_id: case for case in results}
    assert_same(by_name["volume"], one(detector, tmp_path / "a.nii"))
    assert_same(by_name["series"], one(detector, tmp_path / "s"))
    for name in ("path", "folder/picture"):
        assert_same(by_name["array"], by_name[name])
    results.save(tmp_path / "out", write=["tiff", "nifti", "overlay"])
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("overlays/**/*.png")}
    assert written == {f"overlays/{name}.png" for name in given}


def test_inputs_are_left_as_they_were(make):
    pixels, volume = make_pixels(40, 60, 3), MetaTensor(torch.rand(1, 20, 24, 18), affine=torch.from_numpy(AFFINE))
    kept, values = pixels.copy(), volume.clone()
    detect(make(), {"a": pixels, "b": volume})
    np.testing.assert_array_equal(pixels, kept)
    assert torch.equal(volume, values)
    assert volume.applied_operations == []


# DICOM


MIRRORED = {  # bits, window of MONOCHROME1, and that of its twin by hand: max - center, and 1 more for LINEAR
    "no window": (12, {}, {}),
    "linear": (
        12,
        {"WindowCenter": "1500", "WindowWidth": "1000"},
        {"WindowCenter": "2596", "WindowWidth": "1000"},
    ),
    "exact": (
        12,
        {"WindowCenter": "1500", "WindowWidth": "1000", "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": "2595", "WindowWidth": "1000", "VOILUTFunction": "LINEAR_EXACT"},
    ),
    "bytes": (8, {}, {}),
}


@pytest.mark.parametrize("name", MIRRORED)
def test_mirrored_gray_values_give_the_same_bits_as_their_twin(tmp_path, make, name):
    bits, window, twin = MIRRORED[name]
    stored = make_pixels(40, 60, dtype=np.uint16) >> (16 - bits)
    stored = stored.astype(np.uint8 if bits == 8 else np.uint16)
    mirrored = make_image(stored, photometric="MONOCHROME1", bits=bits, Modality="DX", **window)
    plain = make_image((2**bits - 1 - stored).astype(stored.dtype), bits=bits, Modality="DX", **twin)
    write_image(tmp_path / "1.dcm", mirrored)
    write_image(tmp_path / "2.dcm", plain)
    detector = make()
    assert_same(*(one(detector, tmp_path / f"{number}.dcm") for number in (1, 2)))


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_ct_through_its_window_gives_the_same_as_pydicom(tmp_path, make, function):
    stored = make_pixels(40, 60, dtype=np.uint16) >> 4
    tags = {"WindowCenter": "40", "WindowWidth": "900", "RescaleSlope": "1", "RescaleIntercept": "-1024"}
    image = make_image(stored, bits=12, Modality="CT", VOILUTFunction=function, **tags)
    write_image(tmp_path / "ct.dcm", image)
    shown = apply_voi_lut(apply_modality_lut(stored, image), image)
    low, high = -1024, 4095 - 1024  # pydicom spreads the window over the range of the values
    shown = np.round((shown - low) / (high - low) * 255).astype(np.uint8)
    assert len(np.unique(shown)) > 100
    detector = make()
    of_ct, of_shown = one(detector, tmp_path / "ct.dcm"), one(detector, shown)
    through_percentiles = one(make(window="percentile"), tmp_path / "ct.dcm")
    # Both round to bytes: where doubles differ in their last bit, a gray level of 255 may differ by one.
    np.testing.assert_allclose(of_ct.anomaly_map, of_shown.anomaly_map, atol=2e-4)
    assert np.abs(of_ct.anomaly_map - through_percentiles.anomaly_map).max() > 2e-3


# profiles


def values(bundle: str, name: str) -> dict[str, Any]:
    return json.loads((ROOT / "bundles" / bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("profile", ["endoscopy", "volume", "sliding"])
def test_profiles_are_those_of_every_bundle_and_change_what_bundles_have(profile):
    known = values("mrad_tf", f"inference_{profile}")
    assert known == values("mrad_ft", f"inference_{profile}") == values("mrad_clip", f"inference_{profile}")
    own = {"overlap", "scales"}  # only of tiles
    for bundle in ("mrad_tf", "mrad_ft", "mrad_clip"):
        assert set(known) - own <= set(values(bundle, "inference"))


def test_profile_of_volumes_smooths_across_slices_in_the_memory_of_the_computer(tmp_path):
    plain = AnomalyDetector.from_bundle("mrad_tf", **SMALL)
    volumes = AnomalyDetector.from_bundle("mrad_tf", profiles=["volume"], **SMALL)
    assert (plain.inferer.smooth, plain.inferer.device) == (0, None)
    assert (volumes.inferer.smooth, volumes.inferer.device) == (1, "cpu")
    assert volumes.provenance["settings"]["profiles"] == ["volume"]
    assert plain.provenance["settings"]["profiles"] == []
    step = np.zeros((40, 40, 6), np.float32)
    step[..., 3:] = np.random.RandomState(0).rand(40, 40, 3)  # slices of nothing, then of noise
    rough, smooth = (one(detector, step).anomaly_map for detector in (plain, volumes))
    jumps = [np.abs(np.diff(anomaly_map, axis=2)).mean(axis=(0, 1)) for anomaly_map in (rough, smooth)]
    assert jumps[0].argmax() == jumps[1].argmax() == 2
    assert 0.3 < jumps[1][2] / jumps[0][2] < 0.5  # a step under a Gaussian of one slice: its middle bin, 0.399
    assert jumps[0][0] == 0 < jumps[1][0]


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({}, [(1, 70), (1, 70), (2, 70)]),  # tiles at 0, 53 and, as the last, 80, two in a batch; and the whole image
        ({"overlap": 0.5}, [(1, 70), (2, 70), (2, 70)]),  # at 0, 35, 70 and 80
        # At half the size, 35 rows are resized to three patches, and two tiles cover 75 columns.
        ({"scales": [1.0, 0.5]}, [(1, 70), (1, 70), (2, 42), (2, 70)]),
    ],
    ids=["as it is", "overlap", "two scales"],
)
def test_profile_of_sliding_windows_sees_images_at_their_own_size(settings, batches):
    detector = AnomalyDetector.from_bundle("mrad_tf", profiles=["sliding"], batch_size=2, **settings, **SMALL)
    assert isinstance(detector.inferer.slice_inferer, SlidingWindowAnomalyInferer)
    seen = []
    detector.network.image_encoder.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape)))
    assert one(detector, make_pixels(70, 150, 3)).anomaly_map.shape == (70, 150)
    assert {(channels, columns) for _, channels, _, columns in seen} == {(3, 70)}
    assert sorted((count, rows) for count, _, rows, _ in seen) == batches


def test_profile_of_endoscopy_takes_out_what_is_no_tissue_and_thins_videos(tmp_path):
    pytest.importorskip("av")
    black = np.zeros((96, 140, 3), np.uint8)
    inside = (np.indices((96, 140)) - np.reshape([47.5, 69.5], (2, 1, 1))) ** 2
    field = inside.sum(0) < 42**2
    black[field] = np.random.RandomState(0).randint(90, 140, (int(field.sum()), 3))
    endoscopy = AnomalyDetector.from_bundle("mrad_tf", profiles=["endoscopy"], **SMALL)
    found = one(endoscopy, black).anomaly_map
    assert (found[:4, :20] == found.min()).all()  # the black corner is as normal as anything
    assert np.ptp(found[field]) > 0.01
    assert np.ptp(one(AnomalyDetector.from_bundle("mrad_tf", **SMALL), black).anomaly_map[:4, :20]) > 1e-3
    with OverlayVideo(tmp_path / "exam.mp4", frames_per_second=10) as video:
        for _ in range(10):
            video.write(black)
    assert len(detect(endoscopy, tmp_path / "exam.mp4")) == 5  # one second of video
    assert len(endoscopy.detect(tmp_path / "exam.mp4", progress=False, frames_per_second=2)) == 2


@on_linux
def test_video_that_was_scored_can_be_deleted(make, tmp_path):
    pytest.importorskip("av")
    with OverlayVideo(tmp_path / "exam.mp4", frames_per_second=5) as video:
        for level in (0, 120, 240):
            video.write(np.full((60, 80, 3), level, np.uint8))
    detector = make()
    assert len(detect(detector, tmp_path / "exam.mp4")) == 3
    assert handles_of(tmp_path / "exam.mp4") == 0
    writer = ResultWriter(tmp_path / "out", write=["overlay", "video"])
    assert detector.stream(find_cases(tmp_path / "exam.mp4"), writer.write, progress=False) == []
    writer.finish()
    assert handles_of(tmp_path / "exam.mp4") == handles_of(tmp_path / "out/videos/exam.mp4") == 0


def test_values_given_come_before_profiles_and_later_profiles_before_earlier():
    parser = read_bundle("mrad_tf", profiles=["endoscopy", "volume"], overrides={"smooth": 3.0, "remove": ["text"]})
    assert [parser.get_parsed_content(name) for name in ("smooth", "accumulator", "remove", "frames_per_second")] == [
        *(3.0, "cpu"),
        *(["text"], 5),
    ]
    detector = AnomalyDetector.from_bundle("mrad_tf", profiles=["volume"], smooth=0.5, write=["nrrd"], **SMALL)
    assert detector.inferer.smooth == 0.5
    assert detector.writing["write"] == ["nrrd"]
    assert detector.provenance["settings"]["smooth"] == 0.5


def test_later_profile_comes_before_an_earlier_one(tmp_path):
    configs = tmp_path / "own" / "configs"
    configs.mkdir(parents=True)
    for name in ("inference", "metadata"):
        (configs / f"{name}.json").write_text(json.dumps(values("mrad_tf", name)), encoding="utf-8")
    for name, smooth in (("a", 1.5), ("b", 2.5)):
        (configs / f"inference_{name}.json").write_text(json.dumps({"smooth": smooth}), encoding="utf-8")
    for profiles, smooth in ((["a", "b"], 2.5), (["b", "a"], 1.5), ([], 0)):
        assert read_bundle(tmp_path / "own", profiles=profiles).get("smooth") == smooth
    with pytest.raises(FileNotFoundError, match="own has no profile volume; it has a, b"):
        read_bundle(tmp_path / "own", profiles=["a", "volume"])
    for path in configs.glob("inference_*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="own has no profile a, b; it has none"):
        read_bundle(tmp_path / "own", profiles=["a", "b"])


def test_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(FileNotFoundError, match="mrad_tf has no profile lung; it has endoscopy, sliding, volume"):
        AnomalyDetector.from_bundle("mrad_tf", profiles=["volume", "lung"], **SMALL)


def test_what_scores_images_whole_refuses_sliding_windows(tmp_path):
    detector = AnomalyDetector.from_bundle("mrad_tf", profiles=["sliding"], **SMALL)
    known = {"card": detector.clip.card, "provenance": {}, "view": ImageView(70)}
    for inferer in (detector.inferer, detector.inferer.slice_inferer):
        with pytest.raises(ValueError, match="measured whole: leave out the sliding windows, and the profile sliding"):
            Evaluation(detector.network, [{"case_id": "a"}], output_dir=tmp_path, inferer=inferer, **known)
        with pytest.raises(ExportError, match=r"exported networks score whole images: .* profile sliding"):
            export_network(detector.network, tmp_path / "mrad.pt2", provenance={}, image_size=70, inferer=inferer)
    assert list(tmp_path.iterdir()) == []
