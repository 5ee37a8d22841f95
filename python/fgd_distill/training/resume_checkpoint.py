"""A checkpoint between validations, so that a training that is killed before the first one can go on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from .interruption import checkpoint_path
from .steps import ends_a_step, validation_is_due

NAME = "resume.ckpt"
FIRST = 60.0  # seconds of training before the first
COST = 0.01  # of the training's time that writing may take
AGREE_EVERY = 10  # steps; processes exchange one number to write at the same step


class ResumeCheckpoint(pl.Callback):
    """Writes ``resume.ckpt`` beside the other checkpoints after a minute of training, and again and again.

    It replaces the former one, as often as takes a hundredth of the time, but not more than once a minute, and is
    removed when the training has ended. Where ``trainer.enable_checkpointing`` is false, none is written.
    """

    def __init__(self) -> None:
        self.due = 0.0
        self.written: str | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.due = time.monotonic() + FIRST

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_a_step(trainer, batch_idx) or trainer.global_step % AGREE_EVERY:
            return  # a checkpoint has no gradients: those of a step that is not complete would be lost
        if validation_is_due(trainer, batch_idx):
            return  # who goes on from here would miss it
        path = checkpoint_path(trainer, NAME)
        if path is None or not trainer.strategy.reduce_boolean_decision(time.monotonic() >= self.due, all=False):
            return
        start = time.monotonic()
        trainer.save_checkpoint(path)
        self.written = path
        self.due = time.monotonic() + max(FIRST, (time.monotonic() - start) / COST)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = checkpoint_path(trainer, NAME)
        if path is None or path not in (self.written, trainer.ckpt_path):  # written, or gone on from
            return
        if trainer.is_global_zero and os.path.exists(path):
            Path(path).unlink()
