"""The page of ``fgd-distill fit --help``: the options of this package, by the first sentence of their docstrings.
Lightning's alone would fill twenty screens."""

from __future__ import annotations

import inspect
import textwrap

from docstring_parser import parse

from ..criterion import FGDConfig
from ..data.datamodule import CocoDataModule
from ..detectors.by_name import DetectorConfig
from ..schedule import Schedule
from ..training.learning_rate import LrMilestones
from ..training.module import DetectionModule
from ..training.teacher_cache import CacheConfig

SECTIONS = (
    ("model", DetectionModule),
    ("model.student and model.teacher", DetectorConfig),
    ("model.fgd", FGDConfig),
    ("model.schedule", Schedule),
    ("model.lr_milestones", LrMilestones),
    ("model.teacher_cache", CacheConfig),
    ("data", CocoDataModule),
)
PAGE = """usage: fgd-distill {command} --config FILE [--config FILE ...] [--<option> VALUE ...]

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
`fgd-distill {command} --help-all` lists every option, Lightning's too, with its type, default and whole description.
"""
TRAINING = {
    "fit": ("Trains a detector, alone or with a teacher.", "a checkpoint to continue, bit for bit on a CPU"),
    "validate": ("Evaluates a detector by COCO metrics.", "the checkpoint to evaluate; or give model.student.weights"),
}


def help_page(command: str) -> str:
    """The help of ``fit`` or ``validate``."""
    summary, checkpoint = TRAINING[command]
    sections = "".join(_section(name, described) for name, described in SECTIONS)
    return PAGE.format(command=command, summary=summary, checkpoint=checkpoint, sections=sections)


def _section(name: str, described: type) -> str:
    documented = parse(inspect.getdoc(described) or "")
    lines = [f"\n{name}: {documented.short_description}"]
    for parameter in documented.params:
        sentence, stop, _ = " ".join((parameter.description or "").split()).partition(". ")
        text = f"{parameter.arg_name:<23}  {sentence}{stop.rstrip()}"
        lines.append(textwrap.fill(text, 116, initial_indent="  ", subsequent_indent=" " * 27))
    return "\n".join(lines).replace("``", "") + "\n"
