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
from mrad_med.data.names import without_controls
from mrad_med.errors import OutputError
from mrad_med.files import atomic_path
from mrad_med.types import FailedCase

__all__ = [
    "Summary",
    "as_json",
    "benchmark_tables",
    "describe_command",
    "latex_tables",
    "markdown_summary",
    "write_summary",
]

Summary = Mapping[str, Any]

# Level and name of each metric, its title, and its key in the published results of MRAD-CLIP.
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
_IN_BENCHMARKS = ("image AUROC", "image AP", "pixel AUROC", "pixel AP", "PRO, exact", "PRO, 200 thresholds")
_HIDDEN = "HIDDEN"
_PROGRAMS = ("mrad-med", "mrad_med", "__main__.py")
_KNOWN = {"evaluate", "benchmark", "run", "mrad_tf", "mrad_ft", "mrad_clip", "folder", "csv", "datalist", "meta.json"}
_KNOWN |= {"True", "False", "None", "cpu", "cuda", "fp32", "fp16", "bf16", "train", "test", "embedded"}
_NUMBER = re.compile(r"-?\d{1,5}(\.\d*)?(e-?\d+)?|cuda:\d", re.ASCII)
_NOT_A_CONCLUSION = 30  # images; with fewer the page has a warning
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def write_summary(
    output_dir: Path, summary: Summary, rows: Sequence[Mapping[str, Any]], failures: Sequence[FailedCase]
) -> None:
    """Write ``cases.csv``, ``metrics.json`` and ``metrics.md``.

    Args:
        output_dir: existing folder.
        summary: summary of the evaluation.
        rows: row of each measured case, with ``case_id`` and any other columns.
        failures: cases that failed.

    Raises:
        OutputError: the disk is full, or the folder is missing.
    """
    failed = [{"case_id": item.case_id, "status": "failed", "reason": item.reason} for item in failures]
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
        f"# {markdown_cell(title)}: {summary.get('settings', {}).get('variant', 'MRAD')}",
        "",
        f"{count} images, {images['normal']} normal and {images['anomalous']} anomalous; maps compared at "
        f"{summary['compared_at']}; backbone {summary.get('backbone', {}).get('name', 'not stated')}.",
        "",
    ]
    if count < _NOT_A_CONCLUSION:
        lines += [f"**{count} images prove nothing**: these numbers show that the evaluation runs.", ""]
    lines += [_table_of_metrics(summary), "", *_notes(summary)]
    return "\n".join(lines).rstrip() + "\n"


