"""Temperature and weights that fit a measured pair of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fgd_kernels import PRESETS

from ..criterion import TERMS, WEIGHTS, FGDConfig
from ..errors import FGDValueError
from .measure import Measurement


@dataclass(frozen=True)
class Bounds:
    """What the terms of the loss may be, as shares of the detector's own loss.

    Args:
        total: all terms together.
        low, high: each term.

    Raises:
        ValueError: not 0 < low <= high, or a total that no terms within the bounds can have.
    """

    total: float = 3.0
    low: float = 0.1
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < float("inf"):
            raise FGDValueError(f"low, high: expected 0 < low <= high, got low={self.low} and high={self.high}")
        if not len(TERMS) * self.low <= self.total <= len(TERMS) * self.high:
            raise FGDValueError(
                f"total: expected {len(TERMS)} terms within low and high to sum to it, that is from "
                f"{len(TERMS) * self.low:g} to {len(TERMS) * self.high:g}, got {self.total}"
            )


def propose(
    measurement: Measurement,
    config: FGDConfig,
    bounds: Bounds,
    temperature: float | None = None,
    equal: bool = False,
) -> FGDConfig:
    """Temperature and weights for the measured pair.

    With ``equal`` every term gets the same share of the detector's own loss. Otherwise the preset's ratios are kept as
    far as the bounds allow: one factor scales all four weights, terms that leave the bounds are held there, and the
    factor is the one with which all terms together are ``bounds.total``.

    Args:
        measurement: of the pair.
        config: its preset gives the ratios; a weight that it sets to 0 stays 0.
        bounds: of the shares.
        temperature: a measured one; None proposes it, too.
        equal: the same share for every term.

    Returns:
        ``config`` with other temperature and weights; these have two digits.

    Raises:
        ValueError: no term of the loss is above 0 and finite.
    """
    temperature = measurement.temperature if temperature is None else temperature
    unit = (measurement.terms[temperature].sum(dim=0) / measurement.detector_loss).tolist()
    ratios = [PRESETS[config.preset][name] for name in WEIGHTS]
    off = [getattr(config, name) == 0 or (name == "lambda_" and config.relation == "none") for name in WEIGHTS]
    active = [not none and 0 < share < float("inf") for share, none in zip(unit, off, strict=True)]
    if not any(active):
        raise FGDValueError(f"expected terms of the loss above 0 and finite, got {dict(zip(TERMS, unit, strict=True))}")
    preset = [ratio * share for ratio, share, on in zip(ratios, unit, active, strict=True) if on]
    # Terms that are off or always 0 leave their part of the total to nobody.
    total = bounds.total * sum(active) / len(TERMS)
    factor, targets = _fit([1.0] * len(preset) if equal else preset, total, bounds)
    chosen, weights = iter(targets), []
    for ratio, share, none, on in zip(ratios, unit, off, active, strict=True):
        # A term that is 0 on these batches (no box in them, say) keeps its ratio: nothing better is known.
        weights.append(next(chosen) / share if on else 0.0 if none else factor * ratio)
    alpha, beta, gamma, lambda_ = (float(f"{weight:.2g}") for weight in weights)
    return replace(config, temperature=temperature, alpha=alpha, beta=beta, gamma=gamma, lambda_=lambda_)


def _fit(shares: Sequence[float], total: float, bounds: Bounds) -> tuple[float, list[float]]:
    """The factor with which shares, each held within the bounds, sum to ``total``, and those shares."""

    def held(factor: float) -> list[float]:
        return [min(max(factor * share, bounds.low), bounds.high) for share in shares]

    below, above = bounds.low / max(shares), bounds.high / min(shares)  # all at the lower, all at the upper bound
    for _ in range(200):  # by halves on a logarithmic scale, far beyond the two digits that are kept
        middle = (below * above) ** 0.5
        below, above = (middle, above) if sum(held(middle)) < total else (below, middle)
    return above, held(above)
