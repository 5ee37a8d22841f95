"""Finding parameters that no optimizer holds, so that they would keep their initial values without a word."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def missing_parameters(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """Names of the trainable parameters of ``model`` that are in none of ``optimizers``."""
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]


class ChangeWatch:
    """Warns, once, if the student's parameters change from step to step and the criterion's do not.

    It compares values, so it needs no optimizer and sees what any of them does, fused ones too, whose updates leave no
    trace in the tensors' version counters. A step that updates nothing (gradient accumulation, a skipped step under
    AMP, a rate of 0) tells it nothing. On a GPU each look waits for the device; usually there are two.

    Args:
        patience: updates of the student after which it doubts. As soon as the criterion changes it stops looking.
    """

    LOOKED_AT = 16  # parameters of the student

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience
        self.done = False
        self._before: tuple[Tensor, Tensor] | None = None

    def look(self, student: nn.Module, criterion: nn.Module) -> bool:
        """Whether it doubts, which is once. To be called in every step that distils, before it updates anything."""
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if self.done or capturing or not torch.is_grad_enabled():
            return False
        ours, theirs = ([p for p in model.parameters() if p.requires_grad] for model in (student, criterion))
        if not ours or not theirs:
            self.done = True
            return False
        now = _sums(ours[:: -(-len(ours) // self.LOOKED_AT)]), _sums(theirs)
        before, self._before = self._before, now
        if before is None or any(a.device != b.device for a, b in zip(before, now, strict=True)):
            return False
        if not now[0].isfinite().all():  # a student that is lost tells nothing
            return False
        if not torch.equal(now[1], before[1]):
            self.done, self._before = True, None
        elif not torch.equal(now[0], before[0]):
            self.patience -= 1
            if self.patience == 0:
                self.done, self._before = True, None
                return True
        return False

    def warn(self, terms: Iterable[Tensor], criterion: nn.Module) -> None:
        """Warns, unless the criterion's parameters cannot change because these terms do not depend on them."""
        parameters = [p for p in criterion.parameters() if p.requires_grad]
        total = torch.stack([term for term in terms if term.requires_grad]).sum()
        found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        if any(gradient is not None and bool(gradient.any()) for gradient in found):
            warnings.warn(
                "the student's parameters change, but the criterion's do not: it seems that the optimizer was made "
                "from student.parameters(); make it from distiller.parameters() (check_optimizer tells what lacks)",
                stacklevel=4,
            )


@torch.no_grad()
def _sums(parameters: list[nn.Parameter]) -> Tensor:
    """One number a parameter, which any update is all but certain to change."""
    device = parameters[0].device
    wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return torch.stack([p.detach().sum(dtype=wide).to(device) for p in parameters])
