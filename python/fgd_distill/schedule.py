"""When the distillation loss counts, for which images, and how much."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import FGDTypeError, FGDValueError


@dataclass(frozen=True)
class Schedule:
    """A factor for the distillation loss that depends on the training step, and the images that are distilled.

    0 before ``start``, then rising linearly to 1 within ``ramp`` steps, and 0 again from ``stop`` on. While it is 0 the
    teacher isn't run, so such steps cost what the student alone costs.

    Args:
        start: the step, counted from 0, at which distillation begins.
        ramp: steps from 0 to 1; 0 begins with the full loss.
        stop: the first step without distillation; None never ends it.
        every: distils in one step of so many, the last, with so many times the loss. The others need no teacher.
        part: of each batch's images that is distilled, 0 < part <= 1, at least one. It is a run of neighbours that
            moves on from one step to the next. The teacher sees no others. The loss is a mean over images,
            so its weight stays.

    Raises:
        TypeError, ValueError: an argument is no such number, or out of range; the message names it.
    """

    start: int = 0
    ramp: int = 0
    stop: int | None = None
    every: int = 1
    part: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("ramp", self.ramp), ("stop", self.stop), ("every", self.every)):
            if value is None and name == "stop":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise FGDTypeError(f"{name}: expected a number of steps, an int, got {value!r}")
            if value < 0:
                raise FGDValueError(f"{name}: expected a number of steps >= 0, got {value}")
        if self.every < 1:
            raise FGDValueError(f"every: expected a number of steps >= 1, got {self.every}")
        if isinstance(self.part, bool) or not isinstance(self.part, int | float):
            raise FGDTypeError(f"part: expected a share of each batch's images, 0 < part <= 1, got {self.part!r}")
        if not 0 < self.part <= 1:
            raise FGDValueError(f"part: expected a share of each batch's images, 0 < part <= 1, got {self.part}")
        if self.stop is not None and self.stop <= self.start:
            raise FGDValueError(f"stop: expected a step after start={self.start}, or None, got {self.stop}")

    def factor(self, step: int) -> float:
        """The factor at a training step, 0..``every``."""
        if step < self.start or (self.stop is not None and step >= self.stop):
            return 0.0
        if (step - self.start) % self.every != self.every - 1:  # the last: loggers record each 20th step, too
            return 0.0
        return self.every * (1.0 if self.ramp == 0 else min((step - self.start) / self.ramp, 1.0))

    def images(self, step: int, count: int) -> slice:
        """Which of a batch's ``count`` images are distilled at a training step; the same ones whenever it is asked."""
        size = min(max(round(self.part * count), 1), count)
        runs = math.ceil(count / size) if count else 1
        run = max(step - self.start, 0) // self.every % runs
        start = min(run * size, count - size)
        return slice(start, start + size)
