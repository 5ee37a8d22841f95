"""``fgd-distill compare``: what a pair's student gains from its teacher, over several seeds, and at equal time."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.evaluation import METRICS
from ..errors import FGDValueError
from ..machine import machine
from ..pictures.bars import plot_ap
from ..text_table import aligned
from ..training.comparison import (
    Line,
    Trainings,
    find_line,
    line_of,
    mean_gain,
    mean_of,
    range_of,
    scores_of,
    steps_of,
    training_seconds,
)
from ..training.run import run

ALONE, EQUAL_TIME = "alone", "alone, equal time"
NO_LOSS = [f"--model.{name}=null" for name in ("fgd", "criterion", "schedule", "teacher_cache")]
SETTINGS: Mapping[str, list[str]] = {
    ALONE: ["--config=alone.yaml"],
    "inherited": [*NO_LOSS, "--model.inherit=true"],
    "distilled": ["--model.inherit=false"],
    "both": ["--model.inherit=true"],
    EQUAL_TIME: ["--config=alone.yaml"],
}
LENGTHS = ("total_steps", "T_max", "step_size", "milestones", "epochs")
"""Arguments of PyTorch's schedulers that grow with the training."""
COLUMNS = ("setting", "seed", "steps", *METRICS, "seconds", "options", "machine")


@dataclass
class Comparison:
    """What ``fgd-distill compare`` takes besides the configuration of ``fit``.

    Args:
        seeds: one training of each setting for each, as in --seeds 0 1 2, which is the default.
        settings: some of 'alone', 'inherited', 'distilled', 'both' and 'alone, equal time', by default all of them; the
            last is trained for as long as the slowest other took, and needs 'alone'.
        output: the CSV file of the trainings, one line each; the picture is written beside it, with the suffix .png.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    settings: list[str] = field(default_factory=lambda: list(SETTINGS))
    output: str = "runs/compare.csv"

    def __post_init__(self) -> None:
        unknown = [setting for setting in self.settings if setting not in SETTINGS]
        if unknown or not self.settings or not self.seeds:
            raise FGDValueError(
                f"settings, seeds: expected seeds and some of {list(SETTINGS)}, got {self.settings} and {self.seeds}"
            )
        if EQUAL_TIME in self.settings and not {ALONE} < {*self.settings} - {EQUAL_TIME}:
            raise FGDValueError(
                f"settings: expected 'alone' and another one beside {EQUAL_TIME!r}, got {self.settings}"
            )
        if Path(self.output).suffix != ".csv":
            raise FGDValueError(f"output: expected a file name that ends in .csv, got {self.output!r}")


def compare(args: Sequence[str]) -> None:
    """Trains a pair's student alone, inherited, distilled and both, and alone for as long, and prints what each gained.

    A training's line is written when it ends. Those that are in the output already are skipped, so a comparison that
    was interrupted goes on where it stopped. Each ends with a validation, whose AP counts; gains are seed by seed.

    Args:
        args: the options of ``fgd-distill fit``, and those of ``Comparison``.

    Raises:
        ValueError: a setting is unknown, or the output has trainings with other options.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--output")
    own, options = parser.parse_known_args(args)
    wanted = Comparison(**{name: value for name, value in vars(own).items() if value is not None})
    path = Path(wanted.output)
    trainings = Trainings(path, COLUMNS, "fgd-distill compare")
    lines = trainings.lines
    told = shlex.join(options)
    if others := {line["options"] for line in lines} - {told}:
        raise FGDValueError(f"output: expected trainings with {told} in {path}, got some with {others.pop()}")
    ordered = [setting for setting in SETTINGS if setting in wanted.settings]  # equal time needs the others'
    for seed in wanted.seeds:
        for setting in ordered:
            if setting == EQUAL_TIME and (line := _outlasted(lines, seed)):
                lines.remove(line)
            if trainings.find(setting, seed) is None:
                print(f"\n{setting}, seed {seed}", flush=True)
                steps = equal_steps(lines, seed) if setting == EQUAL_TIME else None
                line = _train(setting, seed, options, steps, lines)
                trainings.add(line | {"options": told, "machine": machine()})
    print("", *table(trainings.shown(ordered, wanted.seeds)), "", f"{path} has every training", sep="\n")
    plot_ap(str(path), ordered, str(path.with_suffix(".png")))


