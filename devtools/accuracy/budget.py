"""What a backend may be wrong by: twice what the float32 reference is wrong on the same inputs, by float64's judgement.

A single number can be right by luck, and so can a vector where a softmax hangs on one rounding. Therefore the reference
is asked in several *orders*: the same inputs with channels and pixels permuted and memory laid out otherwise, which
changes nothing but the order of its sums. Its error is the largest of these, and a unit in the last place of the
result is granted on top, for a result has to be rounded; in float64 two, for so has the truth. Where four orders do not
excuse an error, 32 are asked before it is called one.

There is one other tolerance. Where two attentions are equal by mathematics alone, float64 rounds them apart as well,
and their sign in its truth is chance: what the truth itself changes by in other orders is granted, too.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fgd_kernels import boxes as packing
from fgd_kernels import reference

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
        self.truth = self._as_handed_out(evaluate(inputs, "reference", torch.float64, case.fixed_student))
        self._doubt: dict[str, float] = {}
        self.errors: dict[str, list[float]] = {name: [] for name in self.truth}
        self._orders = in_other_orders(case, inputs)

    def judge(self, name: str, result: torch.Tensor) -> Judgement:
        """What is wrong with a quantity, and what is allowed."""
        for orders in (ORDERS, MORE_ORDERS):
            found = self._judge(name, result, orders)
            if found.holds:
                return found
        return found._replace(allowed=found.allowed + self.doubt(name))

    def doubt(self, name: str) -> float:
        """What the truth changes by where its own sums run in other orders."""
        if not self._doubt:
            others = in_other_orders(self.case, self.inputs, torch.float64)
            for other in map(self._as_handed_out, itertools.islice(others, 1, ORDERS)):
                for each, value in other.items():
                    changed = error(value, self.truth[each])
                    self._doubt[each] = max(self._doubt.get(each, 0.0), changed if math.isfinite(changed) else 0.0)
        return self._doubt[name]

    def _as_handed_out(self, truth: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, value in truth.items():
            if _is_zero(name, dict(self.inputs[-1].named_parameters())):
                value.zero_()
            if name.startswith("student["):
                largest = torch.finfo(self.case.student_dtype).max
                value[value.abs() > largest * (1 + EPS[self.case.student_dtype])] *= float("inf")
        return truth

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


class Order(NamedTuple):
    """Of one level's channels and pixels."""

    channels: torch.Tensor
    pixels: torch.Tensor

    def apply(self, maps: torch.Tensor, channels: bool = True) -> torch.Tensor:
        """Maps (N, C, H, W), or (N, H, W), in this order, of the same shape."""
        if channels and maps.ndim == 4:
            maps = maps.index_select(1, self.channels)
        return maps.flatten(-2).index_select(-1, self.pixels).view(maps.shape)

    def back(self) -> "Order":
        return Order(self.channels.argsort(), self.pixels.argsort())


def in_other_orders(
    case: Case, inputs: tuple, dtype: torch.dtype | None = None, seed: int = 1
) -> Iterator[dict[str, torch.Tensor]]:
    """The results of the reference in `dtype`, None for the inputs' own: first as they are, then without end with the
    sums in other orders."""
    yield evaluate(inputs, "reference", dtype, case.fixed_student)
    generator = torch.Generator().manual_seed(seed)
    device = inputs[0][0].device
    while True:
        layout = (torch.contiguous_format, torch.channels_last)[int(torch.randint(2, (), generator=generator))]
        orders = [
            Order(*(torch.randperm(count, generator=generator).to(device) for count in (c, h * w)))
            for c, h, w in case.levels
        ]
        found = evaluate(reorder(case, inputs, orders, layout), "reference", dtype, case.fixed_student)
        yield {name: _restored(case, name, value, orders) for name, value in found.items()}


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


def reorder(case: Case, inputs: tuple, orders: list[Order], layout: torch.memory_format) -> tuple:
    """The same loss with channels and pixels in other orders; boxes become the weights of their pixels."""
    student, teacher, boxes, sizes, criterion = inputs
    aligned = case.student_channels is not None
    weights = boxes
    if sizes is not None:
        packed = packing.pack_boxes(boxes, sizes, teacher[0].device)
        weights = [reference.foreground_mask(*packed[:3], *t.shape[2:]) for t in teacher]
    student = [order.apply(s, channels=not aligned) for s, order in zip(student, orders, strict=True)]
    teacher = [order.apply(t) for t, order in zip(teacher, orders, strict=True)]
    weights = [order.apply(w) for w, order in zip(weights, orders, strict=True)]
    criterion = duplicate(criterion)
    with torch.no_grad():
        for name, parameter in criterion.named_parameters():
            if found := _axis(case, name):
                level, axis = found
                parameter.copy_(parameter.index_select(axis, orders[level].channels))
    student, teacher = ([x.contiguous(memory_format=layout) for x in maps] for maps in (student, teacher))
    return student, teacher, weights, None, criterion


def _restored(case: Case, name: str, value: torch.Tensor, orders: list[Order]) -> torch.Tensor:
    found = _axis(case, name)
    if name.startswith("student["):
        level = int(name[8:-1])
        order = Order(orders[level].channels.cpu(), orders[level].pixels.cpu()).back()
        return order.apply(value, channels=found is not None)
    return value if found is None else value.index_select(found[1], orders[found[0]].channels.argsort().cpu())
