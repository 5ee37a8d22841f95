"""Starting a student from its teacher's neck and head."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from .adapters import DetectorAdapter, as_adapter
from .errors import FGDValueError
from .taps import find_layer, layer_names

ENOUGH = 0.5  # of the parameters; with less inherited, ``inherit`` warns


@dataclass
class InheritReport:
    """What ``inherit`` did, by the names of state-dict entries.

    Args:
        loaded: entries copied from the teacher.
        mismatched: entries of both, with the student's and the teacher's shape, which differ; left as they were.
        skipped: entries that only one of the two has; left as they were.
        share: of the numbers in the student's modules, those that were copied, 0 to 1.
    """

    loaded: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    share: float = 0.0

    def __str__(self) -> str:
        counts = f"{len(self.mismatched)} mismatched, {len(self.skipped)} skipped"
        share = f"{self.share:.0%} of the modules' parameters"
        lines = [f"inherited {len(self.loaded)} tensors from the teacher, {share}; {counts}"]
        lines += [f"  mismatched {name}: student {ours}, teacher {theirs}" for name, ours, theirs in self.mismatched]
        lines += [f"  skipped    {name}" for name in self.skipped]
        return "\n".join(lines)


def inherit(
    student: nn.Module,
    teacher: nn.Module,
    modules: str | Sequence[str] | None = None,
    verbose: bool = True,
    adapter: DetectorAdapter | str | None = None,
) -> InheritReport:
    """Initialises the student's neck and head with the teacher's.

    Args:
        student: changed in place.
        teacher: only read.
        modules: name or names of the submodules to inherit; None takes the neck and head that the student's adapter
            names.
        verbose: whether to print the report.
        adapter: names neck and head; an object, or its class as ``module:Class``. None chooses one by the student's
            class.

    Returns:
        what was loaded, mismatched and skipped.

    Raises:
        ValueError: a module of ``modules`` is missing in one of the models (the message lists close names), or nothing
            was loaded.
        TypeError: there is no adapter for the student.
    """
    if modules is None:
        wanted = list(as_adapter(adapter, student).neck_and_head(student))
    else:
        wanted = layer_names(modules)
        for name in wanted:
            find_layer(student, name)
            find_layer(teacher, name)
    ours, theirs = (_entries(model, wanted) for model in (student, teacher))
    report = InheritReport(skipped=sorted(ours.keys() ^ theirs.keys()))
    with torch.no_grad():
        for name in sorted(ours.keys() & theirs.keys()):
            if ours[name].shape == theirs[name].shape:
                ours[name].copy_(theirs[name])
                report.loaded.append(name)
            else:
                report.mismatched.append((name, tuple(ours[name].shape), tuple(theirs[name].shape)))
    report.share = sum(ours[name].numel() for name in report.loaded) / max(1, sum(v.numel() for v in ours.values()))
    if not report.loaded:
        raise FGDValueError(f"nothing could be inherited from the modules {wanted}:\n{report}")
    if verbose:
        print(report)
    if report.share < ENOUGH:
        warnings.warn(
            f"the student inherited {report.share:.0%} of the parameters of {', '.join(wanted)}; the rest, "
            f"{len(report.mismatched)} tensors of other shapes among them, stays random. It gains most from a teacher "
            "whose neck and head have the student's widths",
            stacklevel=2,
        )
    return report


def _entries(model: nn.Module, modules: Sequence[str]) -> dict[str, torch.Tensor]:
    """State-dict entries under ``modules``; they share memory with the model."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    }
