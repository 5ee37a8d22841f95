"""What a training prints: a table after each validation, and one progress bar for the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.trainer.states import TrainerFn

from ..files import writing
from ..text_table import aligned

SHOWN = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "AP_small": "small", "AP_medium": "medium", "AP_large": "large"}
WIDTH = 110  # of the table by category, in characters


class ValidationTable(Callback):
    """Prints AP, also by object size and by category, after each validation, with the best so far."""

    def __init__(self) -> None:
        self.best: tuple[float, int] | None = None  # AP, and the optimizer steps after which it was reached

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or "val/AP" not in trainer.callback_metrics:
            return
        metrics = {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()}
        step, found = trainer.global_step, metrics["AP"]
        fitting = trainer.state.fn == TrainerFn.FITTING
        # nan, of annotations without objects, is no result.
        if fitting and (self.best is None or found > self.best[0]) and not math.isnan(found):
            self.best = found, step
        if not trainer.is_global_zero:
            return
        title = f"validation after {step} steps" if fitting else "validation"
        if fitting and self.best is not None:
            title += f"; best AP so far {self.best[0]:.1f}, after {self.best[1]} steps"
        lines = ["", title, *validation_table(metrics, pl_module.evaluator.category_ap)]
        bar = trainer.progress_bar_callback
        (bar.print if isinstance(bar, TQDMProgressBar) and bar.is_enabled else print)("\n".join(lines))


def validation_table(metrics: Mapping[str, float], categories: Mapping[str, float]) -> list[str]:
    """The lines of a validation's results, in percent; a dash where there is no object.

    Args:
        metrics: as ``CocoEvaluator.compute`` returns them.
        categories: AP by the category's name.
    """
    rows = [["", *SHOWN.values()], ["boxes", *(_percent(metrics[name]) for name in SHOWN)]]
    if "AP_mask" in metrics:
        rows.append(["masks", *(_percent(metrics[f"{name}_mask"]) for name in SHOWN)])
    lines = aligned(rows)
    if len(categories) > 1:
        cells = aligned([[name, _percent(value)] for name, value in categories.items()])
        columns = max(1, WIDTH // (len(cells[0]) + 4))
        rowed = [cells[start : start + columns] for start in range(0, len(cells), columns)]
        lines += ["AP by category", *("    ".join(row) for row in rowed)]
    return lines


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


class RunProgressBar(TQDMProgressBar):
    """One bar for the whole training, in optimizer steps; Lightning's begins anew with each epoch."""

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_start()
        steps = trainer.estimated_stepping_batches
        bar = self.train_progress_bar
        bar.reset(total=None if math.isinf(steps) else int(steps))
        bar.initial = bar.n = trainer.global_step  # the rate of a resumed training is that of its own steps

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        bar = self.train_progress_bar
        if self._should_update(trainer.global_step, bar.total):
            bar.n = trainer.global_step
            bar.set_postfix(self.get_metrics(trainer, pl_module))


def with_run_progress(trainer: pl.Trainer) -> None:
    """Puts ``RunProgressBar`` in the place of the bar that Lightning chose, if it chose one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for index, callback in enumerate(callbacks):
        if type(callback) in (TQDMProgressBar, RichProgressBar):
            callbacks[index] = RunProgressBar(getattr(callback, "refresh_rate", 1))


def with_named_logs(trainer: pl.Trainer) -> None:
    """Has errors of writing a log say where it lies: of a file that is open, the system tells no name."""
    for logger in trainer.loggers:
        logger.save = partial(_save_log, logger, logger.save)  # type: ignore[method-assign]


def _save_log(logger: Logger, save: Callable[[], None]) -> None:
    with writing(Path(logger.log_dir or logger.save_dir or ".", "the log")):
        save()
