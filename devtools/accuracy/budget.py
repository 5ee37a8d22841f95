"""What a backend may be wrong by: twice what the float32 reference is wrong on the same inputs, by float64's judgement.

A single number can be right by luck, and so can a vector where a softmax hangs on one rounding. Therefore the reference
is asked in several *orders*: the same inputs with channels permuted, maps transposed and memory laid out otherwise,
which changes nothing but the order of its sums. Its error is the largest of these, and a unit in the last place of the
result is granted on top, for a result has to be rounded; in float64 two, for so has the truth. There is no other
tolerance. Where four orders do not excuse an error, 32 are asked before it is called one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .case import EPS, Case, duplicate, evaluate

ORDERS, MORE_ORDERS = 4, 32


def error(result: torch.Tensor, truth: torch.Tensor) -> float:
    """The norm of what is wrong; infinite where one of them is not finite and the other is something else."""
    wrong = torch.where(result == truth, 0.0, result - truth).norm()
    return float(wrong) if wrong.isfinite() else float("inf")


class Judgement(NamedTuple):
    """Of one quantity."""

    wrong: float
    allowed: float
    size: float

    @property
    def ratio(self) -> float:
        """Of the budget: at most 1 is allowed."""
        if self.wrong == 0:
            return 0.0
        return self.wrong / self.allowed if self.allowed > 0 else float("inf")

    @property
    def holds(self) -> bool:
        return self.ratio <= 1

    def __str__(self) -> str:
        return f"is off by {self.wrong:.3g}, allowed {self.allowed:.3g}, size {self.size:.3g}"


class Budget:
    """The truth about a case, and the reference's errors in as many orders as judging has needed so far."""

    def __init__(self, case: Case, inputs: tuple):
        self.case, self.inputs = case, inputs
        self.truth = evaluate(inputs, "reference", torch.float64, case.fixed_student)
        for name, value in self.truth.items():
            if _is_zero(name, dict(inputs[-1].named_parameters())):
                value.zero_()
            if name.startswith("student["):
                largest = torch.finfo(case.student_dtype).max
                value[value.abs() > largest * (1 + EPS[case.student_dtype])] *= float("inf")  # as it is handed out
        self.errors: dict[str, list[float]] = {name: [] for name in self.truth}
        self._orders = in_other_orders(case, inputs)

    def judge(self, name: str, result: torch.Tensor) -> Judgement:
        """What is wrong with a quantity, and what is allowed."""
        found = self._judge(name, result, ORDERS)
        return found if found.holds else self._judge(name, result, MORE_ORDERS)

    def _judge(self, name: str, result: torch.Tensor, orders: int) -> Judgement:
        while len(self.errors[name]) < orders:
            values = next(self._orders)
            for each, errors in self.errors.items():
                errors.append(error(values[each], self.truth[each]))
        size = float(self.truth[name].norm())
        return Judgement(error(result, self.truth[name]), 2 * max(self.errors[name]) + self.ulp(name) * size, size)

    def ulp(self, name: str) -> float:
        """A unit in the last place of a number of size 1, of the type that the quantity is handed out in."""
        own = self.case.student_dtype
        if own == torch.float64:  # the truth has been rounded to it as well
            return 4 * EPS[own]
        return 2 * EPS[own if name.startswith("student") else torch.promote_types(own, torch.float32)]


def _is_zero(name: str, parameters: dict[str, torch.Tensor]) -> bool:
    """Gradients that are 0 whatever the inputs, and rounding in the reference: a softmax does not see a shift, and the
    norm of a single hidden unit is its bias."""
    if "conv_mask" in name:
        return name.endswith("bias")
    before_norm, last = name.rsplit(".", 2)[:1], name.split(".", 3)[-1]
    alone = "channel_add" in name and parameters[f"{before_norm[0]}.0.bias"].numel() == 1
    return alone and last in ("0.weight", "0.bias", "1.weight")


def in_other_orders(case: Case, inputs: tuple, seed: int = 1) -> Iterator[dict]:
    """The float32 reference's results: first as they are, then without end with the sums in other orders."""
    yield evaluate(inputs, "reference", None, case.fixed_student)
    generator = torch.Generator().manual_seed(seed)
    while True:
        last, transposed = torch.randint(2, (2,), generator=generator).bool().tolist()
        orders = [torch.randperm(c, generator=generator) for c, _, _ in case.levels]
        layout = torch.channels_last if last else torch.contiguous_format
        found = evaluate(permute(case, inputs, orders, transposed, layout), "reference", None, case.fixed_student)
        yield {name: _restored(case, name, value, orders, transposed) for name, value in found.items()}


# Parameters of a level, by the end of their names: the axis that runs along the channels.
_AXES = {
    "conv_mask_s.weight": 1,
    "conv_mask_t.weight": 1,
    "align.weight": 0,
    "align.bias": 0,
}
for _net in ("channel_add_conv_s", "channel_add_conv_t"):
    _AXES |= {f"{_net}.0.weight": 1, f"{_net}.3.weight": 0, f"{_net}.3.bias": 0}


def _axis(case: Case, name: str) -> tuple[int, int] | None:
    """(level, axis of the channels) of a result, None where it has none."""
    if name.startswith("student["):
        return (int(name[8:-1]), 1) if case.student_channels is None else None
    if name.startswith("levels."):
        _, level, rest = name.split(".", 2)
        return (int(level), _AXES[rest]) if rest in _AXES else None
    return None


def permute(
    case: Case, inputs: tuple, orders: list[torch.Tensor], transposed: bool, layout: torch.memory_format
) -> tuple:
    """The same loss of channels in another order, and of maps that are transposed, with their boxes."""
    student, teacher, boxes, sizes, criterion = inputs
    aligned = case.student_channels is not None
    student = [s if aligned else s[:, order.to(s.device)] for s, order in zip(student, orders, strict=True)]
    teacher = [t[:, order.to(t.device)] for t, order in zip(teacher, orders, strict=True)]
    criterion = duplicate(criterion)
    with torch.no_grad():
        for name, parameter in criterion.named_parameters():
            if found := _axis(case, name):
                level, axis = found
                parameter.copy_(parameter.index_select(axis, orders[level].to(parameter.device)))
    if transposed:
        student, teacher = ([x.transpose(2, 3) for x in maps] for maps in (student, teacher))
        if sizes is None:
            boxes = [weights.transpose(1, 2) for weights in boxes]
        else:
            boxes, sizes = [box[:, [1, 0, 3, 2]] for box in boxes], [(w, h) for h, w in sizes]
    student, teacher = ([x.contiguous(memory_format=layout) for x in maps] for maps in (student, teacher))
    return student, teacher, boxes, sizes, criterion


def _restored(case: Case, name: str, value: torch.Tensor, orders: list[torch.Tensor], transposed: bool) -> torch.Tensor:
    if transposed and name.startswith("student["):
        value = value.transpose(2, 3)
    found = _axis(case, name)
    return value if found is None else value.index_select(found[1], orders[found[0]].argsort())
