"""The operator: its schema, its fake kernels, its registration, and the call that every way to the loss ends in.

One schema serves every backend. The compiled library defines `fgd_kernels::forward` and `::backward` for CPU (and
CUDA) tensors; the Triton kernels are `::forward_triton` and `::backward_triton`. The reference is no kernel: it is
called as the plain PyTorch that it is.

    forward(student, teacher, boxes, gc_block, weights, temperatures, foreground=None)
        -> fg, bg, attention, global_   0-dim: the weighted terms, summed over levels, averaged over images
           terms (L, 4)                 the same before the sum over levels; for logs, not differentiable
           maps, stats                  saved for backward: O(N·H·W) and O(N·C) numbers; see csrc/include/fgd/layout.h
           foreground (Σ N·H·W,)        M·S of (2) and (3), level after level, where it does not come from boxes
    backward(upstream, student, teacher, gc_block, weights, temperatures, maps, stats)
        -> the student's gradients, the GcBlocks' gradients (each an empty list where not asked for)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native, reference
from .autocast import without_autocast
from .autograd import NAMESPACE, Operators, backward_kernel, forward_kernel, refuse_inference
from .autograd import operator as _operator
from .backend import BACKENDS, BackendStatus, backends, check_backend, choose_backend
from .boxes import PackedBoxes
from .layout import common_layout
from .shared import MAX_CHANNELS, Map, Stat, Term

__all__ = [  # of backend.py and shared.py, under the names that they had here
    "BACKENDS",
    "MAX_CHANNELS",
    "BackendStatus",
    "backends",
    "check_backend",
    "choose_backend",
    "pyramid_loss",
]

_FORWARD = (
    "(Tensor[] student, Tensor[] teacher, Tensor box_values, Tensor box_offsets, Tensor image_sizes, "
    "Tensor[] gc_block, float[] weights, float spatial_temperature, float channel_temperature, "
    "Tensor? foreground=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grads, Tensor[] student, Tensor[] teacher, Tensor box_values, Tensor box_offsets, Tensor image_sizes, "
    "Tensor[] gc_block, float[] weights, float spatial_temperature, float channel_temperature, "
    "Tensor maps, Tensor stats, bool need_student, bool need_gc_block) -> (Tensor[], Tensor[])"
)


def pyramid_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: PackedBoxes,
    gc_block: Sequence[Tensor],
    weights: Sequence[float],
    spatial_temperature: float,
    channel_temperature: float,
    backend: str = "auto",
    foreground: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss on checked arguments (see `functional.fgd_loss`): fg, bg, attention, global, terms (L, 4)."""
    float64 = torch.float64 in (student[0].dtype, teacher[0].dtype)
    chosen = choose_backend(backend, student[0].device.type, float64)
    settings = [list(weights), spatial_temperature, channel_temperature]
    settings += [] if foreground is None else [foreground]
    if chosen == "reference":
        return _reference_loss(student, teacher, *boxes, gc_block, *settings)
    pairs = [common_layout(s, t) for s, t in zip(*_common_float64(student, teacher), strict=True)]
    students, teachers = [s for s, _ in pairs], [t for _, t in pairs]
    accumulator = _accumulator(students, teachers)
    parameters = [
        p if p.dtype == accumulator and p.is_contiguous() else p.to(accumulator).contiguous() for p in gc_block
    ]
    forward = _operator(_NAMES[chosen])
    return forward(students, teachers, *boxes, parameters, *settings)[:5]


