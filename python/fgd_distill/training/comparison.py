"""Trainings side by side: a line each in a CSV file, written when it ends, so that a comparison can go on.

``fgd-distill compare``, ``fgd-distill ablate`` and ``fgd_distill.digits.equal_time`` are made of these.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pytorch_lightning.callbacks import Timer
from pytorch_lightning.cli import LightningCLI

from ..csv_files import read_csv, write_csv
from ..data.evaluation import METRICS
from ..errors import FGDValueError

Line = dict[str, str]


class Trainings:
    """The trainings of a comparison, told apart by setting and seed.

    Args:
        path: the CSV file; none yet, or one of the same columns.
        columns: the file's, 'setting' and 'seed' among them.
        written_by: the command, for messages.

    Raises:
        ValueError: the file is not one of these.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], written_by: str) -> None:
        self.path, self.columns = Path(path), columns
        self.lines: list[Line] = []
        if self.path.is_file():
            numbers = [name for name in ("seed", "steps", "seconds", *METRICS) if name in columns]
            names, self.lines = read_csv(path, f"a file of {written_by}", columns, numbers)
            if set(names) != set(columns):
                raise FGDValueError(f"{path}: expected a file of {written_by}, with {list(columns)}, got {names}")

    def find(self, setting: str, seed: int) -> Line | None:
        """The line of a training; None if it has not ended yet."""
        return find_line(self.lines, setting, seed)

    def missing(self, settings: Iterable[str], seeds: Iterable[int]) -> list[tuple[str, int]]:
        """What has no line yet: all settings of a seed, then the next seed's."""
        return [(setting, seed) for seed in seeds for setting in settings if self.find(setting, seed) is None]

    def shown(self, settings: Iterable[str], seeds: Iterable[int]) -> list[Line]:
        """The lines of these settings and seeds, in this order."""
        return [line for seed in seeds for setting in settings if (line := self.find(setting, seed))]

    def add(self, line: Line) -> None:
        """Keeps a training that has ended."""
        self.lines.append(line)
        write_csv(self.path, self.columns, self.lines)


def find_line(lines: Iterable[Line], setting: str, seed: int) -> Line | None:
    """The line of this setting and seed, if there is one."""
    return next((line for line in lines if (line["setting"], line["seed"]) == (setting, str(seed))), None)


def scores_of(lines: Iterable[Line], setting: str, column: str = "AP") -> dict[str, float]:
    """A setting's AP in percent, or what another column holds, by seed."""
    return {line["seed"]: float(line[column]) for line in lines if line["setting"] == setting}


def mean_of(scores: Mapping[str, float]) -> str:
    """Over the seeds, empty if there is none."""
    return f"{statistics.mean(scores.values()):.1f}" if scores else ""


def range_of(scores: Mapping[str, float]) -> str:
    """From the least to the most over the seeds, empty for a single one."""
    return f"{min(scores.values()):.1f} to {max(scores.values()):.1f}" if len(scores) > 1 else ""


def mean_gain(scores: Mapping[str, float], base: Mapping[str, float]) -> str:
    """Over another setting, as a mean of the seeds that both have; empty if there is none."""
    paired = [score - base[seed] for seed, score in scores.items() if seed in base]
    return f"{statistics.mean(paired):+.1f}" if paired else ""


def steps_of(lines: Iterable[Line], setting: str) -> str:
    """How many steps a setting's trainings had, from the least to the most; empty if no line tells."""
    steps = sorted({int(line["steps"]) for line in lines if line["setting"] == setting and line["steps"]})
    return " to ".join(str(step) for step in dict.fromkeys([*steps[:1], *steps[-1:]]))


def line_of(setting: str, seed: int | None, cli: LightningCLI) -> Line:
    """Setting, seed, steps and COCO metrics in percent of a run that ended with a validation; None for no seed."""
    found = cli.trainer.callback_metrics
    metrics = {name: f"{float(found[f'val/{name}']):.2f}" for name in METRICS}
    return {
        "setting": setting,
        "seed": "" if seed is None else str(seed),
        "steps": str(cli.trainer.global_step),
        **metrics,
    }


def training_seconds(cli: LightningCLI) -> float:
    """Training time without the validation inside it."""
    timer = next(callback for callback in cli.trainer_defaults["callbacks"] if isinstance(callback, Timer))
    return timer.time_elapsed("train") - timer.time_elapsed("validate")
