"""A page from the demo's CSV file: ``python -m fgd_distill.digits.summary <file.csv>`` writes it beside the file."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..csv_files import read_csv
from ..errors import FGDValueError
from ..files import write_text
from ..training.comparison import Line
from .results import COLUMNS, COST, EQUAL_TIME, FULL, METRICS

PAGE = """# Digits students

    {command}

Machine: {machine}. Versions: {versions}.

Every student starts from the same initialisation and sees the same batches as the others of its seed. *inherited*
starts with the teacher's neck and head, *FGD* is distilled from random initialisation, *{full}* does both, and
*{equal}* is the student alone with as many more steps as the time of {full} allows.

COCO box metrics are in percent, on the validation images: the mean over the seeds, for AP also the range. Seconds are
the training's wall time without validation, and depend on what else the machine was doing. The milliseconds of a step,
a median over its steps and the seeds, and the shares of the FGD loss (forward and backward) and of the teacher's
forward pass in it come from steps timed in turn, and so does the number of steps of equal time. All numbers are in the
CSV file beside this page.

| model | seeds | steps | AP | range | AP50 | AP75 | AR | seconds | step, ms | of it FGD loss | teacher |
|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}

AP gained, a number for each of the seeds {seeds}:

{gains}
"""
NUMBERS = ("seed", "steps", "parameters", *METRICS, "seconds", *COST)


def write_summary(path: str | Path) -> Path:
    """Writes the mean and range over the seeds of each setting, and the gains seed by seed.

    Args:
        path: a CSV file of the demo.

    Returns:
        the page's path: the same with the suffix ``.md``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no rows.
    """
    path = Path(path)
    _, lines = read_csv(path, "the demo's results", columns=COLUMNS, numbers=NUMBERS)
    if not lines:
        raise FGDValueError(f"{path}: expected the demo's rows, found none")
    settings = list(dict.fromkeys(line["setting"] for line in lines))
    page = PAGE.format(
        command=lines[0]["command"],
        machine=lines[0]["machine"],
        versions=lines[0]["versions"].replace(" ", ", ").replace("==", " "),
        full=FULL,
        equal=EQUAL_TIME,
        rows="\n".join(_row([line for line in lines if line["setting"] == setting]) for setting in settings),
        seeds=", ".join(_seeds(lines)),
        gains="\n".join(_gains(lines)),
    )
    target = path.with_suffix(".md")
    write_text(target, page)
    return target


def _row(lines: list[Line]) -> str:
    scores = _numbers(lines, "AP")
    steps = sorted({int(line["steps"]) for line in lines if line["steps"]})
    cells = [
        lines[0]["setting"],
        str(len(_seeds(lines)) or ""),
        " to ".join(str(step) for step in dict.fromkeys([*steps[:1], *steps[-1:]])),
        _average(lines, "AP", 1),
        f"{min(scores):.1f} to {max(scores):.1f}" if len(scores) > 1 else "",
        _average(lines, "AP50", 1),
        _average(lines, "AP75", 1),
        _average(lines, "AR", 1),
        _average(lines, "seconds", 0),
        _average(lines, "step_ms", 0, statistics.median),
        _average(lines, "fgd_loss_share", 0, percent=True),
        _average(lines, "teacher_share", 0, percent=True),
    ]
    return "| " + " | ".join(cells) + " |"


def _gains(lines: list[Line]) -> list[str]:
    scores = {(line["setting"], line["seed"]): float(line["AP"]) for line in lines}
    gains = []
    compared = [(FULL, "inherited"), ("FGD", "alone"), ("FGD", EQUAL_TIME), (FULL, "alone"), (FULL, EQUAL_TIME)]
    for better, base in compared:
        pairs = [(scores.get((better, seed)), scores.get((base, seed))) for seed in _seeds(lines)]
        values = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
        if values:
            gains.append(f"- {better} over {base}: " + ", ".join(f"{value:+.1f}" for value in values))
    return gains


def _seeds(lines: Sequence[Line]) -> list[str]:
    return sorted({line["seed"] for line in lines if line["seed"]}, key=int)


def _numbers(lines: list[Line], column: str) -> list[float]:
    return [float(line[column]) for line in lines if line[column]]


def _average(
    lines: list[Line],
    column: str,
    digits: int,
    average: Callable[[list[float]], float] = statistics.mean,
    percent: bool = False,
) -> str:
    """The column's mean, or another average, as text; empty if no line has the number."""
    values = _numbers(lines, column)
    if not values:
        return ""
    value = average(values)
    return f"{100 * value:.{digits}f} %" if percent else f"{value:.{digits}f}"


if __name__ == "__main__":
    print(f"wrote {write_summary(sys.argv[1])}")
