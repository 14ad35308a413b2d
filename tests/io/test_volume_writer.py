"""Volumes written as NIfTI and NRRD come back exactly from other readers; tables of slices by hand."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from monai.data import NrrdReader

from mrad_med.io.volume_writer import slice_positions, write_volume
from mrad_med.results.tables import slice_rows

OBLIQUE = np.array([[0.8, 0.1, 0.0, -10.3], [-0.1, 0.8, 0.2, 5.1], [0.0, -0.05, 2.0, 7.7], [0.0, 0.0, 0.0, 1.0]])
FLIPPED = np.array([[-0.7, 0.0, 0.0, 90.1], [0.0, -0.7, 0.0, 120.5], [0.0, 0.0, -3.0, 44.2], [0.0, 0.0, 0.0, 1.0]])
PERMUTED = np.array([[0.0, 0.0, 1.5, -3.0], [0.5, 0.0, 0.0, 2.0], [0.0, -2.5, 0.0, 9.0], [0.0, 0.0, 0.0, 1.0]])
AFFINES = {"identity": np.eye(4), "sheared": OBLIQUE, "flipped": FLIPPED, "permuted": PERMUTED}
SUFFIXES = [".nii", ".nii.gz", ".nrrd"]


def make_map() -> np.ndarray:
    return np.random.RandomState(0).rand(4, 5, 6).astype(np.float32)


def read_back(path) -> tuple[np.ndarray, np.ndarray]:
    """Values and RAS affine as nibabel and pynrrd have them."""
    if path.suffix == ".nrrd":
        values, header = nrrd.read(str(path))
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = header["space directions"].T, header["space origin"]
        assert header["space"] == "left-posterior-superior"
        return values, np.diag([-1, -1, 1, 1]) @ lps
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", AFFINES)
def test_map_and_affine_come_back_from_another_reader(tmp_path, suffix, name):
    path, values = tmp_path / f"map{suffix}", make_map()
    write_volume(path, values, AFFINES[name])
    read, affine = read_back(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)
    np.testing.assert_allclose(affine, AFFINES[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_mask_is_stored_as_uint8(tmp_path, suffix, dtype):
    path, mask = tmp_path / f"mask{suffix}", (make_map() > 0.5).astype(dtype)
    write_volume(path, mask, OBLIQUE)
    read, _ = read_back(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask)


def test_monai_reads_the_nrrd_on_the_same_grid(tmp_path):
    write_volume(tmp_path / "map.nrrd", make_map(), OBLIQUE)
    reader = NrrdReader()
    values, meta = reader.get_data(reader.read(str(tmp_path / "map.nrrd")))
    np.testing.assert_array_equal(values, make_map())
    np.testing.assert_allclose(meta["affine"], OBLIQUE, atol=1e-12)


def test_nifti_tells_its_grid_in_both_ways_unless_it_is_sheared(tmp_path):
    for name, code in (("flipped", 1), ("permuted", 1), ("sheared", 0)):
        write_volume(tmp_path / "map.nii", make_map(), AFFINES[name])
        header = nibabel.load(tmp_path / "map.nii").header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, code), name
        assert header.get_xyzt_units()[0] == "mm"
        if code:
            np.testing.assert_allclose(header.get_qform(), AFFINES[name], atol=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_input_is_never_changed_and_same_input_gives_same_bytes_but_for_the_date(tmp_path, suffix):
    values, affine = make_map(), OBLIQUE.copy()
    values.setflags(write=False)
    affine.setflags(write=False)
    for name in ("a", "b"):
        write_volume(tmp_path / name / f"map{suffix}", values, affine)
    first, second = ((tmp_path / name / f"map{suffix}").read_bytes().splitlines() for name in ("a", "b"))
    assert [line for line in first if line[:5] != b"# on "] == [line for line in second if line[:5] != b"# on "]


@pytest.mark.parametrize("values", [make_map()[0], make_map().astype(np.float64), make_map().astype(np.int16)])
def test_anything_but_a_map_or_a_mask_is_refused(tmp_path, values):
    with pytest.raises(ValueError, match="a volume must be"):
        write_volume(tmp_path / "map.nii.gz", values, np.eye(4))


@pytest.mark.parametrize("affine", [np.eye(3), np.full((4, 4), np.nan), np.ones((4, 4))])
def test_affine_of_another_kind_is_refused(tmp_path, affine):
    with pytest.raises(ValueError, match="the affine must be a finite"):
        write_volume(tmp_path / "map.nii.gz", make_map(), affine)


def test_flat_affine_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not define three independent axes"):
        write_volume(tmp_path / "map.nrrd", make_map(), np.diag([1.0, 0.0, 1.0, 1.0]))


def test_unknown_format_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=re.escape("got '.mha'")):
        write_volume(tmp_path / "map.mha", make_map(), np.eye(4))


@pytest.mark.parametrize(("suffix", "broken"), [(".nii.gz", "nibabel.save"), (".nrrd", "nrrd.write")])
def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, suffix, broken):
    def write_some(*arguments, **_):
        path = arguments[1] if broken.startswith("nibabel") else arguments[0]
        Path(path).write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, write_some)
    with pytest.raises(OSError, match="No space left"):
        write_volume(tmp_path / f"map{suffix}", make_map(), np.eye(4))
    assert list(tmp_path.iterdir()) == []


def test_missing_pynrrd_is_reported(tmp_path, monkeypatch):
    original = builtins.__import__

    def without_nrrd(name, *arguments, **keywords):
        if name == "nrrd":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_nrrd)
    with pytest.raises(ImportError, match=r"mrad-med\[nrrd\]"):
        write_volume(tmp_path / "map.nrrd", make_map(), np.eye(4))


def test_axial_slices_lie_at_the_height_of_the_world():
    assert slice_positions(FLIPPED, 3).tolist() == pytest.approx([44.2, 41.2, 38.2])
    assert slice_positions(np.diag([1.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 2, 4]


def test_positions_along_another_axis_of_the_array():
    # Of PERMUTED, array axis 0 runs anterior from 2 mm in steps of 0.5, axis 2 to the right's opposite from -3 in 1.5.
    assert slice_positions(PERMUTED, 3, axis=0).tolist() == pytest.approx([2, 2.5, 3])
    assert slice_positions(PERMUTED, 3, axis=1).tolist() == pytest.approx([9, 6.5, 4])
    assert slice_positions(PERMUTED, 3, axis=2).tolist() == pytest.approx([-3, -1.5, 0])


def test_all_voxels_of_an_oblique_slice_have_its_distance():
    positions = slice_positions(OBLIQUE, 6)
    normal = np.cross(OBLIQUE[:3, 0], OBLIQUE[:3, 1])
    normal /= np.linalg.norm(normal)
    voxels = np.stack([*np.mgrid[:4, :5, :6], np.ones((4, 5, 6))]).reshape(4, -1)
    distances = (normal @ (OBLIQUE @ voxels)[:3]).reshape(4, 5, 6)
    np.testing.assert_allclose(distances, np.broadcast_to(positions, (4, 5, 6)), atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_tell_place_score_and_peak_of_each_slice(axis):
    anomaly_map = np.zeros((2, 3, 4), np.float32)
    anomaly_map[1, 2, 3], anomaly_map[0, 1, 2] = 0.75, 0.5
    count = anomaly_map.shape[axis]
    rows = slice_rows("case", anomaly_map, np.diag([1.0, 2.0, 3.0, 1.0]), np.arange(count) / 4, axis=axis)
    assert len(rows) == count
    last = {"case_id": "case", "slice": count - 1, "score": (count - 1) / 4, "map_maximum": 0.75, "peak": "1 2 3"}
    assert rows[-1] == last | {"position_mm": (count - 1) * (axis + 1.0), "status": "ok"}
    assert rows[-2]["peak"] == "0 1 2"
    assert json.loads(json.dumps(rows)) == rows


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one score for each of 6 slices along axis 2"):
        slice_rows("case", make_map(), np.eye(4), np.zeros(5))


def test_flat_map_has_no_table():
    with pytest.raises(ValueError, match="expected the map of a volume"):
        slice_rows("case", make_map()[0], np.eye(4), np.zeros(5))


def test_fourth_axis_is_refused():
    with pytest.raises(ValueError, match="must be 0, 1 or 2, got 3"):
        slice_positions(np.eye(4), 5, axis=3)
