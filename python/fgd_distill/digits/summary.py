"""A page from the demo's CSV file: ``python -m fgd_distill.digits.summary <file.csv>`` writes it beside the file."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..csv_files import read_csv
from ..errors import FGDValueError
from ..files import write_text
from ..training.comparison import Line, mean_of, range_of, scores_of, steps_of
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
        rows="\n".join(_row(lines, setting) for setting in settings),
        seeds=", ".join(_seeds(lines)),
        gains="\n".join(_gains(lines)),
    )
    target = path.with_suffix(".md")
    write_text(target, page)
    return target


def _row(lines: Sequence[Line], setting: str) -> str:
    scores = scores_of(lines, setting)
    cells = [
        setting,
        str(len(scores.keys() - {""}) or ""),
        steps_of(lines, setting),
        mean_of(scores),
        range_of(scores),
        *(mean_of(scores_of(lines, setting, metric)) for metric in ("AP50", "AP75", "AR")),
        _average(lines, setting, "seconds"),
        _average(lines, setting, "step_ms", statistics.median),
        _average(lines, setting, "fgd_loss_share", percent=True),
        _average(lines, setting, "teacher_share", percent=True),
    ]
    return "| " + " | ".join(cells) + " |"


def _gains(lines: Sequence[Line]) -> list[str]:
    gains = []
    compared = [(FULL, "inherited"), ("FGD", "alone"), ("FGD", EQUAL_TIME), (FULL, "alone"), (FULL, EQUAL_TIME)]
    for better, base in compared:
        ours, theirs = scores_of(lines, better), scores_of(lines, base)
        paired = [f"{ours[seed] - theirs[seed]:+.1f}" for seed in _seeds(lines) if seed in ours and seed in theirs]
        if paired:
            gains.append(f"- {better} over {base}: " + ", ".join(paired))
    return gains


def _seeds(lines: Sequence[Line]) -> list[str]:
    return sorted({line["seed"] for line in lines if line["seed"]}, key=int)


def _average(
    lines: Sequence[Line],
    setting: str,
    column: str,
    average: Callable[[list[float]], float] = statistics.mean,
    percent: bool = False,
) -> str:
    """A column's mean over the seeds, or another average, as a whole number; empty if no line has the number."""
    values = [float(line[column]) for line in lines if line["setting"] == setting and line[column]]
    if not values:
        return ""
    value = average(values)
    return f"{100 * value:.0f} %" if percent else f"{value:.0f}"


if __name__ == "__main__":
    print(f"wrote {write_summary(sys.argv[1])}")
