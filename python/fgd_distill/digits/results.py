"""Tables of the demo: on the terminal and as CSV. summary.py makes a page from the CSV."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pytorch_lightning.cli import LightningCLI

from ..data.evaluation import METRICS
from ..files import write_text
from ..machine import machine
from ..text_table import aligned
from ..training.profiling import StepCost

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "pycocotools", "scikit-learn")
SHOWN_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR")
FULL = "inherited + FGD"
EQUAL_TIME = "alone, equal time"


@functools.cache
def versions() -> str:
    """The packages that a result depends on, with their versions."""
    return " ".join(f"{package}=={version(package)}" for package in PACKAGES)


@dataclass
class Row:
    """One trained detector.

    Args:
        method, seed, steps: how it was trained; no seed for the shipped teacher.
        parameters: their number.
        metrics: COCO metrics in percent, by the names of ``fgd_distill.data.evaluation.METRICS``.
        seconds: training time, without validation; None if it was not trained here.
        cost: what a training step cost; None without distillation.
    """

    method: str
    seed: int | None
    steps: int
    parameters: int
    metrics: dict[str, float]
    seconds: float | None = None
    cost: StepCost | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """The FGD loss's and the teacher's share of a training step, 0..1; none without distillation."""
        return () if self.cost is None else (self.cost.loss_share, self.cost.teacher_share)


def row_of(
    method: str,
    seed: int | None,
    steps: int,
    cli: LightningCLI,
    seconds: float | None = None,
    cost: StepCost | None = None,
) -> Row:
    """A row from a run that ended with a validation."""
    logged = cli.trainer.callback_metrics
    metrics = {name: float(logged[f"val/{name}"]) for name in METRICS}
    parameters = sum(parameter.numel() for parameter in cli.model.detector.parameters())
    return Row(method, seed, steps, parameters, metrics, seconds, cost)


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows, one a line."""
    head = ["model", "seed", "steps", *SHOWN_METRICS, "seconds", "FGD loss", "teacher"]
    print("\nCOCO box metrics (percent); the last two columns are shares of a training step\n")
    for line in aligned([head, *(_cells(row) for row in rows)]):
        print(line)


def _cells(row: Row) -> list[str]:
    shares = [f"{100 * share:.0f} %" for share in row.shares] or ["", ""]
    return [
        row.method,
        "" if row.seed is None else str(row.seed),
        str(row.steps) if row.steps else "",
        *(f"{row.metrics[name]:.1f}" for name in SHOWN_METRICS),
        "" if row.seconds is None else f"{row.seconds:.0f}",
        *shares,
    ]


def write_csv(rows: Sequence[Row], path: str | Path, command: str) -> None:
    """Writes all metrics, with the command, the machine and the versions on every line."""
    text = io.StringIO()
    head = ["method", "seed", "steps", "parameters", *METRICS, "seconds", "step_ms", "step_without_fgd_ms"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, "fgd_loss_share", "teacher_share", "command", "machine", "versions"])
    for row in rows:
        shares = [f"{share:.3f}" for share in row.shares] or ["", ""]
        step = ["", ""] if row.cost is None else [f"{1000 * t:.1f}" for t in (row.cost.step, row.cost.student)]
        writer.writerow(
            [
                row.method,
                "" if row.seed is None else row.seed,
                row.steps or "",
                row.parameters,
                *(f"{row.metrics[name]:.2f}" for name in METRICS),
                "" if row.seconds is None else f"{row.seconds:.1f}",
                *step,
                *shares,
                command,
                machine(),
                versions(),
            ]
        )
    write_text(path, text.getvalue())
