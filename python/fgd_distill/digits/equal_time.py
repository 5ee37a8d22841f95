"""What the digits student learns in a given time: alone, and with teachers that cost more or less.

    python -m fgd_distill.digits.equal_time --seeds 0 1 2 --output runs/equal_time.csv

Every setting gets the time that the student alone needs for ``--alone-steps`` steps. How many steps of its own these
are is told by the processor time of steps that are taken in turn, so that neither other work on the machine nor the
speed of its clock favours one of them. Where the teacher's maps are kept, the first epoch costs what FGD does without.
One thread, images loaded in the process. Trainings that are in the output already are skipped, so that an interrupted
comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..data.evaluation import METRICS
from ..files import write_text
from ..machine import machine
from ..text_table import aligned
from ..training.comparison import Line, Trainings, line_of, mean_gain, mean_of, range_of, scores_of
from ..training.run import DistillCLI
from .dataset import make_digits
from .results import versions
from .runs import fit

FGD = "--config=digits_fgd.yaml"
CHEAP = "--config=economical.yaml"
KEPT = "FGD, teacher's maps kept"
SETTINGS = {
    "alone": [],
    "FGD": [FGD],
    KEPT: [FGD],
    "FGD, teacher in bfloat16": [FGD, CHEAP],
    "FGD, teacher in bfloat16, half of the images": [FGD, CHEAP, "--model.schedule={part: 0.5}"],
    "FGD, teacher in bfloat16, every second step": [FGD, CHEAP, "--model.schedule={every: 2}"],
}
COLUMNS = ("setting", "seed", "steps", *METRICS, "step_ms", "cpu_seconds", "machine", "versions")


def step_costs(data: Path, settings: list[str], repeats: int) -> dict[str, float]:
    """Median processor seconds of a training step of each setting, of steps taken in turn."""
    with tempfile.TemporaryDirectory() as maps:
        steps = {setting: _stepper(data, overlay_of(setting, Path(maps))) for setting in settings}
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


def overlay_of(setting: str, maps: Path) -> list[str]:
    """What is laid over digits_student.yaml; ``maps`` is the folder for the teacher's."""
    kept = [f"--model.teacher_cache.folder={maps}"] if setting == KEPT else []
    return [*SETTINGS[setting], *kept]


def equal_steps(setting: str, costs: Mapping[str, float], alone_steps: int, epoch: int) -> int:
    """The steps that a setting takes in the time of ``alone_steps`` of the student alone.

    Args:
        setting: one of ``SETTINGS``.
        costs: processor seconds of a step of each, as ``step_costs`` gives them.
        alone_steps: of the student alone.
        epoch: steps of an epoch, the first of which has the teacher run even where its maps are kept.
    """
    if setting == "alone":
        return alone_steps
    time = alone_steps * costs["alone"]
    first = epoch if setting == KEPT else 0
    if first * costs["FGD"] >= time:
        return round(time / costs["FGD"])
    return first + round((time - first * costs["FGD"]) / costs[setting])


def _stepper(data: Path, overlay: list[str]):
    args = ["--config=digits_student.yaml", *overlay, f"--data.root={data}", "--data.num_workers=0"]
    cli = DistillCLI([*args, "--trainer.logger=false", "--trainer.enable_checkpointing=false"])
    cli.datamodule.setup("fit")
    images, targets = next(iter(cli.datamodule.train_dataloader()))
    module = cli.model.train()
    module.open_teacher_cache(cli.datamodule.train_set)  # what fit does when it starts
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


def steps_of_an_epoch(data: Path) -> int:
    """Batches of digits_student.yaml."""
    cli = DistillCLI(["--config=digits_student.yaml", f"--data.root={data}", "--data.num_workers=0"])
    cli.datamodule.setup("fit")
    return len(cli.datamodule.train_dataloader())


def train(data: Path, setting: str, seed: int, steps: int, maps: Path) -> Line:
    """One training, and what it reached."""
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.logger.init_args.name=equal_time/{setting}_{seed}"]
    begin = time.process_time()
    cli = fit(data, seed, steps, [*overlay_of(setting, maps), *quiet], workers=0)
    spent = time.process_time() - begin
    return line_of(setting, seed, cli) | {"cpu_seconds": f"{spent:.0f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--alone-steps", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=40, help="pairs of steps that tell a setting's cost")
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
    epoch = steps_of_an_epoch(data) if KEPT in args.settings else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    trainings = Trainings(path, COLUMNS, "fgd_distill.digits.equal_time")
    for setting, seed in trainings.missing(args.settings, args.seeds):
        steps = equal_steps(setting, costs, args.alone_steps, epoch)
        with tempfile.TemporaryDirectory(dir=path.parent) as maps:  # a training's own: its first epoch fills it
            line = train(data, setting, seed, steps, Path(maps))
        step_ms = f"{1000 * costs[setting]:.1f}" if costs else ""
        trainings.add(line | {"step_ms": step_ms, "machine": machine(), "versions": versions()})
        print(f"{setting}, seed {seed}: AP {line['AP']} after {line['steps']} steps", flush=True)
    print("", *table(trainings.shown(args.settings, args.seeds)), "", f"{path} has every training", sep="\n")


def table(lines: Sequence[Line]) -> list[str]:
    """A line a setting: what a step costs, steps, mean and range of AP over the seeds, and the mean gain."""
    rows = [["", "a step, ms", "steps", "seeds", "AP", "range", "gain over alone"]]
    alone = scores_of(lines, "alone")
    for setting in dict.fromkeys(line["setting"] for line in lines):
        first = next(line for line in lines if line["setting"] == setting)
        scores = scores_of(lines, setting)
        gain = "" if setting == "alone" else mean_gain(scores, alone)
        rows.append(
            [setting, first["step_ms"], first["steps"], str(len(scores)), mean_of(scores), range_of(scores), gain]
        )
    return aligned(rows)


if __name__ == "__main__":
    main()