def _table_of_metrics(summary: Summary) -> str:
    drawn = summary["intervals"].get("drawn")
    means, copies, published = (summary.get(name) for name in ("class_mean", "without_duplicates", "published"))
    columns: list[tuple[str, Callable[[str, str, str], str]]] = [
        ("all images", lambda level, name, _: _percent(summary, level, name))
    ]
    if drawn:
        columns.append(("95 % interval", lambda level, name, _: _interval(summary["intervals"], level, name)))
    if means:
        columns.append(("mean of classes", lambda level, name, _: _percent(means, level, name)))
    if copies:
        columns.append(("without repeated images", lambda level, name, _: _percent(copies, level, name)))
    if published:
        columns.append(
            ("MRAD-CLIP, published", lambda _, __, key: f"{published[key]:.1f}" if key in published else "-")
        )
    rows = [[title, *(cell(level, name, key) for _, cell in columns)] for level, name, title, key in METRICS]
    return _markdown(["metric", *(title for title, _ in columns)], rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column is aligned left, the others right, also in the text."""
    alignment = ("left", *["right"] * (len(header) - 1))
    cells = [[markdown_cell(cell) for cell in row] for row in rows]
    return tabulate(cells, [*map(markdown_cell, header)], tablefmt="pipe", disable_numparse=True, colalign=alignment)


def _notes(summary: Summary) -> list[str]:
    notes = []
    for level, title in (("image", "Image"), ("pixel", "Pixel"), ("lesion", "Lesion")):
        if "undefined" in summary[level]:
            notes.append(f"{title} metrics are undefined: {summary[level]['undefined'].split(': ', 1)[-1]}.")
    if "error_bound" in summary["pixel"]:
        bound = summary["pixel"]["error_bound"]
        notes.append(f"Pixel metrics are {f'within {bound:.1g} of the exact values' if bound else 'exact'}.")
    if summary["unknown_masks"]:
        notes.append(f"{summary['unknown_masks']} anomalous image(s) have no mask and count at image level only.")
    drawn = summary["intervals"].get("drawn")
    if drawn:
        method = summary["intervals"].get("image", {}).get("auroc", {}).get("method")
        others = f"; of the image AUROC by {method}" if method else ""
        notes.append(
            f"Intervals by bootstrap, drawn by {drawn['by']}, {drawn['resamples']} times, seed {drawn['seed']}{others}."
        )
    if summary.get("published"):
        notes.append(
            "Published: MRAD-CLIP with CLIP ViT-L/14@336 trained on industrial images; its PRO is the one by 200 "
            "thresholds, which changes when scores are rescaled."
        )
    if summary["failures"]:
        notes.append(f"{len(summary['failures'])} case(s) failed and are left out; see cases.csv.")
    return [line for note in notes for line in (note, "")]


def benchmark_tables(results: Mapping[str, Mapping[str, Summary]], *, metrics: Sequence[str] = _IN_BENCHMARKS) -> str:
    """Return a Markdown table for each metric, with a row per network, a column per set, and the mean of the sets.

    Args:
        results: summaries by name of the network, then by name of the set.
        metrics: titles of the metrics to show.
    """
    blocks = []
    for title, sets, rows in _tables(results, metrics):
        table = _markdown(["network", *sets, "mean"], [[name, *map(_number, values)] for name, values in rows])
        blocks.append(f"**{title}**\n\n{table}")
    return "\n\n".join(blocks) + "\n"


def latex_tables(results: Mapping[str, Mapping[str, Summary]], *, metrics: Sequence[str] = _IN_BENCHMARKS) -> str:
    """Return the tables of `benchmark_tables` in LaTeX, for the package booktabs.

    The best value of each column is bold.

    Args:
        results: summaries by name of the network, then by name of the set.
        metrics: titles of the metrics to show.
    """
    blocks = []
    for title, sets, rows in _tables(results, metrics):
        best = [
            max((round(values[column], 1) for _, values in rows if not math.isnan(values[column])), default=math.nan)
            for column in range(len(sets) + 1)
        ]
        numbers = [[_latex_number(*pair) for pair in zip(values, best, strict=True)] for _, values in rows]
        body = [" & ".join([_latex(name), *cells]) + r" \\" for (name, _), cells in zip(rows, numbers, strict=True)]
        blocks.append(
            "\n".join(
                [
                    f"% {title}, percent",
                    rf"\begin{{tabular}}{{l{'r' * (len(sets) + 1)}}}",
                    r"\toprule",
                    " & ".join(["network", *map(_latex, sets), "mean"]) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    return "\n\n".join(blocks) + "\n"


def _tables(
    results: Mapping[str, Mapping[str, Summary]], metrics: Sequence[str]
) -> list[tuple[str, list[str], list[tuple[str, list[float]]]]]:
    """Return title, sets and rows of each metric that is defined for any set.

    A row has the name of a network and its values in percent: one per set, then their mean. Undefined values are NaN.
    """
    sets = list(dict.fromkeys(name for summaries in results.values() for name in summaries))
    tables = []
    for level, name, title, _ in METRICS:
        if title not in metrics:
            continue
        rows = []
        for network, summaries in results.items():
            values = [_value(summaries.get(item), level, name) for item in sets]
            known = [value for value in values if not math.isnan(value)]
            # A mean over some of the sets could not be compared with a mean over all.
            rows.append((network, [*values, sum(known) / len(known) if len(known) == len(sets) else math.nan]))
        if any(not math.isnan(value) for _, values in rows for value in values):
            tables.append((title, sets, rows))
    return tables


def _value(summary: Summary | None, level: str, name: str) -> float:
    """Return a metric in percent, or NaN where undefined.

    For a set of several classes it is the mean over classes, as in the literature.
    """
    source = {} if summary is None else summary.get("class_mean") or summary
    value = source.get(level, {}).get(name)
    return math.nan if value is None else 100 * value


def _percent(source: Summary, level: str, name: str) -> str:
    value = source.get(level, {}).get(name)
    return "undefined" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _interval(intervals: Summary, level: str, name: str) -> str:
    interval = intervals.get(level, {}).get(name, {})
    return f"{100 * interval['low']:.2f} to {100 * interval['high']:.2f}" if "low" in interval else ""


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _latex(text: str) -> str:
    return without_controls(text).translate(_LATEX)


def _latex_number(value: float, best: float) -> str:
    text = _number(value)
    return rf"\textbf{{{text}}}" if round(value, 1) == best else text
