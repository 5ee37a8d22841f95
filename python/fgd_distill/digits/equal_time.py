"""What the digits student learns in a given time: alone, and with teachers that cost more or less.

    python -m fgd_distill.digits.equal_time --seeds 0 1 2 --output runs/equal_time.csv

Every setting gets the time that the student alone needs for ``--alone-steps`` steps. How many steps of its own these
are is told by the processor time of steps that are taken in turn, so that neither other work on the machine nor the
speed of its clock favours one of them. One thread, images loaded in the process. Trainings that are in the output
already are skipped, so that an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch

from ..csv_files import read_csv, write_csv
from ..data.evaluation import METRICS
from ..files import write_text
from ..machine import machine
from ..training.run import DistillCLI
from .dataset import make_digits
from .results import PACKAGES
from .runs import fit

FGD = "--config=digits_fgd.yaml"
CHEAP = "--config=economical.yaml"
SETTINGS = {
    "alone": [],
    "FGD": [FGD],
    "FGD, teacher in bfloat16": [FGD, CHEAP],
    "FGD, teacher in bfloat16, half of the images": [FGD, CHEAP, "--model.schedule={part: 0.5}"],
    "FGD, teacher in bfloat16, every second step": [FGD, CHEAP, "--model.schedule={every: 2}"],
}
COLUMNS = ("setting", "seed", "steps", *METRICS, "step_ms", "cpu_seconds", "machine", "versions")


def step_costs(data: Path, settings: list[str], repeats: int) -> dict[str, float]:
    """Median processor seconds of a training step of each setting, of steps taken in turn."""
    steps = {setting: _stepper(data, SETTINGS[setting]) for setting in settings}
    seconds: dict[str, list[float]] = {setting: [] for setting in settings}
    for number in range(2 * repeats + 2):
        for setting, step in steps.items():
            begin = time.process_time()
            step(number)
            seconds[setting].append(time.process_time() - begin)
    # Of two steps in a row, which differ where only every second one is distilled, the mean.
    return {
        setting: statistics.median((a + b) / 2 for a, b in zip(found[2::2], found[3::2], strict=True))
        for setting, found in seconds.items()
    }


def _stepper(data: Path, overlay: list[str]):
    args = ["--config=digits_student.yaml", *overlay, f"--data.root={data}", "--data.num_workers=0"]
    cli = DistillCLI([*args, "--trainer.logger=false", "--trainer.enable_checkpointing=false"])
    cli.datamodule.setup("fit")
    images, targets = next(iter(cli.datamodule.train_dataloader()))
    module = cli.model.train()
    optimizer = module.make_optimizer([p for p in module.parameters() if p.requires_grad])

    def step(number: int) -> None:
        if module.distiller is None:
            losses = module.adapter.student_step(module.student, images, targets).losses
        else:
            module.distiller.set_step(number)
            losses = module.distiller(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(data: Path, setting: str, seed: int, steps: int) -> dict[str, str]:
    """One training, and what it reached."""
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.logger.init_args.name=equal_time/{setting}_{seed}"]
    begin = time.process_time()
    cli = fit(data, seed, steps, [*SETTINGS[setting], *quiet], workers=0)
    spent = time.process_time() - begin
    found = cli.trainer.callback_metrics
    metrics = {name: f"{float(found[f'val/{name}']):.2f}" for name in METRICS}
    return {"setting": setting, "seed": str(seed), "steps": str(steps), **metrics, "cpu_seconds": f"{spent:.0f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--alone-steps", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=15, help="pairs of steps that tell a setting's cost")
    parser.add_argument("--data", default="data/digits")
    parser.add_argument("--output", default="runs/equal_time.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    data, path = make_digits(args.data), Path(args.output)
    costs_path = path.with_suffix(".json")  # kept: a comparison goes on with the steps that it began with
    costs = json.loads(costs_path.read_text()) if costs_path.is_file() else {}
    if args.settings != ["alone"] and not costs.keys() >= {*args.settings, "alone"}:
        costs = step_costs(data, list(SETTINGS), args.repeats)
        write_text(costs_path, json.dumps(costs, indent=2))
    rows = read_csv(path, "a file of fgd_distill.digits.equal_time", COLUMNS)[1] if path.is_file() else []
    versions = " ".join(f"{package}=={version(package)}" for package in PACKAGES)
    for seed in args.seeds:
        for setting in args.settings:
            if any((row["setting"], row["seed"]) == (setting, str(seed)) for row in rows):
                continue
            share = costs[setting] / costs["alone"] if setting != "alone" else 1.0
            row = train(data, setting, seed, round(args.alone_steps / share))
            told = {
                "step_ms": f"{1000 * costs[setting]:.1f}" if costs else "",
                "machine": machine(),
                "versions": versions,
            }
            rows.append(row | told)
            print(f"{setting}, seed {seed}: AP {row['AP']} after {row['steps']} steps", flush=True)
            write_csv(path, COLUMNS, rows)


if __name__ == "__main__":
    main()
