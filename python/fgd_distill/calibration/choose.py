"""Weights for a pair of detectors in somebody else's trainer: measured, proposed and set in one call."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset

from ..criterion import WEIGHTS, FGDConfig
from ..distiller import DetectionDistiller
from ..errors import FGDValueError
from ..processes import from_first_process
from .measure import measure
from .propose import Bounds, propose
from .report import doubts_of


def choose_weights(
    distiller: DetectionDistiller,
    batches: Sequence[tuple[Any, Any]],
    preset: str | None = None,
    total: float = Bounds.total,
    **settings: Any,
) -> FGDConfig:
    """Temperature and weights, as ``fgd-distill calibrate`` proposes them; the student is left as it was.

    Args:
        distiller: student, teacher and an ``FGDLoss``.
        batches: images and targets as the adapter takes them, on the distiller's device.
        preset: whose ratios are kept; None takes that of the student's family.
        total: what all terms together are at first, as a multiple of the detector's own loss: 0.4 to 8.
        settings: as ``fgd_distill.distil`` takes them; a temperature among them is kept.

    Warns:
        UserWarning: a teacher that looks untrained, attention on one pixel or on all alike, a term that is 0 on these
            batches (no boxes in them, say), whose weight is then no more than the preset's ratio.

    Raises:
        ValueError: no batch, losses that are not above 0 and finite, or a total that is out of range.
    """
    bounds = Bounds(total)
    known = {field.name for field in fields(FGDConfig)}
    chosen = {name: value for name, value in settings.items() if name in known}
    preset = preset or distiller.adapter.preset(distiller.student) or FGDConfig.preset
    config = FGDConfig(preset, **chosen)
    state = copy.deepcopy(distiller.student.state_dict())
    temperatures = [] if config.temperature is None else [config.temperature]
    measurement = measure(distiller, batches, temperatures)
    distiller.student.load_state_dict(state)  # its batch statistics have moved
    proposed = propose(measurement, config, bounds, config.temperature)
    for doubt in doubts_of(measurement, {"calibrated": proposed}):
        warnings.warn(doubt, stacklevel=2)
    return proposed


def find_weights(
    distiller: DetectionDistiller,
    batches: Sequence[tuple[Any, Any]],
    settings: Mapping[str, Any],
    total: float = Bounds.total,
) -> dict[str, float]:
    """What ``choose_weights`` chooses, by name, on every process what the first has; ``set_weights`` takes it.

    With ``normalise`` among the settings it is the temperature alone.
    """
    config = choose_weights(distiller, batches, total=total, **settings)
    names = ("temperature",) if config.normalise is not None else ("temperature", *WEIGHTS)
    return from_first_process({name: getattr(config, name) for name in names})


def set_weights(criterion: nn.Module, found: Mapping[str, float]) -> str:
    """Gives the loss what was found, and returns it for a log."""
    for name, value in found.items():
        setattr(criterion, name, value)
    return f"distil: calibrated to {', '.join(f'{name} {value:g}' for name, value in found.items())}"


def find_by_loader(
    distiller: DetectionDistiller,
    loader: Any,
    prepare: Callable[[Any], Any],
    settings: Mapping[str, Any],
    total: float = Bounds.total,
    batch_size: int | None = None,
    count: int = 4,
) -> dict[str, float]:
    """``find_weights`` by some batches of a trainer's loader, which knows nothing of it.

    Images are drawn at random out of its dataset, collated as it does, in this process. Its sampler, its processes and
    the random numbers go on as if nothing had been asked, so that a training that resumes sees the same batches.

    Args:
        distiller: as for ``choose_weights``.
        loader: of torch, or of that interface.
        prepare: makes a batch of it what the adapter takes, on the distiller's device.
        settings, total: as for ``choose_weights``.
        batch_size: None asks the loader.
        count: of batches.
    """
    return find_by_batches(distiller, lambda: _drawn(loader, batch_size, count), prepare, settings, total)


def find_by_batches(
    distiller: DetectionDistiller,
    batches: Callable[[], Iterable[Any]],
    prepare: Callable[[Any], Any],
    settings: Mapping[str, Any],
    total: float,
) -> dict[str, float]:
    """``find_weights`` by what ``batches()`` gives; the random numbers go on as if nothing had been asked."""
    with _random_numbers_of_its_own():
        return find_weights(distiller, [(prepare(batch), None) for batch in batches()], settings, total)


def _drawn(loader: Any, batch_size: int | None, count: int) -> Iterator[Any]:
    size = batch_size or loader.batch_size or loader.batch_sampler.batch_size
    if isinstance(loader.dataset, IterableDataset):
        samples = list(itertools.islice(loader.dataset, count * size))
    else:
        samples = [loader.dataset[index] for index in torch.randperm(len(loader.dataset))[: count * size].tolist()]
    whole = len(samples) // size * size or len(samples)
    for start in range(0, whole, size):
        yield loader.collate_fn(samples[start : start + size])


@contextlib.contextmanager
def _random_numbers_of_its_own() -> Iterator[None]:
    """The same ones on every process; afterwards those from outside go on."""
    held = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(held[0])
            np.random.set_state(held[1])


def total_of(weights: Any) -> float | None:
    """What a trainer's argument ``weights`` asks for: the total that is calibrated to, or None.

    Raises:
        ValueError: it is neither ``calibrate``, nor a total within bounds, nor None.
    """
    if weights is None:
        return None
    if weights == "calibrate":
        return Bounds.total
    if isinstance(weights, bool) or not isinstance(weights, int | float):
        raise FGDValueError(
            f"weights: expected 'calibrate', a multiple of the detector's own loss or None, got {weights!r}"
        )
    return Bounds(weights).total
