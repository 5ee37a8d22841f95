"""``fgd-distill calibrate``: proposes temperature and weights of the FGD loss for two detectors."""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pytorch_lightning.cli import LightningArgumentParser

from fgd_kernels import PRESETS

from ..calibration.measure import measure
from ..calibration.one_weight import measure_sizes, propose_weight, report_weight, weight_overlay
from ..calibration.propose import Bounds, propose
from ..calibration.report import overlay, report
from ..criterion import CriterionConfig, FGDConfig, resolved
from ..data.datamodule import Batch
from ..distiller import DetectionDistiller
from ..errors import FGDValueError
from ..files import check_writable, write_text
from ..teacher_settings import TeacherSettings
from ..training.run import DistillCLI


@dataclass
class Calibration:
    """What ``fgd-distill calibrate`` takes besides the configuration of ``fit``.

    Args:
        batches: how many training batches are measured.
        preset: whose ratios between the weights are kept: ``two_stage``, ``one_stage_anchor``,
            ``one_stage_anchor_free``, or ``auto``: that of the student's family.
        ratios: ``preset`` keeps its ratios as far as ``low`` and ``high`` allow, ``equal`` gives each term one share.
        temperature: T to find the weights for; None proposes one.
        total: all terms together, as a multiple of the detector's own loss.
        low, high: bounds of each term, as multiples of the detector's own loss.
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
            raise FGDValueError(f"batches: expected at least 1, got {self.batches}")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise FGDValueError(f"temperature: expected a number > 0, or None, got {self.temperature}")
        self.bounds = Bounds(self.total, self.low, self.high)


class CalibrateCLI(DistillCLI):
    """The configuration of ``fit`` with the settings of a calibration, parsed and built but not run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Calibration)
        # The files to calibrate for need not ask for the loss yet: its weights are what is to be found.
        parser.set_defaults({"model.fgd": {"preset": FGDConfig.preset}})

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        if self.config.model.criterion is not None:
            self.config.model.fgd = None
        if self.config.model.teacher is not None:  # as it is: here its predictions are asked for, too, in float32
            for name, value in asdict(TeacherSettings()).items():
                self.config.model.teacher[name] = value

    @property
    def settings(self) -> Calibration:
        return Calibration(**{field.name: self.config[field.name] for field in fields(Calibration)})

    @property
    def weights(self) -> FGDConfig:
        """As the configuration has them."""
        if self.config.model.fgd is None:
            raise FGDValueError(
                "model.fgd: expected weights, or no word of them, got null: there is no loss to calibrate"
            )
        return FGDConfig(**self.config.model.fgd.as_dict())


def calibrate(args: Sequence[str]) -> FGDConfig | CriterionConfig:
    """Measures the two detectors of a configuration, prints what it found, and writes the proposed weights.

    With model.criterion it finds the one weight that makes that loss --total times the detector's own.

    Args:
        args: the options of ``fgd-distill fit``, and those of ``Calibration``.

    Returns:
        the proposed weights, as they were written.

    Raises:
        ValueError: there is no teacher, no batch, or a setting is out of range.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    cli = CalibrateCLI(args)
    other = cli.config.model.criterion
    configured = cli.weights if other is None else None
    settings, distiller, device = cli.settings, cli.model.distiller, cli.trainer.strategy.root_device
    check_writable(settings.output)
    distiller.to(device).teacher_cache = None  # a few batches are not worth a cache on disk
    batches = _batches(cli.datamodule, settings.batches, device)
    command = shlex.join(["fgd-distill", "calibrate", *args])
    if configured is None:
        return _calibrate_criterion(distiller, batches, CriterionConfig(**other.as_dict()), settings, command)
    candidates = {name: FGDConfig(preset=name) for name in PRESETS}
    if resolved(configured) not in map(resolved, candidates.values()):
        candidates["as configured"] = configured
    temperatures = {resolved(candidate)[0] for candidate in candidates.values()}
    temperatures |= set() if settings.temperature is None else {settings.temperature}
    measurement = measure(distiller, batches, temperatures)
    told = distiller.adapter.preset(distiller.student) if settings.preset == "auto" else settings.preset
    start = replace(configured, preset=told or configured.preset)
    proposed = propose(measurement, start, settings.bounds, settings.temperature, settings.ratios == "equal")
    print("\n".join(report(measurement, candidates | {"proposed": proposed})))
    if proposed.normalise is not None:
        print("normalise: it finds the weights itself, so the file has the temperature alone")
        proposed = replace(proposed, alpha=None, beta=None, gamma=None, lambda_=None)
    _write(overlay(proposed, measurement, command), settings.output)
    return proposed


def _calibrate_criterion(
    distiller: DetectionDistiller, batches: list[Batch], config: CriterionConfig, settings: Calibration, command: str
) -> CriterionConfig:
    sizes = measure_sizes(distiller, batches)
    proposed = propose_weight(sizes, config, settings.total)
    print("\n".join(report_weight(sizes, proposed)))
    _write(weight_overlay(proposed, sizes, command), settings.output)
    return proposed


def _write(text: str, output: str) -> None:
    write_text(output, text)
    print(f"\nwrote {output}: give it to fit as the last --config after those given here")


def _batches(data: Any, count: int, device: Any) -> list[Batch]:
    """The first training batches, as a training with the same seed sees them."""
    data.setup("fit")
    return [data.transfer_batch_to_device(b, device, 0) for b in itertools.islice(data.train_dataloader(), count)]
