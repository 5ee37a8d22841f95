"""Trains the digits student with and without its teacher and prints what each gained.

    python -m fgd_distill.digits.demo

Every training is a ``fgd-distill fit`` with the configurations of this package; nothing here is special to the demo
but the comparison.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.cli import LightningCLI

from ..detectors.checkpoint import export_student
from ..detectors.weights import PACKAGE_WEIGHTS
from ..errors import FGDError
from ..training.comparison import Line, training_seconds
from ..training.profiling import StepCost, measure_step
from ..training.run import run
from .dataset import make_digits
from .results import EQUAL_TIME, FULL, line_of_demo, print_table, write_results
from .runs import fit
from .summary import write_summary

STEPS = 600
INHERIT, FGD = ("--config", "digits_inherit.yaml"), ("--config", "digits_fgd.yaml")
# What is laid over digits_student.yaml.
SETTINGS = {
    "alone": (),
    "inherited": INHERIT,
    "FGD": FGD,
    FULL: (*INHERIT, *FGD),
}
SHOWN = ("alone", "inherited", FULL)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point; ``--help`` lists the options."""
    options = _parse(args)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    data = make_digits(options.data)
    if options.train_teacher:
        train_teacher(data, options.workers)
    command = shlex.join(["python", "-m", "fgd_distill.digits.demo", *(sys.argv[1:] if args is None else args)])
    lines = [evaluate_teacher(data, options.workers)]
    for seed in options.seeds:
        lines += compare(data, seed, options)
        if options.output:  # after each seed, so that a long comparison that is cut short is not lost
            write_results(lines, options.output, command)
            if options.all:
                write_summary(options.output)
    print_table(lines)
    if options.output:
        print(f"\nwrote {options.output}")


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fgd_distill.digits.demo", description=__doc__)
    parser.add_argument("--data", default="data/digits", help="folder of the digits data set; made if missing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one comparison for each (default: 0)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps of a student (default: {STEPS})")
    parser.add_argument("--all", action="store_true", help="also FGD without inheriting, and a plain run of equal time")
    parser.add_argument("--output", default="runs/digits_demo.csv", help="CSV file; '' writes none")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch; 0 leaves its choice")
    parser.add_argument("--workers", type=int, default=1, help="processes that load images (default: 1)")
    parser.add_argument("--train-teacher", action="store_true", help="retrain the shipped teacher first (half an hour)")
    options = parser.parse_args(args)
    if options.steps < 1:
        parser.error(f"--steps: expected 1 or more, got {options.steps}")
    return options


def train_teacher(data: Path, workers: int = 1) -> None:
    """Trains the digits teacher and replaces the shipped weights."""
    cli = run(["fit", "--config", "digits_teacher.yaml", f"--data.root={data}", f"--data.num_workers={workers}"])
    checkpoint = Path(cli.trainer.default_root_dir) / "teacher.ckpt"
    cli.trainer.save_checkpoint(checkpoint)
    export_student(str(checkpoint), str(PACKAGE_WEIGHTS / "digits_teacher.pt"), dtype="float16")


def evaluate_teacher(data: Path, workers: int = 1) -> Line:
    """The shipped teacher's metrics on the validation images."""
    cli = run(
        [
            "validate",
            "--config=digits_teacher.yaml",
            "--model.student.weights=package:digits_teacher.pt",
            f"--data.root={data}",
            f"--data.num_workers={workers}",
            "--trainer.logger=false",
            "--verbose=false",
        ]
    )
    return line_of_demo("teacher", None, cli)


def compare(data: Path, seed: int, options: argparse.Namespace) -> list[Line]:
    """One student for each setting, with the same initialisation, images and number of steps."""
    lines, cost = [], None
    for setting in SETTINGS if options.all else SHOWN:
        print(f"\n{setting}, seed {seed}", flush=True)
        cli = fit(data, seed, options.steps, SETTINGS[setting], options.workers)
        cost = step_cost(cli)
        lines.append(line_of_demo(setting, seed, cli, training_seconds(cli), cost))
        print(f"AP {float(lines[-1]['AP']):.1f} after {float(lines[-1]['seconds']):.0f} s")
    if options.all and cost is not None:
        # What the distilled student's time buys without a teacher. From steps timed in turn, not from the two runs'
        # wall times: those also tell what else the machine did meanwhile.
        steps = round(options.steps * cost.step / cost.student)
        print(f"\n{EQUAL_TIME}, seed {seed}: {steps} steps", flush=True)
        cli = fit(data, seed, steps, (), options.workers)
        lines.append(line_of_demo(EQUAL_TIME, seed, cli, training_seconds(cli)))
    return lines


def step_cost(cli: LightningCLI) -> StepCost | None:
    """What a step of this training cost; None without distillation."""
    if cli.model.distiller is None:
        return None
    return measure_step(cli.model.distiller, next(iter(cli.datamodule.train_dataloader())))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of loader processes
    try:
        main()
    except FGDError as error:
        sys.exit(f"python -m fgd_distill.digits.demo: {error}")
