"""The page of ``fgd-distill <command> --help``, from the docstrings in the source: nothing is imported for it, because
what the commands need takes seconds to load. ``--help-all`` is the parser's own page, with Lightning's many options."""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from docstring_parser import Docstring, parse

PACKAGE = Path(__file__).parents[1]
DETECTOR = "detectors.by_name:DetectorConfig"
TEACHER = "teacher_settings:TeacherSettings"
CONFIGURED = (
    ("model", "training.module:DetectionModule"),
    ("model.student and model.teacher", DETECTOR),
    ("model.teacher", TEACHER),
    ("model.fgd", "criterion:FGDConfig"),
    ("model.criterion", "criteria.by_name:CriterionConfig"),
    ("model.schedule", "schedule:Schedule"),
    ("model.lr_milestones", "training.learning_rate:LrMilestones"),
    ("model.teacher_cache", "training.teacher_cache:CacheConfig"),
    ("data", "data.datamodule:CocoDataModule"),
)
"""Sections of a configuration, and the class that each builds."""
OWN = {
    "calibrate": "commands.calibrate:Calibration",
    "compare": "commands.compare:Comparison",
    "profile": "commands.profile:Profiling",
}
"""What a command takes besides the configuration of ``fit``."""

TRAINING = {
    "fit": ("Trains a detector, alone or with a teacher.", "a checkpoint to continue, bit for bit on a CPU"),
    "validate": ("Evaluates a detector by COCO metrics.", "the checkpoint to evaluate; or give model.student.weights"),
}
TRAINING_PAGE = """usage: fgd-distill {command} --config FILE [--config FILE ...] [--<option> VALUE ...]

{summary}

Options are keys of the YAML files; --<section>.<name> VALUE on the command line wins over them. Nested values are YAML
or JSON: --data.train_transforms '[{{"class_path": "torchvision.transforms.v2.RandomHorizontalFlip"}}]'

  --ckpt_path FILE           {checkpoint}
  --seed_everything SEED     of initialisation and of every step's random numbers (default: 0)
  --print_config             prints the resulting configuration and ends

trainer: Lightning's Trainer. Often used:

  --trainer.max_epochs, --trainer.max_steps                 when to end
  --trainer.devices, --trainer.accelerator                  how many processes, on cpu or gpu; or start it by torchrun
  --trainer.precision bf16-mixed | 16-mixed | 32-true       mixed precision; 16-mixed on GPUs
  --trainer.accumulate_grad_batches N                       batches an optimizer step
  --trainer.default_root_dir DIR, --trainer.logger          where checkpoints and logs go
{sections}
`fgd-distill {command} --help-all` lists every option, Lightning's too, with its type, default and whole description."""
CONFIGURED_PAGE = """usage: fgd-distill {command} --config FILE [--config FILE ...] [--<option> VALUE ...]

{summary}

{options}

It takes the configuration of a training, and all of its options: `fgd-distill fit --help`."""
TOOL_PAGE = """usage: fgd-distill {command} {arguments}

{summary}

{options}"""


@dataclass(frozen=True)
class Argument:
    """Of a function, as its source states it."""

    name: str
    annotation: str
    default: str | None

    @property
    def is_positional(self) -> bool:
        return self.default is None and not self.is_detector

    @property
    def is_detector(self) -> bool:
        return "DetectorConfig" in self.annotation

    @property
    def notes(self) -> list[str]:
        """What its description need not say: the choices, and the default or that there is none."""
        choices = re.search(r"Literal\[(.*)\]", self.annotation)
        noted = [choices[1].replace("'", "").replace(", ", " | ")] if choices else []
        if self.default is None and not self.is_positional:
            noted.append("required")
        elif self.default not in (None, "None"):
            noted.append(_default_note(self.default))
        return [f"({'; '.join(noted)})"] if noted else []


def _default_note(default: str) -> str:
    return f"default: {default.strip(chr(39))}"


def help_page(command: str, function: str) -> str:
    """The help of a command.

    Args:
        command: its name.
        function: that it runs, as ``module:function`` relative to this package.
    """
    if command in TRAINING:
        summary, checkpoint = TRAINING[command]
        sections = "".join(_section(name, _docstring(source)) for name, source in CONFIGURED)
        return TRAINING_PAGE.format(command=command, summary=summary, checkpoint=checkpoint, sections=sections)
    documented = _docstring(function)
    summary = textwrap.fill(_plain(documented.description), 118)
    if command in OWN:
        options = "\n".join(_own_rows(OWN[command]))
        return CONFIGURED_PAGE.format(command=command, summary=summary, options=options)
    return _tool_page(command, summary, documented, arguments_of(function))


