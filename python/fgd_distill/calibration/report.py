"""A calibration in words: what was measured, what is proposed, what a user should know."""

from __future__ import annotations

from dataclasses import asdict

import yaml

from fgd_kernels import PRESETS

from ..criterion import TERMS, WEIGHTS, FGDConfig, resolved
from ..text_table import aligned
from .measure import Measurement

ONE_PIXEL, ONE_LEVEL = 0.5, 0.7  # from here on one pixel takes most of the attention, one level most of a term
FLAT = 0.95  # of a map's pixels: attention on more is none
UNTRAINED = 0.2  # of the objects: a teacher that finds fewer has learnt little, or something else


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
        *_teacher_lines(measurement),
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
        table.append(["  of the map", *(f"{level.share:.0%}" for level in spread)])
    return aligned(table)


def _teacher_lines(measurement: Measurement) -> list[str]:
    if measurement.recall is None:
        return []
    return ["", f"the teacher finds {measurement.recall:.0%} of the objects (IoU of 0.5, any class)"]


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
    """What a user should know: ``doubts_of`` the measurement, and one level with nearly all of the loss.

    Args:
        measurement, candidates: as for ``report``.
    """
    return doubts_of(measurement, candidates) + _level_warning(measurement, candidates[list(candidates)[-1]])


def doubts_of(measurement: Measurement, candidates: dict[str, FGDConfig]) -> list[str]:
    """Why the proposal may be wrong: a teacher that finds nothing, attention on single pixels or on all alike, terms
    that could not be measured.

    Args:
        measurement, candidates: as for ``report``.
    """
    found = []
    if measurement.recall is not None and measurement.recall < UNTRAINED:
        found.append(
            f"the teacher finds {measurement.recall:.0%} of the objects of these images: it looks untrained, or as if "
            "trained for other images; are its weights the right ones? (fgd-distill validate)"
        )
    for temperature in sorted({resolved(config)[0] for config in candidates.values()}):
        names = ", ".join(name for name, config in candidates.items() if resolved(config)[0] == temperature)
        level, worst = max(enumerate(measurement.attention[temperature]), key=lambda item: item[1].peak)
        if worst.peak > ONE_PIXEL and worst.area > 1:
            found.append(
                f"T = {temperature:g} ({names}): one pixel of {worst.area} takes {worst.peak:.0%} of the teacher's "
                f"attention on level {level}; take a higher T"
            )
        spread = measurement.attention[temperature]
        flattest = min(spread, key=lambda level: level.share)
        if flattest.share > FLAT and flattest.area > 1:
            found.append(
                f"T = {temperature:g} ({names}): attention is as on {flattest.pixels:.1f} of {flattest.area} pixels or "
                "flatter on every level, and weights nothing; take a lower T"
            )
    proposed = candidates[list(candidates)[-1]]
    shares = measurement.shares(proposed)
    for term, name, share in zip(TERMS, WEIGHTS, shares.sum(dim=0).tolist(), strict=True):
        if share == 0 and getattr(proposed, name) != 0:
            found.append(f"{term} is 0 on these images, so {name} only keeps the preset's ratio; measure more batches")
    return found


def _level_warning(measurement: Measurement, proposed: FGDConfig) -> list[str]:
    levels = measurement.shares(proposed).sum(dim=1)
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
    if proposed.normalise is not None:
        return f"# {command}\n# Measured on {measurement.images} images.\n{content}"
    return (
        f"# {command}\n# The terms on {measurement.images} images: {named} times the detector's own loss, "
        f"{measurement.detector_loss:.3g}.\n{content}"
    )
