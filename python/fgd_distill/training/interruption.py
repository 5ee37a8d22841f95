"""What SIGTERM and Ctrl-C do to a training: it ends its step, writes a checkpoint, and its status says so.

Lightning by itself ends with status 0 after SIGTERM, and a script then goes on with an unfinished student.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.trainer.states import TrainerFn

from .steps import ends_a_step, validation_is_due

NAME = "interrupted-step={}.ckpt"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """The training was told to stop and has stopped. Its code is 128 plus the signal's number, as shells have it."""


class StopOnSignal(pl.Callback):
    """Ends the step that runs when SIGTERM or SIGINT comes, writes a checkpoint, prints its path and exits.

    A second signal ends the process at once. So does the first one before a training has begun, when there is nothing
    to keep, and in ``validate``. Of several processes one needs to get the signal; they agree on the step after which
    they stop, by one number that they exchange every step.

    The checkpoint lies beside those of ``ModelCheckpoint``, as ``interrupted-step=<steps>.ckpt``. Where
    ``trainer.enable_checkpointing`` is false, none is written.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.accumulates = False

    # Lightning sets handlers of its own after on_fit_start and puts the former ones back when it has ended. Its handler
    # of SIGTERM calls collectives from within, which can meet those of a step; so ours takes its place.

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as shells have it for what runs in the background
                    signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        _end_at_once()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            _end_at_once()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.accumulates = not ends_a_step(trainer, batch_idx)
        if not validation_is_due(trainer, batch_idx):  # who goes on from here would miss it; it is stopped itself
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_asked(trainer, validating=True)

    def _stop_if_asked(self, trainer: pl.Trainer, validating: bool = False) -> None:
        if self.accumulates:
            return  # a checkpoint has no gradients: those of this step would be lost
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        number = self.received or signal.SIGTERM  # another process got it
        path = None if trainer.sanity_checking else checkpoint_path(trainer, NAME.format(trainer.global_step))
        if path is not None:
            if validating:
                _begin_validation_anew(trainer)
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            print(f"fgd-distill fit: {number.name} ended the training after {trainer.global_step} steps", flush=True)
            written = "no checkpoint was written" if path is None else f"to go on: --ckpt_path={path}"
            print(f"fgd-distill fit: {written}", flush=True)
        raise Interrupted(0 if _is_watched(trainer) else 128 + number)


def _begin_validation_anew(trainer: pl.Trainer) -> None:
    """Says in the progress that a checkpoint keeps that this validation has stopped in its first batch. Lightning takes
    this place, between two batches, for its end, and would leave out what remains."""
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    for counts, before in (
        (progress.current, 0),
        (progress.total, progress.total.ready - progress.current.ready),
    ):
        counts.ready = counts.started = before + 1
        counts.processed = counts.completed = before


def _end_at_once() -> None:
    """From now on a signal ends the process, in the middle of an operation, too."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


def checkpoint_path(trainer: pl.Trainer, name: str) -> str | None:
    """Where a training writes a checkpoint of this name; None where it writes none at all."""
    callback: Any = trainer.checkpoint_callback
    if callback is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = getattr(callback, "dirpath", None) or trainer.default_root_dir
    return os.path.join(folder, name)


def _is_watched(trainer: pl.Trainer) -> bool:
    """Whether Lightning's first process started this one. If one of those fails, it kills all of them, itself too."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
