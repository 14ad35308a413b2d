"""Files and tables of the metrics of evaluations, in CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mrad_med.data.catalog import DATASETS
from mrad_med.data.cells import markdown_cell, write_csv
from mrad_med.errors import OutputError
from mrad_med.evaluation.caution import images_of, warn_of_few
from mrad_med.files import atomic_path
from mrad_med.types import FailedCase

__all__ = [
    "METRICS",
    "Summary",
    "as_json",
    "describe_command",
    "markdown_summary",
    "markdown_table",
    "write_summary",
]

Summary = Mapping[str, Any]

# Level and name of each metric, its title, and its key in published results (`PublicDataset.published`).
METRICS = (
    ("image", "auroc", "image AUROC", "image_auroc"),
    ("image", "ap", "image AP", "image_ap"),
    ("image", "f1_max", "image F1-max", ""),
    ("pixel", "auroc", "pixel AUROC", "pixel_auroc"),
    ("pixel", "ap", "pixel AP", ""),
    ("pixel", "f1_max", "pixel F1-max", ""),
    ("pixel", "pro", "PRO, exact", ""),
    ("pixel", "pro_200", "PRO, 200 thresholds", "pixel_pro"),
    ("lesion", "froc", "FROC, mean sensitivity", ""),
)
_OF_CLASSES = ("image AUROC", "pixel AUROC", "pixel AP", "PRO, exact")  # in the table of classes
_NAMED = 5  # cases that a note names; cases.csv has all
_HIDDEN = "HIDDEN"
_PROGRAMS = ("mrad-med", "mrad_med", "__main__.py")
_KNOWN = {"evaluate", "benchmark", "run", "mrad_tf", "mrad_ft", "mrad_clip", "folder", "csv", "datalist", "meta.json"}
_KNOWN |= {"True", "False", "None", "cpu", "cuda", "fp32", "fp16", "bf16", "train", "test", "embedded"}
_NUMBER = re.compile(r"-?\d{1,5}(\.\d*)?(e-?\d+)?|cuda:\d", re.ASCII)


def write_summary(
    output_dir: Path, summary: Summary, rows: Sequence[Mapping[str, Any]], failures: Sequence[FailedCase]
) -> None:
    """Write ``cases.csv``, ``metrics.json`` and ``metrics.md``.

    Args:
        output_dir: existing folder.
        summary: summary of the evaluation.
        rows: row of each measured case, with ``case_id`` and any other columns.
        failures: cases without a score: those that failed, and those with nothing to score.

    Raises:
        OutputError: the disk is full, or the folder is missing.
    """
    failed = [{"case_id": item.case_id, "status": item.status, "reason": item.reason} for item in failures]
    done = [{"case_id": row["case_id"], "status": "ok", **row} for row in sorted(rows, key=lambda row: row["case_id"])]
    columns = [*(done or failed)[0], *(["reason"] if done else [])]
    try:
        write_csv(output_dir / "cases.csv", columns, [*done, *failed])
        for name, text in (
            ("metrics.json", as_json(summary)),
            ("metrics.md", markdown_summary(summary)),
        ):
            with atomic_path(output_dir / name) as partial:
                partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the metrics to {output_dir}: {error}") from error


def describe_command(words: Sequence[str], *, with_paths: bool) -> str:
    """Return a command as one line.

    Args:
        words: words of the command; the first is the path of the program, of which the name is shown.
        with_paths: whether all words are shown. If False, words that may be paths or names are ``HIDDEN``: all but
            options, numbers, and values that the program knows.
    """
    program = Path(words[0]).name
    if with_paths:
        return shlex.join([program, *words[1:]])
    shown = [*map(_without_path, words[1:])]
    return shlex.join([program if program in _PROGRAMS else _HIDDEN, *shown])


def _without_path(word: str) -> str:
    if word.startswith("--"):
        option, equals, value = word.partition("=")
        return f"{option}{equals}{_without_path(value)}" if equals else word
    known = word in _KNOWN or word.lower().replace("_", "-") in DATASETS or _NUMBER.fullmatch(word)
    return word if known else _HIDDEN


def as_json(values: Any) -> str:
    """Return one or more summaries as JSON; NaN and infinite values become null."""
    return json.dumps(_without_nan(values), indent=2, default=str, allow_nan=False) + "\n"


def _without_nan(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _without_nan(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def markdown_summary(summary: Summary) -> str:
    """Return the summary of one set as a Markdown page with a table in percent."""
    images, title = summary["images"], summary["dataset"]["title"] or "Evaluation"
    count = images["normal"] + images["anomalous"]
    lines = [
        f"# {markdown_cell(title)}: {_variant(summary)}",
        "",
        f"{count} images, {images['normal']} normal and {images['anomalous']} anomalous; maps compared at "
        f"{summary['compared_at']}; backbone {summary.get('backbone', {}).get('name', 'not stated')}.",
        "",
    ]
    if warning := warn_of_few(summary, summary["intervals"]):
        lines += [f"{warning[0]}: these numbers only show that the evaluation runs. {warning[1]}", ""]
    lines += [_table_of_metrics(summary), ""]
    if summary.get("classes"):
        lines += [_table_of_classes(summary), "", *_notes_on_classes(summary)]
    lines += _notes(summary)
    return "\n".join(lines).rstrip() + "\n"


def _table_of_metrics(summary: Summary) -> str:
    drawn = summary["intervals"].get("drawn")
    means, copies, published = (summary.get(name) for name in ("class_mean", "without_duplicates", "published"))
    columns: list[tuple[str, Callable[[str, str, str], str]]] = [
        ("n", lambda level, _, __: str(images_of(summary, level))),
        ("all images", lambda level, name, _: _percent(summary, level, name)),
    ]
    if drawn:
        columns.append(("95 % interval", lambda level, name, _: _interval(summary["intervals"], level, name)))
    if means:
        columns.append(("mean of classes", lambda level, name, _: _percent(means, level, name)))
    if copies:
        columns.append(("without repeated images", lambda level, name, _: _percent(copies, level, name)))
    if published:
        columns.append(
            (f"{_variant(summary)}, published", lambda _, __, key: f"{published[key]:.1f}" if key in published else "-")
        )
    rows = [[title, *(cell(level, name, key) for _, cell in columns)] for level, name, title, key in METRICS]
    return markdown_table(["metric", *(title for title, _ in columns)], rows)


def _table_of_classes(summary: Summary) -> str:
    """Return a table with a row per class, and their mean; each value with its interval."""
    chosen = [(level, name, title) for level, name, title, _ in METRICS if title in _OF_CLASSES]
    drawn = summary["intervals"]
    rows = []
    for title, values in summary["classes"].items():
        intervals, images = drawn.get("classes", {}).get(title, {}), values["images"]
        cells = [_with_interval(values, intervals, level, name) for level, name, _ in chosen]
        rows.append([title or "(no class)", str(images_of(values)), str(images["normal"]), *cells])
    means = summary.get("class_mean", {})
    cells = [_with_interval(means, drawn.get("class_mean", {}), level, name) for level, name, _ in chosen]
    rows.append(["mean of classes", str(images_of(summary)), str(summary["images"]["normal"]), *cells])
    interval = " (95 % interval)" if drawn.get("drawn") else ""
    return markdown_table(["class", "n", "normal", *(f"{title}{interval}" for _, _, title in chosen)], rows)


def _with_interval(source: Summary, intervals: Summary, level: str, name: str) -> str:
    interval = _interval(intervals, level, name)
    return _percent(source, level, name) + (f" ({interval})" if interval != "-" else "")


def _notes_on_classes(summary: Summary) -> list[str]:
    few = [title or "(no class)" for title, values in summary["classes"].items() if warn_of_few(values, {})]
    note = "These classes have too few images to prove anything (under 30, or under 10 of a label)"
    return [f"{note}: {', '.join(few)}.", ""] if few else []


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column is aligned left, the others right, also in the text."""
    alignment = ("left", *["right"] * (len(header) - 1))
    cells = [[markdown_cell(cell) for cell in row] for row in rows]
    return tabulate(cells, [*map(markdown_cell, header)], tablefmt="pipe", disable_numparse=True, colalign=alignment)


