"""Losses that stay what they are and parameters without a gradient: training that goes on and cannot succeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from .steps import ends_a_step

STEPS = 50  # in a row, before anything is said
LOOK_EVERY = 5  # steps; the gradients of all parameters are looked at
SAME = 1e-6  # relative difference of two steps' losses that counts as none
PAGE = "docs/tutorials/distil-your-own.md, 'When the student is no better'"


class StandstillWarning(pl.Callback):
    """Warns once of each of the student's losses that is the same in 50 steps in a row, and once of its parameters
    whose gradient was exactly 0 in as many.

    Counts are kept on the training's device and read every 50 steps, so that no step waits for it.
    """

    def __init__(self) -> None:
        self.previous: Tensor | None = None
        self.same: Tensor | None = None  # by loss: steps in a row
        self.zero: Tensor | None = None  # by parameter: looks in a row
        self.parameters: dict[str, Tensor] = {}
        self.told: set[str] = set()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if trainer.global_step % LOOK_EVERY or trainer.global_rank:
            return
        if not self.parameters:
            trained = pl_module.detector.named_parameters()
            self.parameters = {n: p for n, p in trained if p.requires_grad and p.grad is not None}
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters.values()]
        if not gradients:
            return
        zero = torch.stack([norm == 0 for norm in torch._foreach_norm(gradients, float("inf"))])
        self.zero = zero * (zero + (0 if self.zero is None else self.zero))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank or not ends_a_step(trainer, batch_idx):
            return
        losses: Mapping[str, Tensor] = pl_module.own_losses
        now = torch.stack([loss.float() for loss in losses.values()])
        if self.previous is not None and self.previous.shape == now.shape:
            alike = (now - self.previous).abs() <= SAME * now.abs()
            self.same = alike * (alike + (0 if self.same is None else self.same))
        self.previous = now
        if trainer.global_step and trainer.global_step % STEPS == 0:
            self._tell(losses)

    def _tell(self, losses: Mapping[str, Tensor]) -> None:
        same = [] if self.same is None else self.same.tolist()
        for name, steps in zip(losses, same, strict=False):
            if steps >= STEPS - 1 and name not in self.told:
                self.told.add(name)
                value = f"{float(losses[name]):.4f}"
                rank_zero_warn(
                    f"{name} was {value} in {STEPS} steps in a row: that part of the student learns nothing. Another "
                    f"seed, a lower learning rate or a warm-up may help ({PAGE})"
                )
        looks = [] if self.zero is None else self.zero.tolist()
        still = [n for n, count in zip(self.parameters, looks, strict=False) if count >= STEPS // LOOK_EVERY]
        new = [name for name in still if name not in self.told]
        if new:
            self.told.update(new)
            rank_zero_warn(
                f"the gradient of {len(new)} of the student's {len(self.parameters)} trained parameters was exactly 0 "
                f"over {STEPS} steps, of {', '.join(new[:3])}{' and others' if len(new) > 3 else ''}: they learn "
                f"nothing ({PAGE})"
            )
