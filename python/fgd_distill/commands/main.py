"""The command ``fgd-distill``. What a command needs is imported when it runs, so that help and slips cost no time."""

from __future__ import annotations

import errno
import itertools
import json
import signal
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from ..shipped import CONFIGS
from .late_metrics import load_late

PRINTING = {"-h", "--help", "--help-all", "--version", "--print_config"}
# No room, or no right to write.
STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EISDIR}


@dataclass(frozen=True)
class Command:
    """One of the commands.

    Args:
        summary: a line for the usage.
        function: that it runs, as ``module:function``; the module's name is relative to this package.
        parses: whether the function takes the list of options. Otherwise they are its own arguments, and its docstring
            is their help.
        many: its last argument without a default is a list, which takes all words before the first option.
    """

    summary: str
    function: str
    parses: bool = False
    many: bool = False


COMMANDS = {
    "fit": Command("trains a detector, alone or with a teacher", "commands.fit:fit", parses=True),
    "validate": Command("evaluates a checkpoint by COCO metrics", "commands.fit:validate", parses=True),
    "predict": Command("writes the detections on a folder of images as COCO results", "commands.predict:predict"),
    "make-digits": Command("makes the digits data set", "digits.dataset:make_digits"),
    "export-student": Command(
        "writes the student of a checkpoint as a plain state dict", "detectors.checkpoint:export_student"
    ),
    "calibrate": Command(
        "proposes the loss's temperature and weights for two detectors", "commands.calibrate:calibrate", parses=True
    ),
    "compare": Command(
        "trains a student alone and with its teacher, over seeds, and compares", "commands.compare:compare", parses=True
    ),
    "profile": Command("measures what each part of a training step costs", "commands.profile:profile", parses=True),
    "doctor": Command(
        "reports versions and backends, checks them, and says what would be faster", "commands.doctor:doctor"
    ),
    "ablate": Command("runs the paper's ablations on the digits data", "digits.ablations:ablate"),
    "show-attention": Command(
        "draws where teacher, student and distilled student look", "pictures.attention:show_attention"
    ),
    "plot-training": Command("draws the curves of each loss term", "pictures.curves:plot_training"),
    "plot-ap": Command("draws AP by object size", "pictures.bars:plot_ap"),
    "errors": Command(
        "tells which kinds of errors cost a detector its precision", "commands.error_analysis:errors", many=True
    ),
}
USAGE = """usage: fgd-distill <command> [options]      (fgd-distill <command> --help lists them)
       fgd-distill --version

{commands}

{configured}

{configs}
"""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point.

    Args:
        args: the command and its options; None takes the process's.
    """
    if args is None:
        args = sys.argv[1:]
        if (not args or PRINTING & set(args)) and hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as other commands do: `--help | head` ends without a word
    args = list(args)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args == ["--version"]:
        from .doctor import version

        version()
        return
    name, options = args[0], args[1:]
    if name not in COMMANDS:
        sys.exit(f"fgd-distill: expected one of the commands {', '.join(COMMANDS)}; got {name!r}")
    if {"-h", "--help"} & set(options):
        from .help import help_page

        print(help_page(name, COMMANDS[name].function))
        return
    if "--help-all" not in options:
        from .slips import slip

        if told := slip(name, COMMANDS[name].function, COMMANDS[name].parses, options):
            print(f"fgd-distill {name}: {told}", file=sys.stderr)
            sys.exit(2)
    try:
        run_command(name, ["--help" if option == "--help-all" else option for option in options])
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        from ..errors import FGDError  # whatever raises it has loaded torch already; --help must not

        if isinstance(error, FGDError):
            sys.exit(f"fgd-distill {name}: {error}")
        if isinstance(error, OSError) and error.errno in STORAGE:  # of a log or another file that a library writes
            sys.exit(f"fgd-distill {name}: {error.filename or 'a file'}: {error.strerror}")
        if type(error).__name__ == "MisconfigurationException":  # Lightning's, of options that do not fit each other
            sys.exit(f"fgd-distill {name}: {error}")
        raise


def usage() -> str:
    """All commands, and the shipped configurations."""
    width = max(map(len, COMMANDS))
    configured = [name for name, command in COMMANDS.items() if command.parses]
    names = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    return USAGE.format(
        commands="\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        configured=textwrap.fill(
            f"{', '.join(configured[:-1])} and {configured[-1]} take --config FILE, more than once: later files and "
            "options win. Files shipped with the package are found by their names:",
            118,
        ),
        configs=textwrap.fill(names, 116, initial_indent="  ", subsequent_indent="  "),
    )


def run_command(name: str, options: Sequence[str]) -> None:
    """Runs a command of the table."""
    load_late()
    module, _, attribute = COMMANDS[name].function.partition(":")
    function = getattr(import_module(f"fgd_distill.{module}"), attribute)
    if COMMANDS[name].parses:
        function(options)
    else:
        from jsonargparse import auto_cli

        options = _gathered(options) if COMMANDS[name].many else options
        auto_cli(function, args=list(options), prog=f"fgd-distill {name}", allow_abbrev=False)


def _gathered(options: Sequence[str]) -> list[str]:
    """The words after the first and before the first option as one list, as the parser reads it."""
    words = list(itertools.takewhile(lambda word: not word.startswith("--"), options))
    given = words[1:] if len(words) != 2 or not words[1].startswith(("[", "{")) else []
    return [*words[:1], json.dumps(given), *options[len(words) :]] if given else list(options)


if __name__ == "__main__":
    main()
