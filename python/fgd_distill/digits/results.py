"""Tables of the demo: on the terminal and as CSV. summary.py makes a page from the CSV."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pytorch_lightning.cli import LightningCLI

from ..csv_files import write_csv
from ..data.evaluation import METRICS
from ..machine import machine
from ..text_table import aligned
from ..training.comparison import Line, line_of
from ..training.profiling import StepCost

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "pycocotools", "scikit-learn")
COST = ("step_ms", "step_without_fgd_ms", "fgd_loss_share", "teacher_share")
COLUMNS = ("setting", "seed", "steps", "parameters", *METRICS, "seconds", *COST, "command", "machine", "versions")
SHOWN_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR")
FULL = "inherited + FGD"
EQUAL_TIME = "alone, equal time"


@functools.cache
def versions() -> str:
    """The packages that a result depends on, with their versions."""
    return " ".join(f"{package}=={version(package)}" for package in PACKAGES)


def line_of_demo(
    setting: str,
    seed: int | None,
    cli: LightningCLI,
    seconds: float | None = None,
    cost: StepCost | None = None,
) -> Line:
    """A line of a run that ended with a validation.

    Args:
        setting, seed: how it was trained; no seed for the shipped teacher, which was not trained here.
        cli: of the run.
        seconds: training time, without validation.
        cost: what a training step cost; None without distillation.
    """
    line = line_of(setting, seed, cli)
    if seed is None:
        line["steps"] = ""
    line["parameters"] = str(sum(parameter.numel() for parameter in cli.model.detector.parameters()))
    line["seconds"] = "" if seconds is None else f"{seconds:.1f}"
    if cost is None:
        return line | dict.fromkeys(COST, "")
    milliseconds = (f"{1000 * cost.step:.1f}", f"{1000 * cost.student:.1f}")
    return line | dict(zip(COST, (*milliseconds, f"{cost.loss_share:.3f}", f"{cost.teacher_share:.3f}"), strict=True))


def print_table(lines: Sequence[Line]) -> None:
    """Prints the lines."""
    head = ["model", "seed", "steps", *SHOWN_METRICS, "seconds", "FGD loss", "teacher"]
    print("\nCOCO box metrics (percent); the last two columns are shares of a training step\n")
    for line in aligned([head, *(_cells(line) for line in lines)]):
        print(line)


def _cells(line: Line) -> list[str]:
    return [
        line["setting"],
        line["seed"],
        line["steps"],
        *(f"{float(line[name]):.1f}" for name in SHOWN_METRICS),
        f"{float(line['seconds']):.0f}" if line["seconds"] else "",
        *(f"{100 * float(line[name]):.0f} %" if line[name] else "" for name in COST[2:]),
    ]


def write_results(lines: Sequence[Line], path: str | Path, command: str) -> None:
    """Writes all metrics, with the command, the machine and the versions on every line."""
    made = {"command": command, "machine": machine(), "versions": versions()}
    write_csv(path, COLUMNS, [line | made for line in lines])
