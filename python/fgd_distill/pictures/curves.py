"""Training curves from what Lightning's loggers write: CSV files, or TensorBoard's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..csv_files import read_csv
from ..errors import FGDFileNotFoundError, FGDValueError
from .style import check_png, labelled, save, style_of, tidy

Series = tuple[list[int], list[float]]  # steps and values
TERMS = ("loss", "train/loss*", "train/*", "val/AP")
COLUMNS = 3
EVENTS = "events.out.tfevents"  # how the names of TensorBoard's files begin


def plot_training(
    runs: str | list[str] | dict[str, str],
    terms: list[str] | None = None,
    smoothing: float = 0.04,
    output: str = "training.png",
) -> None:
    """Draws the curves of each loss term over the training steps, several runs in one picture, as a PNG.

    Args:
        runs: a run's metrics.csv, or a folder that holds one or TensorBoard's files (of several runs, the newest
            counts); more than one as '[runs/a, runs/b]', or with labels as '{alone: runs/a, with FGD: runs/b}'.
        terms: which columns of the file, by name or pattern such as 'train/loss_fgd*'; by default the total, every
            loss of the training, and the AP of the validations.
        smoothing: from 0, none, to 1: over which share of a curve its values are averaged. The raw values stay
            visible, pale.
        output: the PNG file to write.

    Raises:
        FileNotFoundError: there is no metrics.csv.
        ValueError: a file without numbers, a term that none has, or an option out of range.
    """
    check_png(output)
    metrics = {label: read_metrics(metrics_file(path)) for label, path in labelled(runs, "runs").items()}
    save(draw_curves(metrics, terms, smoothing), output)


def draw_curves(
    metrics: Mapping[str, Mapping[str, Series]], terms: Sequence[str] | None = None, smoothing: float = 0.04
) -> Figure:
    """One panel a term, one line a run.

    Args:
        metrics: by run, what ``read_metrics`` read.
        terms, smoothing: as for ``plot_training``.

    Raises:
        ValueError: a term that no run has, or smoothing out of range.
    """
    if not 0 <= smoothing <= 1:
        raise FGDValueError(f"smoothing: expected 0 <= smoothing <= 1, got {smoothing}")
    names = _chosen(metrics, terms)
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.2 * rows + 0.45), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for axes, name in zip(panels, names, strict=False):
        drawn: list[float] = []
        for index, run in enumerate(metrics.values()):
            if name in run:
                drawn += _draw_series(axes, *run[name], 0.0 if name.startswith("val/") else smoothing, index)
        _finish(axes, name, drawn)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel("training step", fontsize=9)
    handles = [panels[0].plot([], [], label=label, **style_of(i))[0] for i, label in enumerate(metrics)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(metrics), 4), fontsize=9, frameon=False)
    return figure


def metrics_file(path: Path) -> Path:
    """``path`` itself, or the newest log in the folder ``path`` and below: a metrics.csv, or a file of TensorBoard's.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file():
        return path
    found = [*path.rglob("metrics.csv"), *path.rglob(f"{EVENTS}*")]
    if not found:
        raise FGDFileNotFoundError(
            f"runs: expected a metrics.csv, or a folder that holds one or TensorBoard's files, found none at {path}"
        )
    newest = max(found, key=lambda file: file.stat().st_mtime)
    if len({file.parent for file in found}) > 1:
        print(f"{path}: {len(found)} files of logs, taking the newest: {newest}")
    return newest


def read_metrics(path: str | Path) -> dict[str, Series]:
    """Each logged number as steps and values, in the file's order.

    Args:
        path: a metrics.csv, whose empty cells are left out; or a file of TensorBoard's, read with those beside it.

    Raises:
        ValueError: it has no column ``step``, or no number in any other.
    """
    path = Path(path)
    series = _of_tensorboard(path.parent) if path.name.startswith(EVENTS) else _of_csv(path)
    if not series:
        raise FGDValueError(f"{path}: expected logged values, found none; did the training reach its first log?")
    return series


def _of_tensorboard(folder: Path) -> dict[str, Series]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"] if name not in ("epoch", "hp_metric")}
    return {name: ([e.step for e in entries], [e.value for e in entries]) for name, entries in scalars.items()}


def _of_csv(path: Path) -> dict[str, Series]:
    expected = "a metrics.csv of Lightning's CSVLogger, with a column 'step' and numbers"
    names, rows = read_csv(path, expected, columns=["step"], numbers=None, growing=True)
    series: dict[str, Series] = {}
    for name in names:
        points = [(int(float(row["step"])), float(row[name])) for row in rows if row.get(name) and row["step"]]
        if name not in ("step", "epoch") and points:
            series[name] = ([step for step, _ in points], [value for _, value in points])
    return series


def smooth(values: Sequence[float], smoothing: float) -> list[float]:
    """Each value averaged with its neighbours, whose weight falls by e within ``smoothing`` of the curve's length.

    The weights are the same to both sides, so that the curve does not lag. Values that are not finite count nothing.
    """
    if smoothing == 0 or not values:
        return list(values)
    decay = math.exp(-1 / (smoothing * len(values)))
    known = [math.isfinite(value) for value in values]
    totals = _both_ways([value if k else 0.0 for value, k in zip(values, known, strict=True)], decay)
    weights = _both_ways([float(k) for k in known], decay)
    return [total / weight if weight else math.nan for total, weight in zip(totals, weights, strict=True)]


def _both_ways(values: list[float], decay: float) -> list[float]:
    """The sum over j of decay^|i - j| values[j], for each i."""
    sums = [-value for value in values]  # each meets itself in both passes
    for order in (range(len(values)), reversed(range(len(values)))):
        carried = 0.0
        for i in order:
            carried = decay * carried + values[i]
            sums[i] += carried
    return sums


def _chosen(metrics: Mapping[str, Mapping[str, Series]], terms: Sequence[str] | None) -> list[str]:
    """The columns to draw, each once, in the order of the terms."""
    known = list(dict.fromkeys(name for run in metrics.values() for name in run))
    chosen = []
    for term in TERMS if terms is None else terms:
        matching = [name for name in known if fnmatchcase(name, term)]
        if not matching and terms is not None:
            raise FGDValueError(f"terms: expected some of {known}, got {term!r}")
        chosen += matching
    if not chosen:
        raise FGDValueError(f"terms: none of {list(TERMS)} is in the files; name some of {known}")
    return list(dict.fromkeys(chosen))


def _draw_series(axes: Axes, steps: list[int], values: list[float], smoothing: float, run: int) -> list[float]:
    """Draws one run's line, the raw values pale behind it, and returns these."""
    style = style_of(run)
    if smoothing:
        axes.plot(steps, values, color=style["color"], alpha=0.22, linewidth=0.8)
    few = len(steps) < 4  # a line alone would hide a single validation
    axes.plot(steps, smooth(values, smoothing), linewidth=1.6, marker="o" if few else None, **style)
    return values


def _finish(axes: Axes, name: str, values: list[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    title = "loss, total" if name == "loss" else name.removeprefix("train/")
    lost = len(values) - len(finite)
    axes.set_title(f"{title} ({lost} values not finite)" if lost else title, fontsize=9)
    if finite and min(finite) > 0 and max(finite) > 30 * min(finite):
        axes.set_yscale("log")
    axes.tick_params(labelsize=8, labelbottom=True)
    tidy(axes)
