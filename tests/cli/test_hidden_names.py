"""Runs with DICOM files reveal nothing that names a patient: neither files, tables and records, nor what is printed."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
import shutil
import unicodedata
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import EnhancedSRStorage

from mrad_med.cli import main
from mrad_med.cli.hidden_names import without_paths
from mrad_med.errors import FailedCasesError
from mrad_med.io.frames import OverlayVideo
from mrad_med.results.outputs import OUTPUTS
from tests.small_dicom import item, make_image, write_image, write_series

SMALL = ["--image_size", "70", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("embedded_is_loaded", "plain_figures")

# What names the patient. Each is in a header, in the name of a folder or file, or in both.
HEADER = {
    "PatientName": "Zyxwel^Qumbert=張^偉業=ちょう^いぎょう",
    "PatientBirthName": "Vorpalski",
    "PatientMotherBirthName": "Jabberwoc",
    "OtherPatientNames": "Brillig^Toverley",
    "PatientID": "PID-8472913",
    "IssuerOfPatientID": "Grabnortz",
    "PatientBirthDate": "19520314",
    "PatientAddress": "Slithystreet 7",
    "PatientTelephoneNumbers": "0049-667788",
    "MilitaryRank": "Gimbler",
    "StudyDate": "20250917",
    "AcquisitionDateTime": "20250918093142",
    "AccessionNumber": "ACC9912753",
    "StudyID": "ST4711X",
    "ReferringPhysicianName": "Borogove^Mimsy",
    "PerformingPhysicianName": "Frumious",
    "OperatorsName": "Bandersnatc",
    "InstitutionName": "Tulgeywood Clinic",
    "StationName": "UFFISHXR",
    "SeriesDescription": "Galumph",
}
ITEMS = {
    "RequestAttributesSequence": {"RequestedProcedureID": "RQ55731", "RequestedProcedureDescription": "Manxome"},
    "OtherPatientIDsSequence": {"PatientID": "OP-6022114"},
    "ReferencedStudySequence": {"StudyDescription": "Tumtumtree"},
}
SHORT = ["Oq", "Xu", "Y"]  # names of one to three letters
PLACES = [
    *("Zyxwel_Qumbert", "qumbert.zyxwel", "ZYXWELQUMBERT", "張偉業", "Chyang Weiyeh", "ちょういぎょう", "Зиксвел"),
    *("Vorpalski", "née Jabberwoc", "Brillig", "PID-8472913", "p8472913", "1952-03-14", "14.3.52", "14 Mar 1952"),
    *("2025-09-17", "20250918093142", "ACC9912753", "ST4711X", "Dr Borogove", "Frumious", "Bandersnatc", "Tulgeywood"),
    *("RQ55731", "Manxome", "OP-6022114", "Tumtumtree", "Galumph", "Oq", "Xu Y", "Müllerchen", "=Zyx;ωelmo\u202e"),
]
PLANTED = [
    *("zyxwel", "qumbert", "張偉業", "ちょう", "chyang", "weiyeh", "зиксвел", "vorpalski", "jabberwoc", "brillig"),
    *(
        "toverley",
        "8472913",
        "grabnortz",
        "19520314",
        "1952-03-14",
        "14.3.52",
        "14 mar",
        "slithystreet",
        "667788",
        "gimbler",
    ),
    *("20250917", "2025-09-17", "20250918", "9912753", "st4711x", "borogove", "mimsy", "frumious", "bandersnatc"),
    *("tulgeywood", "uffishxr", "galumph", "rq55731", "manxome", "6022114", "tumtumtree", "mullerchen", "ωelmo"),
]


def header() -> dict:
    return HEADER | {name: [item(**values)] for name, values in ITEMS.items()} | {"SpecificCharacterSet": "ISO_IR 192"}


def photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (40, 60, 3), np.uint8)).save(path)


@pytest.fixture
def planted(tmp_path) -> Path:
    """An export in which everything names the patient, with files of each type that is read."""
    root = tmp_path / "Zyxwel export" / "Qumbert"
    values = np.random.RandomState(0).randint(0, 900, (40, 48, 3))
    for number, place in enumerate(PLACES):
        photograph(root / place / f"{place} {number}.png", number)
    for number, place in enumerate(PLACES[:4]):
        names = [f"{place} {index}.dcm" for index in range(3)]
        tags = {
            "StudyInstanceUID": f"1.2.8.{number}",
            "SeriesInstanceUID": f"1.2.9.{number}",
            "FrameOfReferenceUID": "1.2.7",
        }
        write_series(root / place / "ct of Vorpalski", values + number, names=names, **header(), **tags)
    whole = root / "Oq" / "Xu.dcm"
    pixels = np.arange(40 * 48, dtype=np.uint8).reshape(40, 48)
    write_image(
        whole, make_image(pixels, Modality="US", StudyInstanceUID="1.2.8.9", SeriesInstanceUID="1.2.9.9", **header())
    )
    (root / "Oq" / "Y.dcm").write_bytes(whole.read_bytes()[:-300])
    report = pydicom.dcmread(whole)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = EnhancedSRStorage
    for keyword in ("PixelData", "Rows", "Columns"):
        del report[keyword]
    report.save_as(root / "Brillig" / "report of Toverley.dcm")
    volume = np.random.RandomState(0).normal(size=(20, 24, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1])), root / "Brillig" / "Toverley.nii.gz")
    with OverlayVideo(root / "Manxome" / "Frumious.mp4", frames_per_second=5) as video:
        for index in range(3):
            gradient = np.add.outer(np.arange(48), np.arange(64))[..., None].repeat(3, 2)
            video.write((gradient + 40 * index).astype(np.uint8))
    (root / "Oq" / "not an image of Toverley.png").write_bytes(b"no image")
    (root / "broken link of Toverley.png").symlink_to(root / "Jabberwoc")
    shutil.copy(root / PLACES[0] / f"{PLACES[0]} 0.png", root / "a copy of Zyxwel.png")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Return what each file holds, unpacked, with its name."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        data = path.read_bytes() if path.is_file() else b""
        unpacked = gzip.decompress(data) if path.suffix == ".gz" else b""
        text = str(Image.open(path).text).encode() if path.suffix == ".png" and data else b""
        if path.suffix in (".json", ".jsonl"):  # other scripts are written as escape sequences
            text = re.sub(r"\\u[0-9a-f]{4}", lambda found: json.loads(f'"{found[0]}"'), data.decode()).encode(
                "utf-8", "surrogatepass"
            )
        found[name] = name.encode() + data + unpacked + text
    return found


def plain(data: bytes) -> str:
    """Return text in lower case and without accents."""
    text = unicodedata.normalize("NFKD", data.decode("utf-8", "replace").casefold())
    return "".join(character for character in text if not unicodedata.combining(character))


def leaks(found: dict[str, bytes]) -> list[tuple[str, str]]:
    words = [plain(word.encode()) for word in PLANTED]
    return [(name, word) for name, data in found.items() for word in words if word in plain(data)]


def names_of(found: dict[str, bytes]) -> set[str]:
    return {part for name in found for part in Path(name).parts}


@pytest.fixture
def printed(caplog, capfd, recwarn):
    """Return a function that returns what was printed, logged and warned of since the test began."""
    caplog.set_level(logging.INFO)

    def collect() -> dict[str, bytes]:
        texts = capfd.readouterr()
        warned = str([str(warning.message) for warning in recwarn.list])
        texts = {"out": texts.out, "err": texts.err, "log": caplog.text, "warnings": warned}
        return {name: text.encode("utf-8", "replace") for name, text in texts.items()}

    return collect


def test_the_search_for_leaks_finds_each_planted_word(planted, tmp_path):
    """The test below could not fail otherwise."""
    arguments = ["detect", str(planted), "--out", str(tmp_path / "out"), "--bundle", "mrad_tf", *SMALL]
    assert main([*arguments, "--write", "tiff", "--keep-identifiers"]) == 1
    found = {word for _, word in leaks(contents(tmp_path / "out"))}
    only_in_headers = {"grabnortz", "slithystreet", "667788", "gimbler", "mimsy", "uffishxr", "19520314", "20250917"}
    assert {plain(word.encode()) for word in PLANTED} - found == only_in_headers


def test_no_planted_word_is_in_any_file_or_message_of_detect(planted, tmp_path, printed):
    out = planted / "results of Zyxwel"
    words = ["--write", *OUTPUTS, "video", "--threshold", "0.4"]
    arguments = ["detect", str(planted), "--out", str(out), "--bundle", "mrad_tf", *SMALL]
    assert main([*arguments, *words]) == 1
    assert main([*arguments, *words, "--jobs", "1"]) == 1  # takes over the finished cases
    first = {f"first {name}": data for name, data in contents(out).items()}
    assert main([*arguments, "--write", "tiff", "--restart"]) == 1
    assert main(["detect", str(planted), "--dry-run", "--key", str(tmp_path / "Toverley.csv")]) == 0
    found = {**printed(), **first, **contents(out)}
    assert leaks(found) == []
    assert not {part.split(".")[0].split("_")[0] for part in names_of(found)} & {*SHORT}
    with (out / "scores.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["status"] for row in rows} == {"ok", "failed"}
    code = r"(photograph|volume|video|dicom|study|series_3)(-[0-9a-f]{10}){1,2}"  # two if two files state one UID
    assert [row["case_id"] for row in rows if not re.fullmatch(rf"{code}(/{code}|/frame_\d)?", row["case_id"])] == []
    suffixes = {Path(name).suffix for name in found}
    assert suffixes >= {".dcm", ".png", ".csv", ".json", ".jsonl", ".gz", ".nrrd", ".tiff", ".mp4"}


def test_names_are_counted_at_the_end_and_the_key_names_them(planted, tmp_path, capsys):
    key = tmp_path / "key.csv"
    assert main(["detect", str(planted), "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    count = len(PLACES) + 4 + 2 + 1 + 1 + 1 + 1  # photographs; series; DICOM, damaged; report; volume; video; no image
    assert last == (
        f"{count} name(s) are hidden, because DICOM files are among the images; --dry-run --key FILE with the same "
        "paths writes the key"
    )
    arguments = ["detect", str(planted), "--out", str(tmp_path / "out"), "--bundle", "mrad_tf", *SMALL]
    assert main([*arguments, "--write", "tiff", "nifti", "--key", str(key)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("images; the key is in the file of --key")
    with key.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["case_id"] for row in rows}) == count
    assert key.stat().st_mode & 0o777 == 0o600
    of_case = {row["case_id"]: row["path"] for row in rows}
    with (tmp_path / "out" / "scores.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            assert Path(of_case[re.sub("/frame_.*", "", row["case_id"])].replace("\\u202e", "\u202e")).exists()
    before = key.read_bytes()
    assert main([*arguments, "--key", str(tmp_path / "out" / "key.csv")]) == 2
    assert "the key would be in the folder of the results" in capsys.readouterr().err
    assert main(["detect", str(planted / "missing"), "--dry-run", "--key", str(key)]) == 2
    assert key.read_bytes() == before


def test_cases_stay_finished_when_the_folder_of_the_patient_is_renamed(planted, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--bundle", "mrad_tf", *SMALL, "--write", "tiff", "nifti"]
    assert main(["detect", str(planted), *arguments]) == 1
    planted.parent.rename(tmp_path / "other")
    capsys.readouterr()
    assert main(["detect", str(tmp_path / "other"), *arguments]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    total = len(PLACES) + 4 + 2 + 1 + 3 + 1
    assert first == f"{total - 2} of {total} case(s) are finished already; --restart scores them again"


# labeled sets


@pytest.fixture
def labeled(tmp_path) -> Path:
    """A labeled set whose images are DICOM, and a photograph, with names of patients."""
    root = tmp_path / "Zyxwel set"
    for label in ("normal", "defect"):
        for number, place in enumerate(PLACES[:5]):
            pixels = np.random.RandomState(number + 10 * len(label)).randint(0, 255, (40, 48)).astype(np.uint8)
            tags = {"Modality": "US", "StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.3.{number}"}
            write_image(root / label / place / f"{place}.dcm", make_image(pixels, **header(), **tags))
        photograph(root / label / "Frumious.png", len(label))
    (root / "defect" / "Y.dcm").write_bytes(b"\x08\0\0\0" + bytes(100))
    shutil.copy(root / "normal" / "Frumious.png", root / "normal" / "Brillig.png")
    return root


def test_no_planted_word_is_in_any_file_or_message_of_evaluate(labeled, tmp_path, printed, monkeypatch):
    out, key = labeled / "results of Zyxwel", tmp_path / "Toverley.csv"
    arguments = ["evaluate", "mrad_tf", "--dataset", "folder", "--dataset_dir", str(labeled), "--output_dir", str(out)]
    words = [*arguments, *SMALL, "--resamples", "20", "--progress", "False", "--key", str(key)]
    monkeypatch.setattr("sys.argv", ["/home/Zyxwel/bin/mrad-med", *words])
    assert main(words) == 1
    shutil.move(key, tmp_path / "first.csv")
    assert main(words) == 1
    found = {**printed(), **contents(out)}
    assert leaks(found) == []
    assert not names_of(found) & {*SHORT}
    record = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert record["command"] == (
        "mrad-med evaluate mrad_tf --dataset folder --dataset_dir HIDDEN --output_dir HIDDEN --image_size 70 "
        "--device cpu --resamples 20 --progress False --key HIDDEN"
    )
    with (out / "cases.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["case_id"]: row for row in csv.DictReader(stream)}
    assert len(rows) == 14
    assert {row["class"] for row in rows.values() if row["status"] == "ok"} == {"class_1"}
    (copy,) = (name for name in rows if name.endswith("_2"))
    assert rows[copy]["duplicate_of"] == copy.removesuffix("_2")
    with key.open(newline="", encoding="utf-8") as stream:
        origins = {row["case_id"]: row for row in csv.DictReader(stream)}
    assert origins.keys() == rows.keys()
    assert all(Path(row["path"]).is_file() for row in origins.values())
    assert {row["series_uid"] for row in origins.values()} == {"", *(f"1.3.{number}" for number in range(5))}


def test_evaluation_keeps_names_on_request_and_without_dicom(labeled, tmp_path, capsys):
    arguments = ["evaluate", "mrad_tf", "--dataset", "folder", "--dataset_dir", str(labeled), *SMALL]
    arguments += ["--resamples", "0", "--progress", "False", "--output_dir"]
    assert main([*arguments, str(tmp_path / "kept"), "--keep-identifiers"]) == 1
    assert "normal/Brillig" in (tmp_path / "kept" / "cases.csv").read_text(encoding="utf-8")
    for path in labeled.rglob("*.dcm"):
        path.unlink()
    assert main([*arguments, str(tmp_path / "photographs")]) == 0
    assert "normal/Brillig" in (tmp_path / "photographs" / "cases.csv").read_text(encoding="utf-8")
    assert "hidden" not in capsys.readouterr().out


def test_problems_of_a_labeled_set_with_dicom_are_stated_without_names(labeled, tmp_path, capfd):
    table = labeled / "Vorpalski.csv"
    table.write_text("image,label\nnormal/Toverley.dcm,0\nnormal/Frumious.png,0\n", encoding="utf-8")
    (labeled / "normal" / "x.dcm").write_bytes((labeled / "normal" / PLACES[0] / f"{PLACES[0]}.dcm").read_bytes())
    arguments = ["evaluate", "mrad_tf", "--dataset", "csv", "--dataset_dir", str(table), *SMALL, "--resamples", "0"]
    arguments += ["--progress", "False", "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--keep-identifiers"]) == 0
    texts = "".join(capfd.readouterr())
    assert "1 row(s) of" in texts
    assert "Vorpalski.csv name an image that does not exist" in texts
    assert "Toverley" in texts
    assert main(arguments) == 0
    texts = "".join(capfd.readouterr())
    message = "the dataset holds DICOM files and has a problem whose description names files; set keep_identifiers"
    assert texts.count(f"{message} (--keep-identifiers) to read it (1)") == 1
    assert "Toverley" not in texts
    assert "Vorpalski" not in texts
    assert main([*arguments, "--strict_dataset", "True"]) == 2
    assert message in capfd.readouterr().err
    table.write_text("name,label\nnormal/Toverley.dcm,0\n", encoding="utf-8")
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Vorpalski" not in error


# errors


def test_errors_of_a_run_with_dicom_hold_no_path(tmp_path):
    folder = tmp_path / "Olive, (Fingal)"
    write_series(folder, np.zeros((18, 22, 1)))
    out = tmp_path / "out of Olive"
    messages = {
        f"[Errno 13] Permission denied: '{folder}/it, \"s\".dcm' again": "[Errno 13] Permission denied: 'PATH' again",
        f"cannot write to {out} (No space left); free some": "cannot write to PATH (No space left); free some",
        f"no image in {folder}/Olive x; unpack": "no image in PATH",
        "nothing is wrong with a path": "nothing is wrong with a path",
    }
    for given, text in messages.items():
        shown = f"^{re.escape(text)}$"
        with pytest.raises(ValueError, match=shown), without_paths(folder, out, keep_identifiers=False):
            raise OSError(given)
        with pytest.raises(OSError, match=re.escape(given)), without_paths(folder, out, keep_identifiers=True):
            raise OSError(given)
        with pytest.raises(OSError, match=re.escape(given)), without_paths(out, folder, keep_identifiers=False):
            raise OSError(given)  # there is no DICOM file
    with pytest.raises(ValueError, match=r"^TypeError: of PATH$"), without_paths(folder, keep_identifiers=False):
        raise TypeError(f"of {folder}")
    with pytest.raises(FailedCasesError, match="2 failed"), without_paths(folder, keep_identifiers=False):
        raise FailedCasesError("2 failed")


def test_errors_of_run_hold_no_path_either(tmp_path, capsys):
    folder = tmp_path / "Olive, (Fingal)"
    write_series(folder, np.zeros((18, 22, 1)))
    out = tmp_path / "out of Olive"
    out.write_text("a file of this name")
    assert main(["run", "mrad_tf", "--dataset_dir", str(folder), "--output_dir", str(out), *SMALL]) == 2
    assert "Olive" not in capsys.readouterr().err
    with_names = ["--keep_identifiers", "True"]
    assert main(["run", "mrad_tf", "--dataset_dir", str(folder), "--output_dir", str(out), *SMALL, *with_names]) == 2
    assert "Olive" in capsys.readouterr().err
