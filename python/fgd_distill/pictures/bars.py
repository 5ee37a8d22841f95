"""AP by object size as bars, from a training's validation or from a table of the demo."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..csv_files import read_csv
from ..errors import FGDValueError
from .curves import EVENTS, metrics_file, read_metrics
from .style import COLOURS, check_png, labelled, save, tidy

# COCO's sizes count an object's area in pixels of the image.
GROUPS = {
    "AP": "all sizes",
    "AP_small": "small\nbelow 32² px",
    "AP_medium": "medium",
    "AP_large": "large\nabove 96² px",
}
Scores = dict[str, list[float]]  # by metric, one number a seed


def plot_ap(
    results: str | list[str] | dict[str, str], methods: list[str] | None = None, output: str = "ap_by_size.png"
) -> None:
    """Draws AP over all objects and by object size as bars, one colour a method, as a PNG.

    A bar's height is the mean over the seeds; the thin line over it spans their range.

    Args:
        results: CSV files: of the demo or the ablations, with one row a setting and seed, or a training's
            metrics.csv (or a folder that holds one, or TensorBoard's files), whose last validation counts and whose
            label names it. More than one as '[a, b]', or with labels as '{alone: runs/a, with FGD: runs/b}'.
        methods: which of the methods to show, in this order; all by default.
        output: the PNG file to write.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file without validation results, or a method that none has.
    """
    check_png(output)
    scores: dict[str, Scores] = {}
    for label, path in labelled(results, "results").items():
        scores |= read_ap(path, label)
    if methods is not None:
        unknown = [method for method in methods if method not in scores]
        if unknown or not methods:
            raise FGDValueError(f"methods: expected some of {list(scores)}, got {methods}")
        scores = {method: scores[method] for method in methods}
    save(draw_ap(scores), output)


def draw_ap(scores: Mapping[str, Scores]) -> Figure:
    """Grouped bars: a group for all sizes and for each size, in it a bar for each method.

    Args:
        scores: by method, the metrics named in ``GROUPS`` in percent, a number for each seed; nan where the data has
            no such object.
    """
    figure = Figure(figsize=(8.2, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(scores)
    for index, (method, metrics) in enumerate(scores.items()):
        for group, name in enumerate(GROUPS):
            values = [value for value in metrics.get(name, []) if math.isfinite(value)]
            x = group + (index - (len(scores) - 1) / 2) * width
            _draw_bar(axes, x, width, values, index, method if group == 0 else None)
    axes.set_xticks(range(len(GROUPS)), GROUPS.values(), fontsize=9)
    axes.set_ylabel("COCO box AP, percent", fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    tidy(axes)
    axes.grid(False, axis="x")
    figure.legend(loc="outside upper center", ncols=min(len(scores), 4), fontsize=9, frameon=False)
    return figure


def _draw_bar(axes: Axes, x: float, width: float, values: Sequence[float], index: int, label: str | None) -> None:
    mean = statistics.mean(values) if values else 0.0
    hatch = "//" if index >= len(COLOURS) else None
    axes.bar(x, mean, 0.92 * width, color=COLOURS[index % len(COLOURS)], hatch=hatch, edgecolor="white", label=label)
    top = max(values, default=0.0)
    if len(values) > 1:
        axes.plot([x, x], [min(values), top], color="black", linewidth=1)
    text = f"{mean:.1f}" if values else "none"
    axes.annotate(text, (x, top), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=6.5)


def read_ap(path: Path, label: str) -> dict[str, Scores]:
    """The scores in one file, by method.

    Args:
        path: a table with a column ``setting``, or a metrics.csv or a folder that holds one.
        label: names the method of a metrics.csv.

    Raises:
        FileNotFoundError, ValueError: as for ``plot_ap``.
    """
    if path.is_file() and not path.name.startswith(EVENTS):
        _, rows = read_csv(path, "results of the demo or the ablations, or a metrics.csv", numbers=GROUPS, growing=True)
        if rows and "setting" in rows[0]:
            return _of_table(path, rows)
    metrics = read_metrics(metrics_file(path))
    last = {name: [metrics[f"val/{name}"][1][-1]] for name in GROUPS if f"val/{name}" in metrics}
    if "AP" not in last:
        raise FGDValueError(f"{path}: expected a validation's val/AP, found {list(metrics)}")
    return {label: last}


def _of_table(path: Path, rows: list[dict[str, str]]) -> dict[str, Scores]:
    missing = [name for name in GROUPS if name not in rows[0]]
    if missing:
        raise FGDValueError(f"{path}: expected the columns {list(GROUPS)}, missing are {missing}")
    scores: dict[str, Scores] = {}
    for row in rows:
        of_method = scores.setdefault(row["setting"], {name: [] for name in GROUPS})
        for name in GROUPS:
            of_method[name].append(float(row[name] or "nan"))
    return scores