def _common_float64(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """float64 is for gradient checks: it goes only with float64. The other dtypes mix as they are."""
    if (student[0].dtype == torch.float64) != (teacher[0].dtype == torch.float64):
        return [s.double() for s in student], [t.double() for t in teacher]
    return student, teacher


# --- the reference as a backend ---------------------------------------------------------------------------------


def _reference_loss(student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel, foreground=None):
    """Plain PyTorch: autograd, torch.func and torch.compile see what it does, and differentiate it as they can."""
    traced = torch.compiler.is_compiling()  # a graph's stand-ins cannot be asked
    if not traced and torch.is_grad_enabled() and any(t.requires_grad for t in (*student, *gc_block)):
        refuse_inference(teacher)
    with without_autocast(student[0].device.type):
        terms = reference.pyramid_terms(
            student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel, foreground
        )
    sums = [total.clone() for total in terms.sum(0).unbind()]  # that share no memory: results may be changed in place
    return (*sums, terms.detach())


def _reference_operator(student, *rest):
    """`_reference_loss` as the operator returns it: it saves nothing of its own."""
    *sums, terms = _reference_loss(student, *rest)
    return (*sums, terms, terms.new_empty(0), terms.new_empty(0))


# --- Triton, imported when it is first needed ---------------------------------------------------------------------


def _triton_forward_kernel(*arguments):
    from . import triton_kernels

    return triton_kernels.forward(*arguments)


def _triton_backward_kernel(*arguments):
    from . import triton_kernels

    return triton_kernels.backward(*arguments)


# --- shapes for tracing -----------------------------------------------------------------------------------------


def _accumulator(student, teacher) -> torch.dtype:
    return torch.promote_types(torch.promote_types(student[0].dtype, teacher[0].dtype), torch.float32)


def _fake_forward(student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel, foreground=None):
    like, dtype = student[0], _accumulator(student, teacher)
    images = like.shape[0]
    maps = sum(len(Map) * images * s.shape[2] * s.shape[3] for s in student)
    stats = sum(len(Stat) * images * s.shape[1] for s in student)
    scalars = [like.new_empty((), dtype=dtype) for _ in Term]
    terms = like.new_empty((len(student), len(Term)), dtype=dtype)
    return (*scalars, terms, like.new_empty(maps, dtype=dtype), like.new_empty(stats, dtype=dtype))


def _fake_backward(
    grads, student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel, maps, stats, need_s, need_gc
):
    found = [torch.empty_like(s) for s in student] if need_s else []
    parameters = [torch.empty_like(p) for p in gc_block] if need_gc else []
    return found, parameters


# --- registration -----------------------------------------------------------------------------------------------


def _register(operators: Operators) -> None:
    """What PyTorch needs to know about a pair of operators, beside their kernels."""
    torch.library.register_fake(f"{NAMESPACE}::{operators.forward}", _fake_forward)
    torch.library.register_fake(f"{NAMESPACE}::{operators.backward}", _fake_backward)
    _library.impl(operators.forward, forward_kernel(operators), "Autograd", with_keyset=True)
    _library.impl(operators.backward, backward_kernel(operators), "Autograd", with_keyset=True)


def _define(operators: Operators, forward, backward) -> None:
    """A pair of operators, from Python functions that serve every device."""
    _library.define(f"{operators.forward}{_FORWARD}", tags=torch.Tag.pt2_compliant_tag)
    _library.define(f"{operators.backward}{_BACKWARD}", tags=torch.Tag.pt2_compliant_tag)
    _library.impl(operators.forward, forward, "CompositeExplicitAutograd")
    _library.impl(operators.backward, backward, "CompositeExplicitAutograd")
    _register(operators)


def _define_from_reference(name: str) -> None:
    """The forward operator for a direct call: PyTorch looks through it and differentiates what it does."""
    _library.define(f"{name}{_FORWARD}", tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, _reference_operator, "CompositeImplicitAutograd")


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_COMPILED, _TRITON = Operators("forward", "backward"), Operators("forward_triton", "backward_triton")
_NAMES = {"cpu": _COMPILED.forward, "cuda": _COMPILED.forward, "triton": _TRITON.forward}
_define_from_reference("forward_reference")
_define(_TRITON, _triton_forward_kernel, _triton_backward_kernel)
if native.load() is None:
    _register(_COMPILED)
else:
    _define_from_reference(_COMPILED.forward)