def _train(setting: str, seed: int, options: Sequence[str], steps: int | None, lines: Sequence[Line]) -> Line:
    overlay = [*SETTINGS[setting], f"--seed_everything={seed}", f"--data.seed={seed}", "--ckpt_path=null"]
    if steps is not None:
        overlay += [f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1"]
        overlay += stretched(_model_of(options), steps / int(_alone(lines, seed)["steps"]))
    cli = run(["fit", *options, *overlay])
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    return line_of(setting, seed, cli) | {"seconds": f"{training_seconds(cli):.1f}"}


def _model_of(options: Sequence[str]) -> Any:
    """The configuration of the model that these options give."""
    from ..training.run import DistillCLI

    class Parsed(DistillCLI):
        def instantiate_classes(self) -> None:
            """Nothing is built."""

    return Parsed([*options, "--config=alone.yaml"]).config.model


def stretched(model: Any, factor: float) -> list[str]:
    """The options that make the learning rate's course ``factor`` times as long; a warm-up stays as it is.

    Args:
        model: its configuration, with ``lr_scheduler`` or ``lr_milestones``.
        factor: of the training's length.
    """

    def longer(length: Any) -> Any:
        if isinstance(length, Sequence):
            return [math.ceil(each * factor) for each in length]
        return math.ceil(length * factor)

    found = []
    if model.lr_milestones is not None:
        found.append(f"--model.lr_milestones.milestones={longer(list(model.lr_milestones.milestones))}")
    if model.lr_scheduler is not None:
        arguments = model.lr_scheduler.get("init_args", {})
        lengths = [name for name in LENGTHS if arguments.get(name) is not None]
        found += [f"--model.lr_scheduler.init_args.{name}={longer(arguments[name])}" for name in lengths]
    return found


def _alone(lines: Sequence[Line], seed: int) -> Line:
    line = find_line(lines, ALONE, seed)
    assert line is not None  # it is trained first
    return line


def _outlasted(lines: Sequence[Line], seed: int) -> Line | None:
    """This seed's training of equal time, if one that took longer came behind it: it has to be made again."""
    for place, line in enumerate(lines):
        if (line["setting"], line["seed"]) == (EQUAL_TIME, str(seed)):
            return line if equal_steps(lines, seed) > equal_steps(lines[:place], seed) else None
    return None


def equal_steps(lines: Sequence[Line], seed: int) -> int:
    """The steps that the student alone takes in the time of this seed's slowest other training."""
    others = [line for line in lines if line["seed"] == str(seed) and line["setting"] != EQUAL_TIME]
    alone = _alone(lines, seed)
    return round(int(alone["steps"]) * max(1.0, max(float(x["seconds"]) for x in others) / float(alone["seconds"])))


def table(lines: Sequence[Line]) -> list[str]:
    """A line a setting: mean and range of AP over the seeds, the mean gain over the student alone, and seconds."""
    rows = [["", "seeds", "steps", "AP", "range", "gain", "gain over equal time", "AP50", "AR", "seconds"]]
    for setting in SETTINGS:
        scores = scores_of(lines, setting)
        if not scores:
            continue
        gains = ["" if setting == base else mean_gain(scores, scores_of(lines, base)) for base in (ALONE, EQUAL_TIME)]
        means = [mean_of(scores_of(lines, setting, column)) for column in ("AP50", "AR", "seconds")]
        steps = steps_of(lines, setting)
        rows.append([setting, str(len(scores)), steps, mean_of(scores), range_of(scores), *gains, *means])
    return aligned(rows)
