"""The learning rate of detection recipes: a linear warm-up in steps, then drops at epochs."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import FGDValueError


@dataclass(frozen=True)
class LrMilestones:
    """A factor for the optimizer's learning rate.

    Args:
        milestones: epochs, counted from 0, at whose beginning the learning rate drops.
        gamma: the factor of each drop.
        warmup_steps: optimizer steps in which the factor rises linearly from ``warmup_start`` to 1; 0 for none.
        warmup_start: the factor of the first step.

    Raises:
        ValueError: milestones do not rise, or a number is out of range.
    """

    milestones: list[int] = field(default_factory=lambda: [16, 22])
    gamma: float = 0.1
    warmup_steps: int = 500
    warmup_start: float = 0.001

    def __post_init__(self) -> None:
        if any(m < 1 for m in self.milestones) or sorted(set(self.milestones)) != list(self.milestones):
            raise FGDValueError(f"milestones: expected rising numbers of epochs, got {self.milestones}")
        if self.warmup_steps < 0:
            raise FGDValueError(f"warmup_steps: expected 0 or more, got {self.warmup_steps}")
        for name, value in (("gamma", self.gamma), ("warmup_start", self.warmup_start)):
            if not 0 < value <= 1:
                raise FGDValueError(f"{name}: expected a factor above 0 and not above 1, got {value}")

    def factor(self, step: int, steps_an_epoch: float) -> float:
        """The factor at an optimizer step.

        Args:
            step: counted from 0.
            steps_an_epoch: optimizer steps of one pass over the data.
        """
        warmup = 1.0
        if step < self.warmup_steps:
            warmup = self.warmup_start + (1 - self.warmup_start) * step / self.warmup_steps
        return warmup * self.gamma ** sum(step >= milestone * steps_an_epoch for milestone in self.milestones)
