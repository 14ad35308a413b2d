"""Every public archive as downloaded, and archives that are incomplete, nested or in another place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mrad_med.data.archives import ARCHIVES, find_archive, load_archive, load_folder
from mrad_med.errors import DatasetError
from tests.small_archives import DTD, MAKERS, MVTEC, litter, make_archive, make_polyps, picture, pictures, text


def load(name: str, root: Path, split: str = "test") -> list[dict]:
    """Load a dataset that must have no problems."""
    return load_archive(name, root, split=split, report=pytest.fail)[1]


def load_and_listen(name: str, root: Path, split: str = "test") -> tuple[list[dict], list[str]]:
    problems: list[str] = []
    return load_archive(name, root, split=split, report=problems.append)[1], problems


def shown(cases: list[dict], root: Path) -> list[tuple]:
    """Return case, label, mask below the root, and class."""
    return [
        (
            case["case_id"],
            case["label"],
            case["mask"] and Path(case["mask"]).relative_to(root).as_posix(),
            case["class"],
        )
        for case in cases
    ]


def of_classes(classes: str, normal: str, defect: str) -> list[tuple]:
    return [
        row
        for name in classes.split()
        for row in sorted(
            [
                (f"{name}/test/{normal}/000", 0, None, name),
                (f"{name}/test/{defect}/000", 1, f"{name}/ground_truth/{defect}/000_mask.png", name),
            ]
        )
    ]


MPDD = "bracket_black bracket_brown bracket_white connector metal_plate tubes"
EXPECTED = {
    "mvtec-ad": of_classes(MVTEC, "good", "broken_large"),
    "mpdd": of_classes(MPDD, "good", "scratches"),
    "dtd-synthetic": of_classes(DTD, "good", "bad"),
    "visa": [
        ("candle/Data/Images/Normal/0001", 0, None, "candle"),
        ("candle/Data/Images/Anomaly/000", 1, "candle/Data/Masks/Anomaly/000.png", "candle"),
    ],
    "btad": [
        row
        for name, mask in (("01", "png"), ("02", "png"), ("03", "bmp"))
        for row in (
            (f"{name}/test/ko/0000", 1, f"{name}/ground_truth/ko/0000.{mask}", name),
            (f"{name}/test/ko/0001", 1, f"{name}/ground_truth/ko/0001.{mask}", name),
            (f"{name}/test/ok/0000", 0, None, name),
        )
    ],
    "dagm": [
        row
        for name in [f"Class{number}" for number in range(1, 11)]
        for row in (
            (f"{name}/Test/0001", 0, None, name),
            (f"{name}/Test/0002", 1, f"{name}/Test/Label/0002_label.PNG", name),
        )
    ],
    "ksdd": [
        (f"kos{number:02d}/Part{part}", int((number, part) == (7, 1)), f"kos{number:02d}/Part{part}_label.bmp", "ksdd")
        for number in range(1, 51)
        for part in (0, 1)
    ],
    "ksdd2": [
        ("test/10301", 0, "test/10301_GT.png", "ksdd2"),
        ("test/20000", 1, "test/20000_GT.png", "ksdd2"),
        ("test/20001", 0, "test/20001_GT.png", "ksdd2"),
        ("test/20002", 1, "test/20002_GT.png", "ksdd2"),
    ],
    "kvasir": [
        (f"images/{name}", 1, f"masks/{name}.jpg", "kvasir")
        for name in ("cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4")
    ],
    **{
        name: [(f"images/{number}", 1, f"masks/{number}.png", name) for number in (1, 10, 2)]
        for name in ("cvc-colondb", "cvc-300", "etis")
    },
    "cvc-clinicdb": [(f"Original/{number}", 1, f"Ground Truth/{number}.tif", "cvc-clinicdb") for number in (1, 10, 2)],
    "endo": [("images/0a1b", 1, "masks/0a1b.png", "endo"), ("images/9c8d", 1, "masks/9c8d.jpg", "endo")],
    "isic2016": [
        (
            "ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003",
            1,
            "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png",
            "isic2016",
        )
    ],
    "tn3k": [("test-image/0000", 1, "test-mask/0000.jpg", "tn3k")],
    "headct": [
        ("head_ct/head_ct/000", 1, None, "headct"),
        ("head_ct/head_ct/001", 1, None, "headct"),
        ("head_ct/head_ct/010", 0, None, "headct"),
    ],
    "brainmri": [
        ("no/1 no", 0, None, "brainmri"),
        ("no/N1_JPG", 0, None, "brainmri"),
        ("no/N1_png", 0, None, "brainmri"),
        ("no/N11", 0, None, "brainmri"),
        ("yes/Y1", 1, None, "brainmri"),
        ("yes/Y10", 1, None, "brainmri"),
    ],
    "br35h": [("no/no0", 0, None, "br35h"), ("no/no1", 0, None, "br35h"), ("yes/y0", 1, None, "br35h")],
    **{
        name: [
            ("test/good/img/00003_60", 0, None, name),
            ("test/Ungood/img/00124_60", 1, f"test/Ungood/{masks}/00124_60.png", name),
        ]
        for name, masks in (("bmad-brain", "label"), ("bmad-liver", "anomaly_mask"), ("bmad-resc", "label"))
    },
    **{
        name: [("test/good/1", 0, None, name), ("test/Ungood/1", 1, None, name)]
        for name in ("bmad-chest", "bmad-histopathology", "bmad-oct2017")
    },
}


def test_every_archive_has_its_test():
    assert set(EXPECTED) == set(MAKERS) == set(ARCHIVES)


@pytest.mark.parametrize("name", EXPECTED)
def test_archive_is_read_as_downloaded(tmp_path, name):
    root = make_archive(name, tmp_path)
    cases = load(name, root)
    assert sorted(shown(cases, root), key=str) == sorted(EXPECTED[name], key=str)
    assert len({case["case_id"] for case in cases}) == len(cases)
    assert all(Path(case["image"]).is_file() for case in cases)
    assert load(name, tmp_path) == cases  # found from the folder above, beside what macOS left


@pytest.mark.parametrize("name", ["mvtec-ad", "cvc-300", "br35h", "ksdd2", "bmad-liver"])
def test_archive_is_found_where_it_is_nested(tmp_path, name):
    root = make_archive(name, tmp_path / "TestDataset" / "TestDataset")
    assert shown(load(name, tmp_path), root) == shown(load(name, root), root)


TRAIN = {
    "mvtec-ad": 15,
    "visa": 1,
    "btad": 3,
    "dagm": 20,
    "ksdd2": 4,
    "isic2016": 1,
    "tn3k": 1,
    "bmad-brain": 1,
    "bmad-chest": 1,
}


@pytest.mark.parametrize(("name", "count"), TRAIN.items())
def test_train_split_is_read_too(tmp_path, name, count):
    cases = load(name, make_archive(name, tmp_path), "train")
    assert len(cases) == count
    assert not any("test" in case["case_id"].lower() for case in cases)


def test_validation_split_of_bmad_is_read_too(tmp_path):
    root = make_archive("bmad-brain", tmp_path)
    assert shown(load("bmad-brain", root, "valid"), root) == [
        ("valid/good/img/00003_60", 0, None, "bmad-brain"),
        ("valid/Ungood/img/00124_60", 1, "valid/Ungood/label/00124_60.png", "bmad-brain"),
    ]


def test_class_numbers_in_the_masks_of_visa_are_anomalous(tmp_path):
    cases = load("visa", make_archive("visa", tmp_path))
    assert [case["mask_threshold"] for case in cases] == [0, 0]


def test_patients_and_sequences_are_read_from_names(tmp_path):
    brain, ksdd = make_archive("bmad-brain", tmp_path), make_archive("ksdd", tmp_path)
    picture(brain / "test/good/img/odd.png")
    assert [case.get("patient") for case in load("bmad-brain", brain)] == ["00003", None, "00124"]
    assert [case["sequence"] for case in load("ksdd", ksdd)][:4] == ["kos01", "kos01", "kos02", "kos02"]
    assert not any("patient" in case or "sequence" in case for case in load("kvasir", make_archive("kvasir", tmp_path)))


# location


def test_polyps_are_identified_by_their_folders(tmp_path):
    for name in ("Kvasir", "CVC-300", "CVC-ClinicDB"):
        make_polyps(tmp_path / "TestDataset" / name)
    pictures(tmp_path, "TestDataset/CVC-300/images/777.png")
    assert load_archive("cvc-300", tmp_path, split="test", report=lambda _: None)[0].name == "CVC-300"
    assert len(load("kvasir", tmp_path)) == 3
    with pytest.raises(DatasetError, match=r"etis was not found in .* or in folders named ETIS-LaribPolypDB, ETIS up"):
        load("etis", tmp_path)


def test_only_folder_of_another_set_is_not_treated_as_the_requested_one(tmp_path):
    make_polyps(tmp_path / "CVC-300")
    assert find_archive("kvasir", tmp_path) is None
    make_polyps(tmp_path / "archive" / "polyps")
    assert find_archive("kvasir", tmp_path / "archive") == tmp_path / "archive" / "polyps"
    assert find_archive("kvasir", tmp_path / "archive", by_name=True) is None


def test_folders_are_called_in_upper_or_lower_case(tmp_path):
    pictures(tmp_path, "kvasir-seg/Images/1.png")
    pictures(tmp_path, "kvasir-seg/Masks/1.png", spot=255)
    assert [case["mask"] for case in load("kvasir", tmp_path)] == [str(tmp_path / "kvasir-seg/Masks/1.png")]


def test_names_in_any_script_are_kept(tmp_path):
    pictures(tmp_path, "Größe/Kvasir/images/Fall~3~ä.png Größe/Kvasir/masks/Fall~3~ä.png")
    assert [case["case_id"] for case in load("kvasir", tmp_path)] == ["images/Fall 3 ä"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_wrong_root_is_refused_with_the_expected_contents(tmp_path, name):
    pictures(tmp_path, "holidays/1.jpg")
    litter(tmp_path)
    message = rf"^{name} was not found in .* up to 3 levels below\. Expected .+: unpack the whole archive"
    with pytest.raises(DatasetError, match=message):
        load(name, tmp_path)


def test_missing_root_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no folder .*nowhere; give the folder that btad was unpacked to"):
        load("btad", tmp_path / "nowhere")


def test_unknown_split_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(DatasetError, match=r"bmad-liver has no split 'val'; it has test, valid, train$"):
        load("bmad-liver", make_archive("bmad-liver", tmp_path), "val")


def test_split_that_was_not_unpacked_is_refused(tmp_path):
    root = make_archive("isic2016", tmp_path)
    shutil.rmtree(root / "ISBI2016_ISIC_Part1_Training_Data")
    problems: list[str] = []
    with pytest.raises(DatasetError, match=r"ISIC2016 has no case of split train of isic2016; unpack the whole"):
        load_archive("isic2016", root, split="train", report=problems.append)
    assert problems == [f"{root} has no folder ISBI2016_ISIC_Part1_Training_Data; unpack the whole archive"]


# problems


def spoil(name: str, root: Path) -> tuple[list[dict], list[str]]:
    cases, problems = load_and_listen(name, root)
    assert problems, "no problem was reported"
    return cases, [problem.replace(str(root), "ROOT") for problem in problems]


def test_lost_classes_and_unknown_folders_are_named(tmp_path):
    root = make_archive("mpdd", tmp_path)
    shutil.rmtree(root / "tubes")
    shutil.rmtree(root / "connector/test")
    pictures(root, "my_class/test/good/1.png notes/1.png")
    cases, problems = spoil("mpdd", root)
    assert {case["class"] for case in cases} == {"bracket_black", "bracket_brown", "bracket_white", "metal_plate"}
    assert problems == [
        "ROOT has folders that are not classes of mpdd, left out: my_class; move them",
        "ROOT lacks test/ for 2 of 6 classes: connector, tubes; unpack the whole archive",
    ]


def test_lost_folders_of_a_class_are_named(tmp_path):
    root = make_archive("mpdd", tmp_path)
    shutil.rmtree(root / "tubes/test/good")
    shutil.rmtree(root / "connector/ground_truth/scratches")
    picture(root / "metal_plate/ground_truth/rust/000_mask.png")
    (root / "bracket_black/test/empty").mkdir()
    cases, problems = spoil("mpdd", root)
    assert problems == [
        "no image in ROOT/bracket_black/test/empty; unpack the archive again",
        "1 of 1 image(s) in ROOT/connector/test/scratches have no mask of the same name: 000.png; unpack or copy the "
        "masks again",
        "ROOT/metal_plate/ground_truth has masks of rust but no images of them; unpack again",
        "ROOT/tubes/test has no folder good/ of normal images; unpack the archive again",
    ]
    assert [case["case_id"] for case in cases if case["label"] and not case["mask"]] == ["connector/test/scratches/000"]
    assert len(cases) == 11


def test_image_without_mask_is_kept_without_and_mask_without_image_is_named(tmp_path):
    root = make_archive("cvc-clinicdb", tmp_path)
    (root / "Ground Truth/10.tif").unlink()
    (root / "Original/2.tif").unlink()
    cases, problems = spoil("cvc-clinicdb", root)
    assert shown(cases, root) == [
        ("Original/1", 1, "Ground Truth/1.tif", "cvc-clinicdb"),
        ("Original/10", 1, None, "cvc-clinicdb"),
    ]
    assert [problem.split(":")[0] for problem in problems] == [
        "1 of 2 image(s) in ROOT/Original have no mask of the same name",
        "1 of 2 mask(s) in ROOT/Ground Truth have no image of the same name",
    ]


def test_lost_folder_of_masks_is_named(tmp_path):
    root = make_archive("kvasir", tmp_path)
    shutil.rmtree(root / "masks")
    cases, problems = spoil("kvasir", root)
    assert [case["mask"] for case in cases] == [None, None]
    assert len(problems) == 1
    assert problems[0].startswith("ROOT has no folder masks or mask or Ground Truth or GroundTruth with masks; unpack")


def test_lost_or_empty_folder_of_a_label_is_named(tmp_path):
    root = make_archive("br35h", tmp_path)
    shutil.rmtree(root / "no")
    assert spoil("br35h", root)[1] == ["ROOT has no folder no; unpack the whole archive"]
    (root / "no").mkdir()
    cases, problems = spoil("br35h", root)
    assert [case["label"] for case in cases] == [1]
    assert problems == ["no image in ROOT/no; unpack the archive again"]


def test_image_that_is_labeled_by_its_mask_is_left_out_without_mask(tmp_path):
    root = make_archive("ksdd2", tmp_path)
    (root / "test/20000_GT.png").unlink()
    (root / "test/20001_GT.png").write_bytes(b"half")
    cases, problems = spoil("ksdd2", root)
    assert [case["case_id"] for case in cases] == ["test/10301", "test/20002"]
    assert problems[0].startswith("1 of 4 image(s) in ROOT/test have no mask of the same name: 20000.png")
    assert problems[1].startswith("the mask ROOT/test/20001_GT.png cannot be used, left out: not an image")


def test_lost_folders_of_parts_are_named(tmp_path):
    root = make_archive("ksdd", tmp_path)
    for number in range(2, 9):
        shutil.rmtree(root / f"kos{number:02d}")
    assert spoil("ksdd", root)[1] == [
        "ROOT lacks 7 of 50 folders: kos02, kos03, kos04, kos05, kos06, ...; unpack the whole archive"
    ]


def test_lost_mask_of_dagm_does_not_make_its_image_normal(tmp_path):
    root = make_archive("dagm", tmp_path)
    (root / "Class3/Test/Label/0002_label.PNG").unlink()
    cases, problems = spoil("dagm", root)
    assert [case["mask"] for case in cases if case["label"] and case["class"] == "Class3"] == [None]
    assert problems == [
        "1 of 1 image(s) in ROOT/Class3/Test have no mask of the same name: 0002.PNG; unpack or copy the masks again"
    ]


def test_lost_table_of_dagm_is_named(tmp_path):
    root = make_archive("dagm", tmp_path)
    (root / "Class3/Test/Label/Labels.txt").unlink()
    (root / "Class3/Test/0002.PNG").unlink()
    cases, problems = spoil("dagm", root)
    assert len(cases) == 19
    assert [problem.split(",")[0].split(":")[0] for problem in problems] == [
        "ROOT/Class3/Test/Label/Labels.txt is missing",
        "1 of 1 mask(s) in ROOT/Class3/Test/Label have no image of the same name",
    ]


def test_images_and_rows_of_headct_that_lack_each_other_are_named(tmp_path):
    root = make_archive("headct", tmp_path)
    (root / "head_ct/head_ct/001.png").unlink()
    pictures(root / "head_ct/head_ct", "011.png copy.png")
    cases, problems = spoil("headct", root)
    assert [case["case_id"] for case in cases] == ["head_ct/head_ct/000", "head_ct/head_ct/010"]
    assert problems == [
        "2 image(s) of headct are not in labels.csv and are left out: "
        "head_ct/head_ct/011.png, head_ct/head_ct/copy.png",
        "1 row(s) of ROOT/labels.csv name an image that does not exist and are left out; "
        "unpack or copy the images again: head_ct/head_ct/1",
    ]


def test_table_of_headct_with_other_columns_is_refused(tmp_path):
    root = make_archive("headct", tmp_path)
    text(root / "labels.csv", "id,label\n0,1\n")
    with pytest.raises(DatasetError, match=r"labels\.csv lacks the columns hemorrhage; it has id, label"):
        load("headct", root)


def test_headct_may_be_one_folder_less_deep(tmp_path):
    root = make_archive("headct", tmp_path)
    (root / "head_ct/head_ct").rename(root / "moved")
    (root / "head_ct").rmdir()
    (root / "moved").rename(root / "head_ct")
    assert [case["label"] for case in load("headct", root)] == [1, 1, 0]


def test_folder_that_cannot_be_listed_is_skipped_unless_it_is_the_root(tmp_path, monkeypatch):
    def list_all_but_closed(folder: Path) -> list[Path]:
        if folder.name == "closed":
            raise DatasetError("cannot list closed")
        return [path for path in sorted(folder.iterdir()) if path.is_dir()]

    root = make_archive("cvc-300", tmp_path / "open")
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr("mrad_med.data.archives.list_folders", list_all_but_closed)
    assert find_archive("cvc-300", tmp_path) == root
    with pytest.raises(DatasetError, match="cannot list closed"):
        find_archive("cvc-300", tmp_path / "closed")


# custom folders


def test_folder_of_images_and_masks_is_labeled_by_the_masks(tmp_path):
    pictures(tmp_path, "mine/images/a.jpg mine/images/b~ä.png mine/masks/a_mask.png")
    picture(tmp_path / "mine/masks/b ä.png", spot=1)
    assert shown(load_folder(tmp_path / "mine", strict=True), tmp_path / "mine") == [
        ("images/a", 0, "masks/a_mask.png", "mine"),
        ("images/b ä", 1, "masks/b ä.png", "mine"),
    ]


def test_folder_of_normal_and_defect_images_is_read_too(tmp_path, caplog):
    pictures(tmp_path, "normal/1.png defect/1.png defect/2.png mask/1.png")
    assert [(case["label"], bool(case["mask"])) for case in load_folder(tmp_path)] == [
        (0, False),
        (1, True),
        (1, False),
    ]
    assert "1 image(s) in" in caplog.text
    with pytest.raises(DatasetError, match=r"1 image\(s\) in .*defect have no mask of the same name .*: defect/2$"):
        load_folder(tmp_path, strict=True)


def test_image_without_label_is_left_out(tmp_path, caplog):
    pictures(tmp_path, "images/a.png images/b.png masks/b.png")
    assert [case["case_id"] for case in load_folder(tmp_path)] == ["images/b"]
    assert "have no mask of the same name: a.png" in caplog.text
    with pytest.raises(DatasetError, match=r"have no mask of the same name: a\.png"):
        load_folder(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("images/a.png masks/b.png", "no image in .* has a mask of the same name in masks/; rename the masks"),
        ("images/a.png", "no image in .* has a mask of the same name in masks/"),
        ("good/a.png", r"neither .* nor a folder below it has normal/ or defect/"),
    ],
)
def test_folder_without_usable_images_is_refused(tmp_path, names, message):
    pictures(tmp_path, names)
    with pytest.raises(DatasetError, match=message):
        load_folder(tmp_path)
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere"):
        load_folder(tmp_path / "nowhere")
