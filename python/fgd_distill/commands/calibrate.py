"""``fgd-distill calibrate``: proposes temperature and weights of the FGD loss for two detectors."""

from __future__ import annotations

import itertools
import logging
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import yaml
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor

from fgd_kernels import PRESETS

from ..calibration.measure import TERMS, WEIGHTS, Bounds, Measurement, guess_preset, measure, propose, resolved
from ..data.datamodule import Batch, CocoDataModule
from ..digits.results import aligned
from ..files import atomic_write
from ..training.module import DetectionModule, FGDConfig
from .main import DistillCLI, package_config

ONE_PIXEL, ONE_LEVEL = 0.5, 0.7  # from here on one pixel takes most of the attention, one level most of a term


@dataclass
class Calibration:
    """What ``fgd-distill calibrate`` takes besides the configuration of ``fit``.

    Args:
        batches: how many training batches are measured.
        preset: whose ratios between the weights are kept: ``two_stage``, ``one_stage_anchor``,
            ``one_stage_anchor_free``, or ``auto``: by the student's class.
        ratios: ``preset`` keeps its ratios as far as ``low`` and ``high`` allow, ``equal`` gives each term one share.
        temperature: T to find the weights for; None proposes one.
        total: all terms together, as a multiple of the detector's own loss.
        low, high: each term, as a multiple of the detector's own loss.
        output: the YAML file to write.
    """

    batches: int = 4
    preset: Literal["auto", "two_stage", "one_stage_anchor", "one_stage_anchor_free"] = "auto"
    ratios: Literal["preset", "equal"] = "preset"
    temperature: float | None = None
    total: float = Bounds.total
    low: float = Bounds.low
    high: float = Bounds.high
    output: str = "runs/calibrated.yaml"

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches: expected at least 1, got {self.batches}")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number > 0, or None, got {self.temperature}")
        self.bounds = Bounds(self.total, self.low, self.high)


