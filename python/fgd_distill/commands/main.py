"""The command ``fgd-distill``."""

from __future__ import annotations

import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.cli import LightningCLI, SaveConfigCallback

import fgd_kernels

from ..data.datamodule import CocoDataModule
from ..detectors.checkpoint import export_student
from ..digits.ablations import ablate
from ..digits.dataset import make_digits
from ..pictures import plot_ap, plot_training, show_attention
from ..training.module import DetectionModule
from .fit_help import COMMANDS, help_page
from .predict import predict

CONFIGS = Path(__file__).parents[1] / "configs"
TOOLS: dict[str, Callable[..., object]] = {
    "predict": predict,
    "make-digits": make_digits,
    "export-student": export_student,
    "ablate": ablate,
    "show-attention": show_attention,
    "plot-training": plot_training,
    "plot-ap": plot_ap,
}
USAGE = """usage: fgd-distill <command> [options]      (fgd-distill <command> --help lists them)

  fit             trains a detector, alone or with a teacher
  validate        evaluates a checkpoint by COCO metrics
  predict         writes the detections on a folder of images as COCO results
  make-digits     makes the digits data set
  export-student  writes the student of a checkpoint as a plain state dict
  calibrate       proposes the loss's temperature and weights for two detectors
  ablate          runs the paper's ablations on the digits data
  show-attention  draws where teacher, student and distilled student look
  plot-training   draws the curves of each loss term
  plot-ap         draws AP by object size

fit, validate and calibrate take --config FILE, more than once: later files and options win. Files shipped with the
package are found by their names:

{configs}
"""
# Abbreviated options would make a slip of a name another option.
PARSER: dict[str, Any] = {"allow_abbrev": False}


class DistillCLI(LightningCLI):
    """LightningCLI with the two commands that train and evaluate."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in COMMANDS}


def run(args: Sequence[str]) -> LightningCLI:
    """Runs ``fit`` or ``validate`` with these arguments and returns the CLI, which has ``trainer`` and ``model``."""
    with warnings.catch_warnings():
        # It warns of args beside a command line. Here they are the command line, or a script's own call.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        return DistillCLI(
            DetectionModule,
            CocoDataModule,
            args=[package_config(arg) for arg in args],
            # The data module shares out its batches among processes by itself.
            trainer_defaults={"callbacks": [Timer()], "use_distributed_sampler": False},
            seed_everything_default=0,
            # Only a training owns its folder: validating with other options must not replace its config.yaml.
            save_config_callback=SaveConfigCallback if args[0] == "fit" else None,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs=PARSER | {name: PARSER | {"usage": _usage(name)} for name in COMMANDS},
        )


def main(args: Sequence[str] | None = None) -> None:
    """Entry point.

    Args:
        args: the command and its options; None takes the process's.
    """
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in ("-h", "--help"):
        names = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
        print(USAGE.format(configs=textwrap.fill(names, 116, initial_indent="  ", subsequent_indent="  ")))
        return
    command, options = args[0], args[1:]
    try:
        _run_command(command, options)
    except (ValueError, TypeError, OSError) as error:
        if not _is_our_own(error):
            raise
        sys.exit(f"fgd-distill {command}: {error}")


def _run_command(command: str, options: list[str]) -> None:
    if command in TOOLS:
        auto_cli(TOOLS[command], args=options, prog=f"fgd-distill {command}", **PARSER)
    elif command in COMMANDS:
        if {"-h", "--help"} & set(options):
            print(help_page(command))
        else:
            run([command, *("--help" if option == "--help-all" else option for option in options)])
    elif command == "calibrate":
        from .calibrate import calibrate  # here, because it builds on DistillCLI

        calibrate(options)
    else:
        expected = ", ".join([*COMMANDS, "calibrate", *TOOLS])
        sys.exit(f"fgd-distill: expected one of the commands {expected}; got {command!r}")


def _is_our_own(error: BaseException) -> bool:
    """Whether one of this project's checks raised it: its message says all, and a traceback would hide it."""
    frames = traceback.extract_tb(error.__traceback__)
    packages = {Path(__file__).parents[1], Path(fgd_kernels.__file__).parent}
    if not frames or not (frames[-1].line or "").startswith("raise "):
        return False
    return bool(packages & set(Path(frames[-1].filename).parents))


def _usage(command: str) -> str:
    return f"fgd-distill {command} --config FILE [--config FILE ...] [--<option> VALUE ...]"


def package_config(arg: str) -> str:
    """The shipped configuration called ``arg``, unless the user has a file of that name; else ``arg`` itself."""
    option, equals, value = arg.rpartition("=")
    shipped = CONFIGS / value
    if value.endswith((".yaml", ".yml")) and not Path(value).is_file() and shipped.is_file():
        return f"{option}{equals}{shipped}"
    return arg


if __name__ == "__main__":
    main()
