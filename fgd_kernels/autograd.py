"""The compiled operators' place in autograd.

Written out, and not by torch.library.register_autograd: with some ninety tensors in lists, its bookkeeping costs more
than two milliseconds a step. The price is three names of torch's that are not public: the keyset which a kernel hands
on, and the guard and the mask that keep a call below autograd.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import FGDRuntimeError
from .shared import Term

NAMESPACE = "fgd_kernels"


class Inputs(NamedTuple):
    """The operators' tensors. autograd wants them `flat`; its answers come in the same order."""

    student: Any
    teacher: Any
    box_values: Any
    box_offsets: Any
    image_sizes: Any
    gc_block: Any

    def flat(self) -> tuple:
        """One entry a tensor."""
        return (*self.student, *self.teacher, self.box_values, self.box_offsets, self.image_sizes, *self.gc_block)

    @classmethod
    def of(cls, flat: list, levels: int) -> "Inputs":
        """From a list with one entry a tensor, of a pyramid of `levels` levels."""
        at = places(levels)
        return cls(
            flat[at.student],
            flat[at.teacher],
            flat[at.box_values],
            flat[at.box_offsets],
            flat[at.image_sizes],
            flat[at.gc_block],
        )


@functools.cache
def places(levels: int) -> Inputs:
    """Where each of the inputs lies in the flat list: slices and indices."""
    boxes = 2 * levels
    return Inputs(slice(levels), slice(levels, boxes), boxes, boxes + 1, boxes + 2, slice(boxes + 3, None))


class Settings(NamedTuple):
    """What else both operators take."""

    weights: Sequence[float]  # (L, 4) in row order
    spatial_temperature: float
    channel_temperature: float


class Outputs(NamedTuple):
    """What the forward operators return; the first four can be differentiated."""

    fg: Tensor
    bg: Tensor
    attention: Tensor
    global_: Tensor
    terms: Tensor
    maps: Tensor
    stats: Tensor


class Operators(NamedTuple):
    """Names of one backend's forward and backward operator."""

    forward: str
    backward: str


def operator(name: str) -> torch._ops.OpOverload:
    """An operator by its name."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


class _Loss(torch.autograd.Function):
    """One backend's forward and backward."""

    @staticmethod
    def forward(ctx, keyset, operators, levels, settings, maps, *flat):
        inputs = Inputs.of(list(flat), levels)
        out = Outputs(*_below_autograd(operators.forward, keyset, *inputs, *settings, *maps))
        ctx.operators, ctx.levels, ctx.settings = operators, levels, settings
        ctx.mark_non_differentiable(out.terms, out.maps, out.stats)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*flat, out.maps, out.stats)
        return tuple(out)

    @staticmethod
    def backward(ctx, *grads):
        *flat, maps, stats = ctx.saved_tensors
        inputs, at, need = Inputs.of(flat, ctx.levels), places(ctx.levels), ctx.needs_input_grad[5:]
        need_student, need_gc_block = any(need[at.student]), any(need[at.gc_block])
        upstream = torch.stack([stats.new_zeros(()) if g is None else g for g in grads[: len(Term)]])
        arguments = (upstream, *inputs, *ctx.settings, maps, stats, need_student, need_gc_block)
        backward = operator(ctx.operators.backward)
        if torch.is_grad_enabled():  # create_graph: what comes out must refuse a second derivative
            student, gc_block = backward(*arguments)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                student, gc_block = backward(*arguments)
        nothing = [None] * ctx.levels
        found = Inputs(
            student if need_student else nothing,
            nothing,
            None,
            None,
            None,
            gc_block if need_gc_block else [None] * len(inputs.gc_block),
        )
        return None, None, None, None, None, *found.flat()


class _NoSecondDerivative(torch.autograd.Function):
    """The backward operator as autograd sees it: a derivative of it is refused, loudly."""

    @staticmethod
    def forward(ctx, keyset, name, arguments, *tensors):
        student, gc_block = _below_autograd(name, keyset, *arguments)
        return *student, *gc_block

    @staticmethod
    def backward(ctx, *grads):
        raise FGDRuntimeError(
            "fgd_kernels: the FGD loss has no second derivatives (double backward is not supported); "
            "backend='reference' has them"
        )


def _below_autograd(name: str, keyset, *arguments):
    with torch._C._AutoDispatchBelowAutograd():
        return operator(name).redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _asks_for_grad(tensors: Sequence[Tensor]) -> bool:
    """Also under forward-mode AD, where autograd then says that the operator does not support it."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def refuse_inference(teacher: Sequence[Tensor]) -> None:
    """Raise FGDRuntimeError if autograd cannot keep these for the backward pass."""
    if any(t.is_inference() for t in teacher):
        raise FGDRuntimeError(
            "teacher: expected tensors that autograd can keep, got some made in torch.inference_mode(); "
            "use torch.no_grad() for the teacher"
        )


def forward_kernel(operators: Operators) -> Callable:
    """The forward operator's kernel for the dispatch key Autograd; it takes the keyset first."""

    def kernel(keyset, student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel, *maps):
        inputs = Inputs(student, teacher, boxes, offsets, sizes, gc_block)
        settings = Settings(weights, spatial, channel)
        flat = inputs.flat()
        if not _asks_for_grad(flat):
            return _below_autograd(operators.forward, keyset, *inputs, *settings, *maps)
        refuse_inference(teacher)
        return _Loss.apply(keyset, operators, len(student), settings, maps, *flat)

    return kernel


def backward_kernel(operators: Operators) -> Callable:
    """The backward operator's kernel for the dispatch key Autograd; it takes the keyset first."""

    def kernel(keyset, upstream, student, *rest):
        arguments, tensors = (upstream, student, *rest), (upstream, *student)
        if not _asks_for_grad(tensors):
            return _below_autograd(operators.backward, keyset, *arguments)
        out = _NoSecondDerivative.apply(keyset, operators.backward, arguments, *tensors)
        *_, need_student, _ = rest
        count = len(student) if need_student else 0
        return list(out[:count]), list(out[count:])

    return kernel
