"""Where in a training a batch stands: not after every one a checkpoint holds all that it takes to go on."""

from __future__ import annotations

import math

import pytorch_lightning as pl


def ends_a_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this batch; otherwise its gradients wait for those of further batches."""
    return bool(trainer.is_last_batch) or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_is_due(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a validation comes between this batch and the next one."""
    if not trainer.enable_validation:
        return False
    every = trainer.val_check_batch or math.inf
    if trainer.check_val_every_n_epoch is None:  # the interval runs on over epochs
        return (trainer.fit_loop.total_batch_idx + 1) % every == 0
    return bool(trainer.is_last_batch) or (batch_idx + 1) % every == 0
