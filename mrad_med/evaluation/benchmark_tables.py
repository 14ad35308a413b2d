"""Tables of several networks on several sets, in Markdown and LaTeX, with numbers of images and intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mrad_med.data.names import without_controls
from mrad_med.evaluation.caution import images_of, warn_of_few, width_of_interval
from mrad_med.evaluation.summary import METRICS, Summary, markdown_table

__all__ = ["benchmark_tables", "latex_tables"]

_IN_BENCHMARKS = ("image AUROC", "image AP", "pixel AUROC", "pixel AP", "PRO, exact", "PRO, 200 thresholds")
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)

Results = Mapping[str, Mapping[str, Summary]]


class _Cell(NamedTuple):
    """A value and its interval in percent; NaN where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def text(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:.1f}"

    @property
    def interval(self) -> str:
        return "" if math.isnan(self.low) else f"{self.low:.1f} to {self.high:.1f}"


class _Table(NamedTuple):
    """Values of one metric: rows have the name of a network and a cell per set, then their mean."""

    title: str
    sets: list[str]
    counts: list[str]
    rows: list[tuple[str, list[_Cell]]]
    warnings: list[str]


def benchmark_tables(results: Results, *, metrics: Sequence[str] = _IN_BENCHMARKS) -> str:
    """Return a Markdown table for each metric, with a row per network, a column per set, and the mean of the sets.

    Headers have the number of images of each set, and cells the 95 % interval. Warnings about few images follow.

    Args:
        results: summaries by name of the network, then by name of the set.
        metrics: titles of the metrics to show.
    """
    blocks = []
    for table in _tables(results, metrics):
        header = [f"{name}, n = {count}" for name, count in zip(table.sets, table.counts, strict=True)]
        rows = [
            [name, *(f"{cell.text} ({cell.interval})" if cell.interval else cell.text for cell in cells)]
            for name, cells in table.rows
        ]
        parts = [f"**{table.title}**", markdown_table(["network", *header, "mean"], rows), *table.warnings]
        blocks.append("\n\n".join(parts))
    return "\n\n".join(blocks) + "\n"


def latex_tables(results: Results, *, metrics: Sequence[str] = _IN_BENCHMARKS) -> str:
    """Return the tables of `benchmark_tables` in LaTeX, for the package booktabs.

    The best value of each column is bold.

    Args:
        results: summaries by name of the network, then by name of the set.
        metrics: titles of the metrics to show.
    """
    return "\n\n".join(map(_latex_table, _tables(results, metrics))) + "\n"


def _latex_table(table: _Table) -> str:
    columns = len(table.sets) + 1
    best = [
        max((round(cells[index].value, 1) for _, cells in table.rows if cells[index].text != "-"), default=math.nan)
        for index in range(columns)
    ]
    body = [
        " & ".join([_latex(name), *(_latex_cell(*pair) for pair in zip(cells, best, strict=True))]) + r" \\"
        for name, cells in table.rows
    ]
    header = [f"{_latex(name)}, $n = {count}$" for name, count in zip(table.sets, table.counts, strict=True)]
    notes = [
        rf"\multicolumn{{{columns + 1}}}{{l}}{{\footnotesize {_latex(text.replace('**', ''))}}} \\"
        for text in table.warnings
    ]
    return "\n".join(
        [
            f"% {table.title}, percent, with 95 % intervals",
            rf"\begin{{tabular}}{{l{'r' * columns}}}",
            r"\toprule",
            " & ".join(["network", *header, "mean"]) + r" \\",
            r"\midrule",
            *body,
            *([r"\midrule", *notes] if notes else []),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex(text: str) -> str:
    return without_controls(text).translate(_LATEX)


def _latex_cell(cell: _Cell, best: float) -> str:
    text = rf"\textbf{{{cell.text}}}" if round(cell.value, 1) == best else cell.text
    return rf"{text} {{\scriptsize ({cell.interval})}}" if cell.interval else text


def _tables(results: Results, metrics: Sequence[str]) -> list[_Table]:
    """Return the table of each metric that is defined for any set."""
    sets = list(dict.fromkeys(name for summaries in results.values() for name in summaries))
    tables = []
    for level, name, title, _ in METRICS:
        if title not in metrics:
            continue
        rows = []
        for network, summaries in results.items():
            cells = [_cell(summaries.get(item), level, name) for item in sets]
            known = [cell.value for cell in cells if not math.isnan(cell.value)]
            # A mean over some of the sets could not be compared with a mean over all.
            rows.append((network, [*cells, _Cell(sum(known) / len(known) if len(known) == len(sets) else math.nan)]))
        if any(not math.isnan(cell.value) for _, cells in rows for cell in cells):
            counts = [_count(results, item, level) for item in sets]
            warnings = [text for item in sets if (text := _warning(results, item, level, name))]
            tables.append(_Table(title, sets, counts, rows, warnings))
    return tables


def _cell(summary: Summary | None, level: str, name: str) -> _Cell:
    """Return a metric and its interval.

    For a set of several classes it is the mean over classes, as in the literature.
    """
    if summary is None:
        return _Cell(math.nan)
    means, intervals = summary.get("class_mean"), summary["intervals"]
    value = (means or summary).get(level, {}).get(name)
    if value is None or math.isnan(value):
        return _Cell(math.nan)
    interval = (intervals.get("class_mean", {}) if means else intervals).get(level, {}).get(name, {})
    return _Cell(100 * value, *(100 * interval.get(end, math.nan) for end in ("low", "high")))


def _count(results: Results, dataset: str, level: str) -> str:
    """Return the number of images of a set; a range if networks were measured on different numbers."""
    counts = {images_of(summaries[dataset], level) for summaries in results.values() if dataset in summaries}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _warning(results: Results, dataset: str, level: str, name: str) -> str:
    """Return a warning if a set has few images, with the widest interval of the networks; else an empty text."""
    summaries = [items[dataset] for items in results.values() if dataset in items]
    few = next((found for item in summaries if (found := warn_of_few(item, {}))), None)
    if few is None:
        return ""
    cells = [_cell(item, level, name) for item in summaries]
    known = [cell for cell in cells if cell.interval]
    if not known:
        return f"{dataset}: {few[0]}. No 95 % interval is known."
    widest = max(known, key=lambda cell: cell.high - cell.low)
    return f"{dataset}: {few[0]}. The widest 95 % interval is {_width(widest)}."


def _width(cell: _Cell) -> str:
    return width_of_interval({"low": cell.low / 100, "high": cell.high / 100})
