"""The loss's terms at chosen shares of the detector's own loss, in place of weights that fit one pair of detectors."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fgd_kernels import FGDLoss

from .errors import FGDTypeError, FGDValueError
from .processes import sum_over_processes

SHARES = (2.0, 0.15, 0.1, 0.75)
"""Of the foreground, background, attention and global term, 3 in all: what ``calibrate`` came to on the digits pair."""

_MOST = 1e30  # of a share; beyond it float32 has no room for terms


class DetectorShares(nn.Module):
    """Keeps the terms of a loss at shares of the detector's own, by a slowly moving average of both.

    Each term is multiplied by a detached factor: its share times the mean of the detector's loss over its own mean.
    Over the first ``window`` batches these are plain means, which begin at the shares exactly; then older batches fade.
    Several processes share their means. All numbers stay on the device, and in the state dict, so that a training
    resumes as it was. Without gradient, as in a validation, and in eval mode a batch is not counted.

    A term counts where it is above 0: the foreground's mean is one of batches with objects. Before the detector's loss
    was ever above 0 it is taken as 1. Batches in which any of them is infinite or NaN do not count.

    Args:
        shares: one number a term, >= 0.
        window: batches, at least 1.

    Raises:
        TypeError, ValueError: they are no such numbers, or ``forward`` gets another number of terms.
    """

    averages: Tensor
    """(1 + terms,), float32: of the detector's own loss and of the terms without factors."""
    counts: Tensor
    """The same: batches that counted."""

    def __init__(self, shares: Sequence[float], window: int = 50) -> None:
        super().__init__()
        if not isinstance(shares, Sequence) or not all(_is_number(share) for share in shares):
            raise FGDTypeError(f"shares: expected a list of numbers, one a term, got {shares!r}")
        if not all(0 <= share < _MOST for share in shares):
            raise FGDValueError(f"shares: expected finite numbers >= 0, got {shares!r}")
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise FGDValueError(f"window: expected a number of batches, at least 1, got {window!r}")
        self.shares, self.window = tuple(shares), window
        self.register_buffer("averages", torch.zeros(1 + len(self.shares)))
        self.register_buffer("counts", torch.zeros(1 + len(self.shares)))

    def forward(self, terms: Mapping[str, Tensor], detector_loss: Tensor) -> dict[str, Tensor]:
        """The terms times their factors.

        Args:
            terms: 0-dim, by name, in the order of the shares.
            detector_loss: 0-dim, of the same batch: the sum of the detector's own losses.
        """
        factors = self.factors(terms, detector_loss)
        return {name: term * factor for (name, term), factor in zip(terms.items(), factors.unbind(), strict=True)}

    def factors(self, terms: Mapping[str, Tensor], detector_loss: Tensor) -> Tensor:
        """Counts a batch, and returns one factor a term, float32 without gradient; see ``forward``."""
        if len(terms) != len(self.shares):
            raise FGDValueError(f"terms: expected {len(self.shares)}, as there are shares, got {', '.join(terms)}")
        counting = self.training and torch.is_grad_enabled()
        with torch.no_grad():
            batch = torch.stack([detector_loss.detach().float(), *(term.detach().float() for term in terms.values())])
            averages, counts = self._counted(batch.to(self.averages.device), together=counting)
            if counting:
                self.averages.copy_(averages)
                self.counts.copy_(counts)
            own, means = averages[0], averages[1:]
            own = torch.where(own > 0, own, torch.ones_like(own))
            factors = own * means.new_tensor(self.shares) / means
            return torch.where(means > 0, factors, torch.zeros_like(means))

    def _counted(self, batch: Tensor, together: bool) -> tuple[Tensor, Tensor]:
        """Averages and counts with one batch more; ``together``: with the other processes', which wait for it."""
        there = (batch > 0).to(batch.dtype)
        found = torch.stack([batch * there, there])
        total, processes = (sum_over_processes(found) if together else found).unbind()
        mean = total / processes.clamp(min=1)
        counts = self.counts + ((processes > 0) & total.isfinite().all())
        weight = (counts - self.counts) / counts.clamp(min=1, max=self.window)
        return torch.where(weight > 0, self.averages + (mean - self.averages) * weight, self.averages), counts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # They move with their owner and stay float32: unweighted terms may be beyond what half precision can hold.
        kept = self.averages, self.counts
        super()._apply(fn, recurse)
        self.averages, self.counts = (new.to(device=self.averages.device) for new in kept)
        return self

    def extra_repr(self) -> str:
        return f"shares={self.shares}, window={self.window}"


class NormalisedFGDLoss(FGDLoss):
    """An ``FGDLoss`` whose terms the distiller keeps at shares of the detector's own loss; alone they have no weights.

    Args:
        student_channels, teacher_channels, settings: as ``FGDLoss`` takes them, but for weights.
        shares: of the four terms together, split as in ``SHARES``, or of each; None takes ``SHARES``. Terms that the
            settings switch off have none; without ``split`` the background's is that of the whole area.

    Raises:
        TypeError, ValueError: the shares are no such numbers.
    """

    def __init__(
        self,
        student_channels: int | Sequence[int],
        teacher_channels: int | Sequence[int],
        shares: float | Sequence[float] | None = None,
        **settings: Any,
    ) -> None:
        switches = {name: settings[name] for name in ("split", "attention", "relation") if name in settings}
        chosen = checked_shares(shares, **switches)
        alpha, beta, gamma, lambda_ = (float(share > 0) for share in chosen)
        weights = {"alpha": alpha, "beta": beta, "gamma": gamma, "lambda_": lambda_}
        super().__init__(student_channels, teacher_channels, **settings | weights)
        self.shares = DetectorShares(chosen)


def checked_shares(
    shares: float | Sequence[float] | None, split: bool = True, attention: str = "both", relation: str = "gc"
) -> tuple[float, ...]:
    """One share a term, of what ``NormalisedFGDLoss`` takes."""
    there = (split, True, attention != "none", relation != "none")
    parts: tuple[float, ...] = SHARES if split else (0.0, SHARES[0] + SHARES[1], *SHARES[2:])
    parts = tuple(part if exists else 0.0 for part, exists in zip(parts, there, strict=True))
    if shares is None:
        return parts
    expected = f"shares: expected one number > 0, or {len(SHARES)} numbers >= 0, not all 0"
    given = list(shares) if isinstance(shares, Sequence) else [shares]
    if isinstance(shares, str | bytes) or not all(map(_is_number, given)):
        raise FGDTypeError(f"{expected}, got {shares!r}")
    counted = len(SHARES) if isinstance(shares, Sequence) else 1
    if len(given) != counted or not all(0 <= x < _MOST for x in given) or not any(given):
        raise FGDValueError(f"{expected}, got {shares!r}")
    if isinstance(shares, Sequence):
        if any(share > 0 and not exists for share, exists in zip(shares, there, strict=True)):
            raise FGDValueError(
                f"shares: expected 0 for what split={split}, attention={attention!r} and relation={relation!r} switch "
                f"off of (foreground, background, attention, global), got {shares!r}"
            )
        return tuple(float(share) for share in shares)
    return tuple(shares * part / sum(parts) for part in parts)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
