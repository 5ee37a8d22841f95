"""``fgd-distill profile``: what a training step costs, part by part."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from pytorch_lightning.cli import LightningArgumentParser

from ..errors import FGDValueError
from ..files import write_text
from ..machine import machine
from ..text_table import aligned
from ..training.run import DistillCLI
from ..training.step_profile import StepProfile, profile_steps


@dataclass
class Profiling:
    """What ``fgd-distill profile`` takes besides the configuration of ``fit``.

    Args:
        steps: how many steps are measured.
        warmup: steps before them, which are not: the first ones load, choose and compile.
        output: a CSV file to write besides the table; None writes none.
    """

    steps: int = 20
    warmup: int = 3
    output: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0:
            raise FGDValueError(f"expected steps >= 1 and warmup >= 0, got {self.steps} and {self.warmup}")


class ProfileCLI(DistillCLI):
    """The configuration of ``fit`` with the settings of a profile, parsed and built but not run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Profiling)

    @property
    def settings(self) -> Profiling:
        return Profiling(**{field.name: self.config[field.name] for field in fields(Profiling)})


def profile(args: Sequence[str]) -> StepProfile:
    """Takes a few training steps of a configuration and prints what each part of a step costs.

    One process, on the device that ``fit`` would choose, at its precision. Nothing of the training is kept. A teacher
    cache is left out, because it would be written.

    Args:
        args: the options of ``fgd-distill fit``, and those of ``Profiling``.

    Raises:
        ValueError: a setting is out of range.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    cli = ProfileCLI(args)
    settings, device = cli.settings, cli.trainer.strategy.root_device
    cli.datamodule.setup("fit")
    loader = cli.datamodule.train_dataloader()
    profiled = profile_steps(
        cli.model.to(device),
        loader,
        lambda batch: cli.datamodule.transfer_batch_to_device(batch, device, 0),
        device,
        settings.steps,
        settings.warmup,
        cli.trainer.precision_plugin.forward_context,
        cli.trainer.gradient_clip_val,
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    print(f"{settings.steps} steps of {cli.datamodule.batch_size} images, after {settings.warmup} others, on {name}\n")
    print("\n".join(table(profiled)))
    if settings.output is not None:
        write_text(settings.output, as_csv(profiled))
        print(f"\nwrote {settings.output}")
    return profiled


def table(profiled: StepProfile) -> list[str]:
    """The lines that ``profile`` prints."""
    shares = profiled.shares
    rows = [[part, f"{1000 * median:.1f}", f"{shares[part]:.0%}"] for part, median in profiled.medians.items()]
    return aligned([["part", "median ms", "share"], *rows, ["step", f"{1000 * profiled.step:.1f}", ""]])


def as_csv(profiled: StepProfile) -> str:
    """One line a part: its median and its share, and milliseconds of every step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    count = len(next(iter(profiled.seconds.values())))
    writer.writerow(["part", "median_ms", "share", *(f"step_{number}_ms" for number in range(1, count + 1))])
    for part, values in profiled.seconds.items():
        each = [f"{1000 * value:.3f}" for value in values]
        writer.writerow([part, f"{1000 * profiled.medians[part]:.3f}", f"{profiled.shares[part]:.4f}", *each])
    return text.getvalue()