class CalibrateCLI(DistillCLI):
    """The configuration of ``fit`` with the settings of a calibration, parsed and built but not run."""

    def __init__(self, args: Sequence[str]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().__init__(
                DetectionModule,
                CocoDataModule,
                args=[package_config(arg) for arg in args],
                run=False,
                seed_everything_default=0,
                save_config_callback=None,
                auto_configure_optimizers=False,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Calibration)
        # The files to calibrate for need not ask for the loss yet: its weights are what is to be found.
        parser.set_defaults({"model.fgd": {"preset": FGDConfig.preset}})

    @property
    def settings(self) -> Calibration:
        return Calibration(**{field.name: self.config[field.name] for field in fields(Calibration)})

    @property
    def weights(self) -> FGDConfig:
        """As the configuration has them."""
        if self.config.model.fgd is None:
            raise ValueError("model.fgd: expected weights, or no word of them, got null: there is no loss to calibrate")
        return FGDConfig(**self.config.model.fgd.as_dict())


def calibrate(args: Sequence[str]) -> FGDConfig:
    """Measures the two detectors of a configuration, prints what it found, and writes the proposed weights.

    Args:
        args: the options of ``fgd-distill fit``, and those of ``Calibration``.

    Returns:
        the proposed weights, as they were written.

    Raises:
        ValueError: there is no teacher, no batch, or a setting is out of range.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    cli = CalibrateCLI(args)
    settings, configured, distiller = cli.settings, cli.weights, cli.model.distiller
    distiller.teacher_cache = None  # a few batches are not worth a cache on disk
    device = cli.trainer.strategy.root_device
    batches = _batches(cli.datamodule, settings.batches, device)
    candidates = {name: FGDConfig(preset=name) for name in PRESETS}
    if resolved(configured) not in map(resolved, candidates.values()):
        candidates["as configured"] = configured
    temperatures = {resolved(candidate)[0] for candidate in candidates.values()}
    temperatures |= set() if settings.temperature is None else {settings.temperature}
    measurement = measure(distiller.to(device), batches, temperatures)
    preset = settings.preset if settings.preset != "auto" else guess_preset(distiller.student, configured.preset)
    start = replace(configured, preset=preset)
    proposed = propose(measurement, start, settings.bounds, settings.temperature, settings.ratios == "equal")
    print("\n".join(report(measurement, candidates | {"proposed": proposed})))
    text = overlay(proposed, measurement, shlex.join(["fgd-distill", "calibrate", *args]))
    atomic_write(settings.output, lambda path: path.write_text(text))
    print(f"\nwrote {settings.output}: give it to fit as the last --config after those given here")
    return proposed


def _batches(data: Any, count: int, device: Any) -> list[Batch]:
    """The first training batches, as a training with the same seed sees them."""
    data.setup("fit")
    return [data.transfer_batch_to_device(b, device, 0) for b in itertools.islice(data.train_dataloader(), count)]


def report(measurement: Measurement, candidates: dict[str, FGDConfig]) -> list[str]:
    """The lines that ``calibrate`` prints.

    Args:
        measurement: of the pair.
        candidates: weights by name, of measured temperatures; the last is the proposal.
    """
    own = ", ".join(f"{name} {value:.3g}" for name, value in measurement.detector.items())
    lines = [
        f"{measurement.images} images; the detector's own loss is {measurement.detector_loss:.3g} ({own})",
        "",
        *_attention_lines(measurement),
        "",
        "Terms as multiples of the detector's own loss, level by level:",
        "",
        *_share_lines(measurement, candidates),
    ]
    proposed = candidates[list(candidates)[-1]]
    temperature, weights = resolved(proposed)
    preset = PRESETS[proposed.preset]
    named = [f"{name} {weight:g}" for name, weight in zip(WEIGHTS, weights, strict=True)]
    times = [f"{name} x {w / preset[name]:.2g}" for name, w in zip(WEIGHTS, weights, strict=True)]
    return [
        *lines,
        "",
        f"proposed: T {temperature:g}, {', '.join(named)}",
        f"which is {proposed.preset} with {', '.join(times)}",
        *(f"warning: {warning}" for warning in warnings_of(measurement, candidates)),
    ]


def _attention_lines(measurement: Measurement) -> list[str]:
    levels = [f"level {index}" for index in range(len(measurement.activation))]
    areas = next(iter(measurement.attention.values()))
    table = [
        ["the teacher's maps", *levels],
        ["pixels", *(str(level.area) for level in areas)],
        ["mean |F|", *(f"{value:.3g}" for value in measurement.activation)],
    ]
    for temperature, spread in sorted(measurement.attention.items()):
        table.append([f"T {temperature:g}: strongest pixel takes", *(f"{level.peak:.0%}" for level in spread)])
        table.append(["  attention is as on pixels", *(f"{level.pixels:.1f}" for level in spread)])
    return aligned(table)


def _share_lines(measurement: Measurement, candidates: dict[str, FGDConfig]) -> list[str]:
    levels = [f"level {index}" for index in range(len(measurement.activation))]
    table = [["weights", "T", "term", *levels, "sum"]]
    for name, config in candidates.items():
        shares, heading = measurement.shares(config), [name, f"{resolved(config)[0]:g}"]
        for term, column in zip(TERMS, shares.T, strict=True):
            table.append([*heading, term, *map(_number, column.tolist()), _number(float(column.sum()))])
            heading = ["", ""]
        table.append(["", "", "all", *map(_number, shares.sum(dim=1).tolist()), _number(float(shares.sum()))])
    return aligned(table)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def warnings_of(measurement: Measurement, candidates: dict[str, FGDConfig]) -> list[str]:
    """What a user should know: attention on single pixels, terms that could not be measured, one level with nearly all.

    Args:
        measurement, candidates: as for ``report``.
    """
    found = []
    for temperature in sorted({resolved(config)[0] for config in candidates.values()}):
        names = ", ".join(name for name, config in candidates.items() if resolved(config)[0] == temperature)
        level, worst = max(enumerate(measurement.attention[temperature]), key=lambda item: item[1].peak)
        if worst.peak > ONE_PIXEL and worst.area > 1:
            found.append(
                f"T = {temperature:g} ({names}): one pixel of {worst.area} takes {worst.peak:.0%} of the teacher's "
                f"attention on level {level}; take a higher T"
            )
    proposed = candidates[list(candidates)[-1]]
    shares = measurement.shares(proposed)
    for term, name, share in zip(TERMS, WEIGHTS, shares.sum(dim=0).tolist(), strict=True):
        if share == 0 and getattr(proposed, name) != 0:
            found.append(f"{term} is 0 on these images, so {name} only keeps the preset's ratio; measure more batches")
    return found + _level_warning(measurement, proposed, shares.sum(dim=1))


def _level_warning(measurement: Measurement, proposed: FGDConfig, levels: Tensor) -> list[str]:
    areas = levels.new_tensor([level.area for level in next(iter(measurement.attention.values()))])
    share = levels / levels.sum()
    largest = int(share.argmax())
    if len(levels) == 1 or share[largest] < ONE_LEVEL or proposed.level_weights is not None:
        return []
    evened = levels / areas / (levels / areas).sum()
    return [
        f"level {largest} has {share[largest]:.0%} of the loss, because its map has the most pixels; "
        f"--model.fgd.level_weights=inverse_area leaves it {evened[largest]:.0%} (calibrate with it, then compare)"
    ]


def overlay(proposed: FGDConfig, measurement: Measurement, command: str) -> str:
    """The proposal as a configuration file for ``fit``.

    Args:
        proposed: the weights.
        measurement: they come from.
        command: that made them.
    """
    shares = measurement.shares(proposed).sum(dim=0).tolist()
    named = ", ".join(f"{term} {share:.2g}" for term, share in zip(TERMS, shares, strict=True))
    differs = {name: value for name, value in asdict(proposed).items() if value != getattr(FGDConfig(), name)}
    content = yaml.safe_dump({"model": {"fgd": {"preset": proposed.preset} | differs}}, sort_keys=False)
    return (
        f"# {command}\n# The terms on {measurement.images} images: {named} times the detector's own loss, "
        f"{measurement.detector_loss:.3g}.\n{content}"
    )