def _variant(summary: Summary) -> str:
    return str(summary.get("settings", {}).get("variant", "MRAD"))


def _notes(summary: Summary) -> list[str]:
    notes = []
    for level, title in (("image", "Image"), ("pixel", "Pixel"), ("lesion", "Lesion")):
        if "undefined" in summary[level]:
            notes.append(f"{title} metrics are undefined: {summary[level]['undefined'].split(': ', 1)[-1]}.")
    if "error_bound" in summary["pixel"]:
        bound = summary["pixel"]["error_bound"]
        within = (
            f"Pixel AUROC, AP, F1-max, sensitivities and exact PRO are within {bound:.1g} of the exact values. "
            "This bound does not cover PRO by 200 thresholds."
        )
        notes.append(within if bound else "Pixel metrics are exact.")
    if summary["unknown_masks"]:
        notes.append(f"{summary['unknown_masks']} anomalous image(s) have no mask and count at image level only.")
    drawn = summary["intervals"].get("drawn")
    if drawn:
        method = summary["intervals"].get("image", {}).get("auroc", {}).get("method")
        others = f"; of the image AUROC by {method}" if method else ""
        notes.append(
            f"Intervals by bootstrap, drawn by {drawn['by']}, {drawn['resamples']} times, seed {drawn['seed']}{others}."
            " There is no interval for PRO by 200 thresholds and for FROC."
        )
    if summary.get("published"):
        notes.append(
            f"Published: {_variant(summary)} with CLIP ViT-L/14@336 trained on industrial images; its PRO is the one "
            "by 200 thresholds, which changes when scores are rescaled."
        )
    elif mean := summary.get("published_mean"):
        notes.append(
            f"Results of {_variant(summary)} on this set are not published. Its published means over all sets of the "
            f"paper are: pixel AUROC {mean['pixel_auroc']:.1f}, PRO by 200 thresholds {mean['pixel_pro']:.1f}."
        )
    notes += _notes_on_lost_cases(summary)
    return [line for note in notes for line in (note, "")]


def _notes_on_lost_cases(summary: Summary) -> list[str]:
    notes = []
    if blank := [item["case_id"] for item in summary.get("nothing_to_score", ())]:
        others = f" and {len(blank) - _NAMED} more, see cases.csv" if len(blank) > _NAMED else ""
        notes.append(
            f"{len(blank)} image(s) have nothing to score (one value in all pixels) and are left out: "
            f"{', '.join(blank[:_NAMED])}{others}."
        )
    if summary["failures"]:
        notes.append(f"{len(summary['failures'])} case(s) failed and are left out; see cases.csv.")
    return notes


def _percent(source: Summary, level: str, name: str) -> str:
    value = source.get(level, {}).get(name)
    return "undefined" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _interval(intervals: Summary, level: str, name: str) -> str:
    interval = intervals.get(level, {}).get(name, {})
    return f"{100 * interval['low']:.2f} to {100 * interval['high']:.2f}" if "low" in interval else "-"
