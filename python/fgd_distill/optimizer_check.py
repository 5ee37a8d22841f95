"""Finding parameters that no optimizer holds, so that they would keep their initial values without a word."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer


def missing_parameters(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """Names of the trainable parameters of ``model`` that are in none of ``optimizers``."""
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]


class ChangeWatch:
    """Warns, once, if the student's parameters change from step to step and the criterion's do not.

    It looks at the parameters' version counters, which every in-place update raises, also one by a rate of 0; so it
    needs no optimizer. A step that updates nothing (gradient accumulation, a skipped step under AMP) tells it nothing.

    Args:
        patience: updates of the student after which it speaks. As soon as the criterion changes it stops looking.
    """

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.done = False
        self._before: tuple[int, int] | None = None

    def look(self, student: nn.Module, criterion: nn.Module) -> None:
        """To be called in every training step, before it updates anything."""
        if self.done:
            return
        now = _versions(student), _versions(criterion)
        before, self._before = self._before, now
        if before is None:
            self.done = not any(p.requires_grad for p in criterion.parameters())
        elif now[1] != before[1]:
            self.done = True
        elif now[0] != before[0]:
            self.patience -= 1
            if self.patience == 0:
                self.done = True
                warnings.warn(
                    "the student's parameters change, but the criterion's do not: it seems that the optimizer was made "
                    "from student.parameters(); make it from distiller.parameters() (check_optimizer tells what lacks)",
                    stacklevel=4,
                )


def _versions(model: nn.Module) -> int:
    return sum(p._version for p in model.parameters() if p.requires_grad)
