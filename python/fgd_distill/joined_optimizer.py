"""A criterion in the optimizer of a trainer that knows nothing of it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from .errors import FGDValueError

KEY = "fgd_criterion"
"""Of the criterion's state dict in that of the optimizer."""


def join(optimizer: Optimizer, criterion: nn.Module, **options: Any) -> None:
    """Lets the optimizer train the criterion, save it in its state dict and restore it from there.

    Trainers save and restore their model and their optimizer. The model should stay the plain student, so the
    criterion goes with the optimizer, as its own numbers do.

    Args:
        optimizer: holds the student's parameters; the criterion's that it lacks are added as a group.
        criterion: its state dict is kept in its own precision under ``KEY``.
        options: of that group, such as ``lr`` and ``weight_decay``.

    Raises:
        ValueError: by ``optimizer.load_state_dict``, if the state dict has no criterion or another one.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    lacking = [p for p in criterion.parameters() if p.requires_grad and id(p) not in held]
    if lacking:
        optimizer.add_param_group({**options, "params": lacking})

    def keep(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, KEY: criterion.state_dict()}

    def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
        if KEY not in state:
            raise FGDValueError(
                f"optimizer state: expected the criterion's tensors under {KEY!r}, got the keys {sorted(state)}; it "
                "was saved by a training without distillation, so start a new one from its weights instead of resuming"
            )
        try:
            criterion.load_state_dict(state[KEY])
        except RuntimeError as error:
            raise FGDValueError(f"optimizer state: the criterion's tensors do not fit: {error}") from error

    optimizer.register_state_dict_post_hook(keep)
    optimizer.register_load_state_dict_pre_hook(restore)
