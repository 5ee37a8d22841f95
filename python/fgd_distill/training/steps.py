"""Where in a training a batch stands: not after every one a checkpoint holds all that it takes to go on."""

from __future__ import annotations

import math
import time

import pytorch_lightning as pl


def ends_a_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this batch; otherwise its gradients wait for those of further batches."""
    return bool(trainer.is_last_batch) or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_is_due(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a validation comes between this batch and the next one."""
    epochs = trainer.check_val_every_n_epoch  # None: the interval runs on over epochs
    if not trainer.enable_validation or (epochs is not None and (trainer.current_epoch + 1) % epochs):
        return False
    seconds = getattr(trainer, "_val_check_time_interval", None)  # of an interval like "00:10:00"
    if seconds is not None:
        begun: float = getattr(trainer, "_last_val_time")  # noqa: B009
        return time.monotonic() - begun >= seconds
    every = trainer.val_check_batch or math.inf
    if every == math.inf:
        return bool(trainer.is_last_batch)
    return ((trainer.fit_loop.total_batch_idx if epochs is None else batch_idx) + 1) % every == 0
