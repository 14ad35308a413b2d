"""Tables of evaluations: numbers worked by hand, in Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mrad_med.data.catalog import DATASETS, PUBLISHED_MEANS
from mrad_med.errors import OutputError
from mrad_med.evaluation.benchmark_tables import benchmark_tables, latex_tables
from mrad_med.evaluation.summary import as_json, describe_command, markdown_summary, write_summary
from mrad_med.types import FailedCase

NAN = float("nan")
PUBLISHED = "MRAD-CLIP, published"


def make_summary(**changed: Any) -> dict[str, Any]:
    """Return the summary of a set of 100 images, with round numbers."""
    return {
        "dataset": {"name": "own", "title": "Own set", "cases": 100},
        "compared_at": "518 x 518",
        "images": {"normal": 60, "anomalous": 40},
        "unknown_masks": 0,
        "image": {"auroc": 0.9, "ap": 0.85, "f1_max": 0.8},
        "pixel": {"auroc": 0.95, "ap": 0.5, "f1_max": 0.45, "pro": 0.75, "pro_200": 0.70125, "error_bound": 0.0},
        "lesion": {"froc": 0.25},
        "intervals": {},
        "published": {},
        "backbone": {"name": "ViT"},
        "settings": {"variant": "MRAD-TF"},
        "failures": [],
        **changed,
    }


def cells_of(page: list[str]) -> list[list[str]]:
    """Return the cells of the tables of a page, row by row, without the lines below headers."""
    rows = [line for line in page if line.startswith("|") and not line.startswith("|:")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_a_page_has_every_metric_in_percent():
    assert markdown_summary(make_summary()) == (
        "# Own set: MRAD-TF\n"
        "\n"
        "100 images, 60 normal and 40 anomalous; maps compared at 518 x 518; backbone ViT.\n"
        "\n"
        "| metric                 |   n |   all images |\n"
        "|:-----------------------|----:|-------------:|\n"
        "| image AUROC            | 100 |        90.00 |\n"
        "| image AP               | 100 |        85.00 |\n"
        "| image F1-max           | 100 |        80.00 |\n"
        "| pixel AUROC            | 100 |        95.00 |\n"
        "| pixel AP               | 100 |        50.00 |\n"
        "| pixel F1-max           | 100 |        45.00 |\n"
        "| PRO, exact             | 100 |        75.00 |\n"
        "| PRO, 200 thresholds    | 100 |        70.12 |\n"
        "| FROC, mean sensitivity | 100 |        25.00 |\n"
        "\n"
        "Pixel metrics are exact.\n"
    )


def test_columns_come_with_what_a_summary_has():
    page = markdown_summary(
        make_summary(
            intervals={
                "drawn": {"by": "patient", "resamples": 1000, "seed": 7},
                "image": {"auroc": {"low": 0.85, "high": 0.9312}, "ap": {"undefined": "too few"}},
                "pixel": {"undefined": "too few"},
            },
            class_mean={"image": {"auroc": 0.8}, "pixel": {"auroc": NAN}},
            without_duplicates={"image": {"auroc": 0.7}, "pixel": {"undefined": "no mask"}},
            published=dict(DATASETS["kvasir"].published_of("MRAD-CLIP")),
            settings={"variant": "MRAD-CLIP"},
        )
    ).splitlines()
    assert cells_of(page) == [
        [
            "metric",
            "n",
            "all images",
            "95 % interval",
            "mean of classes",
            "without repeated images",
            "MRAD-CLIP, published",
        ],
        ["image AUROC", "100", "90.00", "85.00 to 93.12", "80.00", "70.00", "-"],
        ["image AP", "100", "85.00", "-", "undefined", "undefined", "-"],
        ["image F1-max", "100", "80.00", "-", "undefined", "undefined", "-"],
        ["pixel AUROC", "100", "95.00", "-", "undefined", "undefined", "84.3"],
        ["pixel AP", "100", "50.00", "-", "undefined", "undefined", "-"],
        ["pixel F1-max", "100", "45.00", "-", "undefined", "undefined", "-"],
        ["PRO, exact", "100", "75.00", "-", "undefined", "undefined", "-"],
        ["PRO, 200 thresholds", "100", "70.12", "-", "undefined", "undefined", "52.7"],
        ["FROC, mean sensitivity", "100", "25.00", "-", "undefined", "undefined", "-"],
    ]
    assert (
        "Intervals by bootstrap, drawn by patient, 1000 times, seed 7. "
        "There is no interval for PRO by 200 thresholds and for FROC."
    ) in page
    assert any(line.startswith("Published: MRAD-CLIP with CLIP ViT-L/14@336") for line in page)


def test_the_method_of_the_image_auroc_is_named():
    intervals = {
        "drawn": {"by": "case", "resamples": 10, "seed": 0},
        "image": {"auroc": {"low": 0.8, "high": 1.0, "method": "DeLong"}},
    }
    page = markdown_summary(make_summary(intervals=intervals))
    assert "drawn by case, 10 times, seed 0; of the image AUROC by DeLong." in page


AUROC_INTERVAL = {"drawn": {"by": "case", "resamples": 10, "seed": 0}, "image": {"auroc": {"low": 0.55, "high": 0.932}}}


@pytest.mark.parametrize(
    ("normal", "anomalous", "warning"),
    [
        (15, 14, "**29 images prove nothing**"),
        (15, 15, ""),
        (9, 91, "**9 normal images prove nothing**"),
        (91, 9, "**9 anomalous images prove nothing**"),
        (10, 90, ""),
        (0, 100, ""),  # such sets have no image metrics
        (0, 29, "**29 images prove nothing**"),
    ],
)
def test_few_images_prove_nothing(normal: int, anomalous: int, warning: str):
    page = markdown_summary(make_summary(images={"normal": normal, "anomalous": anomalous}, intervals=AUROC_INTERVAL))
    assert ("prove nothing" in page) == bool(warning)
    if warning:
        assert (
            f"{warning}: these numbers only show that the evaluation runs. The 95 % interval of the image AUROC is "
            "38.2 percentage points wide, from 55.0 to 93.2."
        ) in page


def test_an_interval_of_no_width_is_not_shown_as_certainty():
    perfect = {"drawn": {"by": "case", "resamples": 10, "seed": 0}, "image": {"auroc": {"low": 1.0, "high": 1.0}}}
    few = {"normal": 3, "anomalous": 4}
    assert "is the single point 100.0, because so few images show no errors; other images can." in markdown_summary(
        make_summary(images=few, intervals=perfect)
    )
    assert "No 95 % interval is known." in markdown_summary(make_summary(images=few))


@pytest.mark.parametrize("variant", ["MRAD-TF", "MRAD-FT"])
def test_published_numbers_of_another_variant_are_not_shown(variant: str):
    dataset = DATASETS["kvasir"]
    assert dataset.published_of(variant) == {}
    assert dataset.published_of("MRAD-CLIP") == dataset.published
    page = markdown_summary(
        make_summary(
            settings={"variant": variant},
            published=dict(dataset.published_of(variant)),
            published_mean=dict(PUBLISHED_MEANS[variant]),
        )
    )
    assert "MRAD-CLIP" not in page
    assert "84.3" not in page
    mean = {
        "MRAD-TF": "pixel AUROC 85.5, PRO by 200 thresholds 64.6",
        "MRAD-FT": "pixel AUROC 91.9, PRO by 200 thresholds 78.3",
    }
    assert f"Results of {variant} on this set are not published." in page
    assert f"are: {mean[variant]}." in page


def test_each_class_has_a_row_with_its_number_of_images_and_intervals():
    few = make_summary(images={"normal": 4, "anomalous": 20}, image={"auroc": 0.8}, pixel={"undefined": "no mask"})
    page = markdown_summary(
        make_summary(
            classes={"bottle": make_summary(images={"normal": 50, "anomalous": 26}), "cable": few},
            class_mean={"image": {"auroc": 0.85}, "pixel": {"auroc": 0.95, "ap": 0.5, "pro": 0.75}},
            intervals={
                **AUROC_INTERVAL,
                "classes": {
                    "bottle": {
                        "image": {"auroc": {"low": 0.8, "high": 0.95}},
                        "pixel": {"pro": {"low": 0.7, "high": 0.8}},
                    },
                    "cable": {"image": {"auroc": {"undefined": "too few"}}},
                },
                "class_mean": {"image": {"auroc": {"low": 0.75, "high": 0.9}}},
            },
        )
    )
    rows = cells_of(page.splitlines())
    start = next(number for number, row in enumerate(rows) if row[0] == "class")
    interval = "(95 % interval)"
    assert rows[start:] == [
        [
            "class",
            "n",
            "normal",
            *(f"{name} {interval}" for name in ("image AUROC", "pixel AUROC", "pixel AP", "PRO, exact")),
        ],
        ["bottle", "76", "50", "90.00 (80.00 to 95.00)", "95.00", "50.00", "75.00 (70.00 to 80.00)"],
        ["cable", "24", "4", "80.00", "undefined", "undefined", "undefined"],
        ["mean of classes", "100", "60", "85.00 (75.00 to 90.00)", "95.00", "50.00", "75.00"],
    ]
    assert "These classes have too few images to prove anything (under 30, or under 10 of a label): cable." in page


def test_images_with_nothing_to_score_are_counted_and_named():
    blank = [{"case_id": f"case {number}"} for number in range(7)]
    page = markdown_summary(make_summary(nothing_to_score=blank[:2]))
    assert "2 image(s) have nothing to score (one value in all pixels) and are left out: case 0, case 1." in page
    page = markdown_summary(make_summary(nothing_to_score=blank))
    assert "left out: case 0, case 1, case 2, case 3, case 4 and 2 more, see cases.csv." in page


def test_notes_say_what_is_undefined_unknown_or_lost():
    page = markdown_summary(
        make_summary(
            image={"undefined": "image metrics are undefined: 0 of 40 images are anomalous"},
            pixel={"undefined": "no mask"},
            unknown_masks=3,
            failures=[{"case_id": "a", "reason": "empty"}],
        )
    )
    assert "Image metrics are undefined: 0 of 40 images are anomalous.\n" in page
    assert "Pixel metrics are undefined: no mask.\n" in page
    assert ["image AUROC", "100", "undefined"] in cells_of(page.splitlines())
    assert "3 anomalous image(s) have no mask and count at image level only." in page
    assert "1 case(s) failed and are left out; see cases.csv." in page
    assert "exact values" not in page
    assert "are exact" not in page


def test_a_bound_that_was_not_kept_is_stated():
    pixel = {**make_summary()["pixel"], "error_bound": 0.00034}
    assert (
        "Pixel AUROC, AP, F1-max, sensitivities and exact PRO are within 0.0003 of the exact values. "
        "This bound does not cover PRO by 200 thresholds."
    ) in markdown_summary(make_summary(pixel=pixel))


# several networks and sets


@pytest.fixture
def results() -> dict[str, dict[str, dict[str, Any]]]:
    """Return two networks; the second lacks the second set."""
    with_classes = make_summary(
        class_mean={"image": {"auroc": 0.6}},
        intervals={**AUROC_INTERVAL, "class_mean": {"image": {"auroc": {"low": 0.551, "high": 0.649}}}},
    )
    return {
        "mrad_tf": {"set_1": make_summary(intervals=AUROC_INTERVAL), "50% & more": with_classes},
        "mrad_ft": {"set_1": make_summary(image={"auroc": 0.9004}, images={"normal": 60, "anomalous": 39})},
    }


def test_a_benchmark_has_a_table_for_each_metric(results: dict):
    assert benchmark_tables(results, metrics=["image AUROC", "image AP"]) == (
        "**image AUROC**\n"
        "\n"
        "| network   |   set_1, n = 99 to 100 |   50% & more, n = 100 |   mean |\n"
        "|:----------|-----------------------:|----------------------:|-------:|\n"
        "| mrad_tf   |    90.0 (55.0 to 93.2) |   60.0 (55.1 to 64.9) |   75.0 |\n"
        "| mrad_ft   |                   90.0 |                     - |      - |\n"
        "\n"
        "**image AP**\n"
        "\n"
        "| network   |   set_1, n = 99 to 100 |   50% & more, n = 100 |   mean |\n"
        "|:----------|-----------------------:|----------------------:|-------:|\n"
        "| mrad_tf   |                   85.0 |                     - |      - |\n"
        "| mrad_ft   |                      - |                     - |      - |\n"
    )


def test_tables_of_few_images_say_how_wide_the_widest_interval_is():
    images = {"normal": 4, "anomalous": 4}
    wider = {"image": {"auroc": {"low": 0.3, "high": 0.9}}}
    results = {
        "a": {"small": make_summary(images=images, intervals=AUROC_INTERVAL)},
        "b": {"small": make_summary(images=images, intervals=wider)},
    }
    warning = "8 images prove nothing"
    width = "The widest 95 % interval is 60.0 percentage points wide, from 30.0 to 90.0."
    assert f"\n\nsmall: **{warning}**. {width}\n" in benchmark_tables(results, metrics=["image AUROC"])
    row = rf"\multicolumn{{3}}{{l}}{{\footnotesize small: {warning}. {width.replace('%', chr(92) + '%')}}} \\"
    assert row in latex_tables(results, metrics=["image AUROC"]).splitlines()
    assert f"small: **{warning}**. No 95 % interval is known." in benchmark_tables(results, metrics=["image AP"])


def test_pixel_metrics_count_images_with_a_known_mask():
    summary = make_summary(unknown_masks=30)
    assert "n = 70 " in benchmark_tables({"a": {"set": summary}}, metrics=["pixel AUROC"])
    assert ["pixel AUROC", "70", "95.00"] in cells_of(markdown_summary(summary).splitlines())
    assert ["image AUROC", "100", "90.00"] in cells_of(markdown_summary(summary).splitlines())


def test_metrics_that_no_set_defines_have_no_table():
    undefined = make_summary(pixel={"undefined": "no mask"})
    assert "pixel" not in benchmark_tables({"mrad_tf": {"headct": undefined}})
    assert (
        benchmark_tables({"mrad_tf": {"headct": make_summary(image={"auroc": None})}}, metrics=["image AUROC"]) == "\n"
    )


def test_latex_is_escaped_and_the_best_of_each_column_is_bold(results: dict):
    results["x~1^2\\"] = {"set_1": make_summary(image={"auroc": 0.8}), "50% & more": make_summary(image={"auroc": 0.7})}
    assert latex_tables(results, metrics=["image AUROC"]) == (
        "% image AUROC, percent, with 95 % intervals\n"
        "\\begin{tabular}{lrrr}\n"
        "\\toprule\n"
        "network & set\\_1, $n = 99 to 100$ & 50\\% \\& more, $n = 100$ & mean \\\\\n"
        "\\midrule\n"
        "mrad\\_tf & \\textbf{90.0} {\\scriptsize (55.0 to 93.2)} & 60.0 {\\scriptsize (55.1 to 64.9)} & "
        "\\textbf{75.0} \\\\\n"
        "mrad\\_ft & \\textbf{90.0} & - & - \\\\\n"
        "x\\textasciitilde{}1\\textasciicircum{}2\\textbackslash{} & 80.0 & \\textbf{70.0} & \\textbf{75.0} \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


# files


def test_files_hold_cases_and_metrics(tmp_path: Path):
    rows = [{"case_id": "b", "label": 1, "duplicate_of": "a"}, {"case_id": "a", "label": 0, "duplicate_of": ""}]
    summary = make_summary(pixel={"auroc": 0.9, "pro_200": NAN, "error_bound": 0.0})
    write_summary(tmp_path, summary, rows, [FailedCase("c, d", 'the "file" is empty')])
    with (tmp_path / "cases.csv").open(newline="", encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    assert read == [
        {"case_id": "a", "status": "ok", "label": "0", "duplicate_of": "", "reason": ""},
        {"case_id": "b", "status": "ok", "label": "1", "duplicate_of": "a", "reason": ""},
        {"case_id": "c, d", "status": "failed", "label": "", "duplicate_of": "", "reason": 'the "file" is empty'},
    ]
    written = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == {**summary, "pixel": {"auroc": 0.9, "pro_200": None, "error_bound": 0.0}}
    assert (tmp_path / "metrics.md").read_text(encoding="utf-8") == markdown_summary(written)
    assert {path.name for path in tmp_path.iterdir()} == {"cases.csv", "metrics.json", "metrics.md"}


def test_where_all_failed_the_table_says_why(tmp_path: Path):
    write_summary(tmp_path, make_summary(), [], [FailedCase("a", "empty")])
    assert (tmp_path / "cases.csv").read_text(encoding="utf-8").splitlines() == [
        "case_id,status,reason",
        "a,failed,empty",
    ]


def test_cells_of_a_spreadsheet_are_no_formulas_and_not_reversed(tmp_path: Path):
    row = {"class": "=1+1", "patient": "-P", "anomaly_score": -0.5, "duplicate_of": "a\u202eb", "case_id": "x\ny"}
    write_summary(tmp_path, make_summary(), [row], [FailedCase("@b", "+c")])
    with (tmp_path / "cases.csv").open(newline="", encoding="utf-8") as stream:
        done, failed = csv.DictReader(stream)
    assert [done[name] for name in row] == ["'=1+1", "'-P", "-0.5", "a_b", "x_y"]
    assert (failed["case_id"], failed["reason"]) == ("'@b", "'+c")


def test_no_name_ends_a_cell_of_markdown_or_a_line(results: dict):
    named = {"a|b\nc<i>": results[next(iter(results))]}
    table = benchmark_tables(named)
    assert table.splitlines()[4].startswith("| a\\|b_c&lt;i> ")
    assert r"a|b\_c<i> & " in latex_tables(named)
    page = markdown_summary(make_summary(dataset={"name": "x", "title": "x\n# y|z", "cases": 3}))
    assert page.startswith("# x_# y\\|z: ")


@pytest.mark.parametrize("with_paths", [True, False])
def test_command_has_its_paths_only_if_they_may_be_shown(with_paths: bool):
    words = ["/home/olive/bin/mrad-med", "evaluate", "mrad_tf", "--dataset_dir", "olive", "--output_dir=/x/olive"]
    words += ["--dataset", "csv", "--resamples", "20", "--smooth", "1e-3", "--memory_bank", "olive.pt", "73519842"]
    hidden = "--dataset_dir HIDDEN --output_dir=HIDDEN --dataset csv --resamples 20 --smooth 1e-3 --memory_bank HIDDEN"
    assert describe_command(words, with_paths=with_paths) == (
        " ".join(["mrad-med", *words[1:]]) if with_paths else f"mrad-med evaluate mrad_tf {hidden} HIDDEN"
    )
    assert describe_command(["/x/olive.py", "1"], with_paths=False) == "HIDDEN 1"


def test_json_has_no_nan_at_any_depth():
    values = {"a": [NAN, (float("inf"), 1.5)], "b": {"c": NAN, "d": "NaN"}}
    assert json.loads(as_json(values)) == {"a": [None, [None, 1.5]], "b": {"c": None, "d": "NaN"}}


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fill_the_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OutputError, match=r"cannot write the metrics to .*No space left"):
        write_summary(tmp_path, make_summary(), [{"case_id": "a"}], [])
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]