def _tool_page(command: str, summary: str, documented: Docstring, arguments: list[Argument]) -> str:
    told = {parameter.arg_name: _plain(parameter.description) for parameter in documented.params}
    rows, usage = [], []
    for argument in arguments:
        name = argument.name.upper() if argument.is_positional else f"--{argument.name}"
        usage += [f"{name} ..." if argument.annotation.startswith("list") else name] * argument.is_positional
        rows.append(_row(name, " ".join([told.get(argument.name, ""), *argument.notes])))
    usage += ["[--<option> VALUE ...]"] * (len(rows) > len(usage))
    detectors = [f"--{argument.name}" for argument in arguments if argument.is_detector]
    if detectors:
        rows.append(
            f"\n{', '.join(detectors)}: a detector, as YAML or JSON, '{{name: fcos_resnet50_fpn, weights: a.pt}}',\n"
            f"or key by key, {detectors[0]}.name fcos_resnet50_fpn\n"
        )
        rows += _rows(_docstring(DETECTOR))
    page = TOOL_PAGE.format(command=command, arguments=" ".join(usage), summary=summary, options="\n".join(rows))
    return re.sub(" +$", "", page, flags=re.M).rstrip()  # of a command without options


def _section(name: str, documented: Docstring) -> str:
    return "\n".join([f"\n{name}: {_plain(documented.short_description)}", *_rows(documented)]) + "\n"


def _rows(documented: Docstring) -> list[str]:
    """A line or more for each parameter: its name, and the first sentence of what it is."""
    rows = []
    for parameter in documented.params:
        sentence, stop, _ = _plain(parameter.description).partition(". ")
        rows.append(_row(parameter.arg_name, sentence + stop.rstrip()))
    return rows


def _own_rows(source: str) -> list[str]:
    """The options that a class's fields become, with all that is said of them and their defaults."""
    module, _, _ = source.partition(":")
    stated = {
        field.target.id: ast.unparse(_looked_up(field.value, module))
        for field in definition(source).body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None
    }
    rows = []
    for parameter in _docstring(source).params:
        names = parameter.arg_name.split(", ")
        defaults = [stated[name] for name in names if name in stated]
        told = [value for value in defaults if value != "None" and "(" not in value]  # of a call, the description tells
        note = f" ({_default_note(', '.join(told))})" if told else ""
        rows.append(_row(", ".join(f"--{name}" for name in names), _plain(parameter.description) + note))
    return rows


def _row(name: str, text: str) -> str:
    return textwrap.fill(f"{name:<23}  {text}", 116, initial_indent="  ", subsequent_indent=" " * 27)


def _plain(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "")


def _docstring(source: str) -> Docstring:
    return parse(ast.get_docstring(definition(source)) or "")


def arguments_of(source: str) -> list[Argument]:
    stated = definition(source)
    assert isinstance(stated, ast.FunctionDef)
    found, module = stated.args.args, source.partition(":")[0]
    given = [ast.unparse(_looked_up(default, module)) for default in stated.args.defaults]
    defaults = [None] * (len(found) - len(given)) + given
    return [
        Argument(arg.arg, ast.unparse(arg.annotation) if arg.annotation else "", default)
        for arg, default in zip(found, defaults, strict=True)
    ]


def definition(source: str) -> ast.ClassDef | ast.FunctionDef:
    """The class or function that ``module:name`` names, relative to this package."""
    module, _, name = source.partition(":")
    for node in _statements(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    raise LookupError(f"{module}: expected a class or function {name}, found none")


@functools.cache
def _statements(module: str) -> list[ast.stmt]:
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")).body


def _looked_up(value: ast.expr, module: str) -> ast.expr:
    """A default's value: of a constant of the module, or of a field of a class that it imports; else as it is."""
    for node in _statements(module):
        if isinstance(node, ast.Assign) and isinstance(value, ast.Name) and ast.unparse(node.targets[0]) == value.id:
            return node.value
        if isinstance(node, ast.ImportFrom) and isinstance(value, ast.Attribute) and node.module and node.level:
            imported = ast.unparse(value.value)
            if imported in [alias.name for alias in node.names]:
                home = ".".join([*module.split(".")[: -node.level], node.module])
                for field in definition(f"{home}:{imported}").body:
                    if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == value.attr and field.value:
                        return field.value
    return value
