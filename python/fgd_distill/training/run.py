"""Running a training from configuration files and options: the parser behind ``fit``, ``validate`` and their kin."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from ..data.datamodule import CocoDataModule
from ..errors import FGDFileNotFoundError
from ..files import write_text
from .bases import with_bases
from .interruption import StopOnSignal
from .module import DetectionModule
from .noise import be_quiet
from .reporting import ValidationTable, with_named_logs, with_run_progress
from .resume_checkpoint import ResumeCheckpoint
from .standstill import StandstillWarning
from .start_report import StartReport

SUBCOMMANDS = ("fit", "validate")
WORDS = ("last", "best", "hpc")  # Lightning's, in place of a checkpoint's path
# Abbreviated options would make a slip of a name another option.
PARSER: dict[str, Any] = {"allow_abbrev": False}
USAGE = "fgd-distill {command} --config FILE [--config FILE ...] [--<option> VALUE ...]"


class SaveWholeConfig(SaveConfigCallback):
    """Writes a run's config.yaml beside its target and renames it: the former one stays until the new one is whole.

    Folders with a protocol, such as ``s3://``, are left to Lightning.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = str(trainer.log_dir)  # asked in every process: the first one tells the others
        if "://" in folder:
            super().setup(trainer, pl_module, stage)
        elif trainer.is_global_zero and not self.already_saved:
            write_text(Path(folder, self.config_filename), self.parser.dump(self.config, skip_none=False))
        self.already_saved = True


class DistillCLI(LightningCLI):
    """LightningCLI with this package's model and data.

    Args:
        options: configurations and what is laid over them.
        command: what runs, ``fit`` or ``validate``; None builds trainer, model and data, and runs nothing.
    """

    def __init__(self, options: Sequence[str], command: str | None = None) -> None:
        self._command = command
        usages = {name: PARSER | {"usage": USAGE.format(command=name)} for name in SUBCOMMANDS}
        arguments = with_bases(options)
        be_quiet()
        whole_numbers_first(Trainer.__init__)
        with warnings.catch_warnings():
            # It warns of args beside a command line. Here they are the command line, or a script's own call.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().__init__(
                DetectionModule,
                CocoDataModule,
                args=arguments if command is None else [command, *arguments],
                run=command is not None,
                # The data module shares out its batches among processes by itself.
                trainer_defaults={
                    "callbacks": [
                        Timer(),
                        ResumeCheckpoint(),
                        StartReport(),
                        StopOnSignal(),
                        ValidationTable(),
                        StandstillWarning(),
                    ],
                    "use_distributed_sampler": False,
                    "enable_model_summary": False,  # in its place: StartReport
                },
                seed_everything_default=0,
                # Only a training owns its folder: validating with other options must not replace its config.yaml.
                save_config_callback=SaveWholeConfig if command == "fit" else None,
                save_config_kwargs={"overwrite": True},
                auto_configure_optimizers=False,
                parser_kwargs=PARSER | (usages if command else {}),
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in SUBCOMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--base", type=str | None, help="in a file: the configuration that it is laid over")
        if self._command is None:  # else Lightning adds them
            for name in ("ckpt_path", "weights_only"):
                parser.add_argument(f"--{name}", type=Any, help="in a file that a training wrote: left out here")

    def instantiate_trainer(self, **options: Any) -> Trainer:
        trainer = super().instantiate_trainer(**options)
        with_run_progress(trainer)
        with_named_logs(trainer)
        return trainer

    def _parse_ckpt_path(self) -> None:
        # Lightning reads the whole checkpoint here, for settings of the model, of which ours has none.
        pass

    def before_fit(self) -> None:
        self._check_ckpt_path()

    def before_validate(self) -> None:
        self._check_ckpt_path()

    def _check_ckpt_path(self) -> None:
        """Each run has a folder of its own, where Lightning finds nothing by these words: with ``last`` it would begin
        anew and say so in a warning among others."""
        word = self.config[self.subcommand].ckpt_path
        folders = [getattr(callback, "dirpath", None) for callback in self.trainer.checkpoint_callbacks]
        kept = any(folder and any(Path(folder).glob("*.ckpt")) for folder in folders)  # where a user has set dirpath
        if word in WORDS and not (word == "last" and kept):
            raise FGDFileNotFoundError(
                f"ckpt_path: expected a checkpoint's file, got the word {word!r}, by which none is found: a run writes "
                "into a folder of its own; give the path, such as runs/<name>/version_0/checkpoints/last.ckpt"
            )

    def before_instantiate_classes(self) -> None:
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        config.base = None  # the file that a training writes has everything, whatever it was built on
        if self.subcommand == "validate":  # the student alone
            config.model.inherit = False
            for name in ("teacher", "fgd", "criterion", "schedule", "teacher_cache"):
                config.model[name] = None


def whole_numbers_first(function: Callable) -> None:
    """Of parameters that are an int or a float the parser tries the int first: 1 batch is not 1.0, all of them.

    Up to Python 3.13 ``Optional[Union[int, float]]`` can be ``Union[float, int, None]``: typing keeps the first of two
    that are equal, and any module that is imported earlier may have written the other.
    """
    annotations = inspect.unwrap(function).__annotations__
    for name, kind in annotations.items():
        kinds = get_args(kind)
        if get_origin(kind) is Union and {int, float} <= set(kinds):
            annotations[name] = Union[(int, *(other for other in kinds if other is not int))]


def run(args: Sequence[str]) -> DistillCLI:
    """Runs ``fit`` or ``validate`` with these arguments and returns the CLI, which has ``trainer`` and ``model``."""
    return DistillCLI(args[1:], args[0])
