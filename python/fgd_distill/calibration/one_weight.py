"""The one weight of a loss that has no more, or whose terms keep their authors' ratios: found by its size alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from torch import Tensor

from ..criteria import CriterionConfig
from ..data.datamodule import Batch
from ..distiller import DetectionDistiller
from ..errors import FGDValueError
from ..text_table import aligned
from .walk import walk


@dataclass(frozen=True)
class Sizes:
    """What was measured, a mean over batches.

    Args:
        images: number of images.
        detector: the student's own loss.
        names: of the terms.
        terms: (L, number of terms), each level's at a weight of 1.
    """

    images: int
    detector: float
    names: Sequence[str]
    terms: Tensor


def measure_sizes(distiller: DetectionDistiller, batches: Sequence[Batch]) -> Sizes:
    """Runs both detectors over the batches, without training; see ``walk``.

    Raises:
        ValueError: no batch, or a loss that is not finite and positive.
    """
    criterion: Any = copy.deepcopy(distiller.criterion)
    criterion.weight = 1.0
    seen = walk(distiller, batches, [criterion])
    sizes = Sizes(seen.images, sum(seen.detector.values()), criterion.loss_names, seen.terms[0])
    if not 0 < float(sizes.terms.sum()) < float("inf"):
        raise FGDValueError(f"criterion: expected terms above 0 and finite, got {float(sizes.terms.sum()):g}")
    return sizes


def propose_weight(sizes: Sizes, config: CriterionConfig, total: float) -> CriterionConfig:
    """``config`` with the weight, to two digits, that makes the loss ``total`` times the student's own."""
    return replace(config, weight=float(f"{total * sizes.detector / float(sizes.terms.sum()):.2g}"))


def report_weight(sizes: Sizes, proposed: CriterionConfig) -> list[str]:
    """The lines that ``calibrate`` prints."""
    shares = sizes.terms * (proposed.weight or 0.0) / sizes.detector
    table = [["term", *(f"level {index}" for index in range(len(shares))), "sum"]]
    for name, column in zip(sizes.names, shares.T, strict=True):
        table.append([name, *(f"{value:.3g}" for value in column.tolist()), f"{float(column.sum()):.3g}"])
    return [
        f"{sizes.images} images; the detector's own loss is {sizes.detector:.3g}",
        "",
        f"{proposed.name} with the proposed weight, as multiples of the detector's own loss, level by level:",
        "",
        *aligned(table),
        "",
        f"proposed: weight {proposed.weight:g}",
    ]


def weight_overlay(proposed: CriterionConfig, sizes: Sizes, command: str) -> str:
    """The proposal as a configuration file for ``fit``."""
    stated = {"name": proposed.name, "weight": proposed.weight}
    criterion = stated | ({"options": proposed.options} if proposed.options else {})
    content = {"model": {"fgd": None, "criterion": criterion}}  # in place of what the pair's file may have
    heading = f"# Made by: {command}\n# {sizes.images} images, the detector's own loss {sizes.detector:.3g}\n"
    return heading + yaml.safe_dump(content, sort_keys=False)
