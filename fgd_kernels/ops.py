"""The operator: its schema, its backends, and all that PyTorch needs to know about it.

One schema serves every backend. The compiled library defines `fgd_kernels::forward` and `::backward` for CPU (and
CUDA) tensors; the reference is `::forward_reference`, the Triton kernels are `::forward_triton`. A backend is chosen
here and nowhere else.

    forward(student, teacher, boxes, gc_block, weights, temperatures)
        -> fg, bg, attention, global_   0-dim: the weighted terms, summed over levels, averaged over images
           terms (L, 4)                 the same before the sum over levels; for logs, not differentiable
           maps, stats                  saved for backward: O(N·H·W) and O(N·C) numbers; see csrc/include/fgd/layout.h
    backward(grads, student, teacher, gc_block, weights, temperatures, maps, stats)
        -> the student's gradients, the GcBlocks' gradients (each an empty list where not asked for)
"""

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import native, reference
from .boxes import PackedBoxes

NAMESPACE = "fgd_kernels"
BACKENDS = ("cpu", "cuda", "triton", "reference")
MAPS = 4  # per-pixel numbers saved for backward, see csrc/include/fgd/layout.h
STATS = 6  # per-channel numbers saved for backward
MAX_CHANNELS = 2048

_FORWARD = (
    "(Tensor[] student, Tensor[] teacher, Tensor box_values, Tensor box_offsets, Tensor image_sizes, "
    "Tensor[] gc_block, float[] weights, float spatial_temperature, float channel_temperature) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grads, Tensor[] student, Tensor[] teacher, Tensor box_values, Tensor box_offsets, Tensor image_sizes, "
    "Tensor[] gc_block, float[] weights, float spatial_temperature, float channel_temperature, "
    "Tensor maps, Tensor stats, bool need_student, bool need_gc_block) -> (Tensor[], Tensor[])"
)


class BackendStatus(NamedTuple):
    """Whether a backend runs here, and if not, why."""

    available: bool
    reason: str


def backends() -> dict[str, BackendStatus]:
    """What can compute the loss on this machine, and for what cannot, why not."""
    return {name: _status(name) for name in BACKENDS}


def _status(backend: str) -> BackendStatus:
    if backend == "reference":
        return BackendStatus(True, "plain PyTorch, any device; slow")
    if backend == "triton":
        return _triton_status()
    missing = native.load()
    if missing is not None:
        return BackendStatus(False, missing)
    if backend == "cpu":
        return BackendStatus(True, "compiled for this machine's CPU")
    if not native.has_cuda():
        return BackendStatus(False, f"the compiled library was built without CUDA: {native.cuda_missing()}")
    if torch.version.cuda is None:
        return BackendStatus(False, f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        return BackendStatus(False, "no CUDA device is visible")
    return BackendStatus(True, "compiled with CUDA")


def _triton_interprets() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_status() -> BackendStatus:
    """Found out without importing Triton."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:  # nothing, or a mere folder of that name
        return BackendStatus(False, "the package triton is not installed")
    if _triton_interprets():
        return BackendStatus(True, "in Triton's interpreter, because TRITON_INTERPRET=1; slow")
    if not torch.cuda.is_available():
        return BackendStatus(False, "no GPU is visible, and TRITON_INTERPRET is not 1")
    return BackendStatus(True, "compiled by Triton at first use")


def check_backend(name: str) -> None:
    """Raise ValueError unless a backend, or 'auto', has that name; whether it can run here is asked when it is to."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(BACKENDS)}, got {name!r}")


@torch.compiler.assume_constant_result
def choose_backend(requested: str, device: str, float64: bool = False) -> str:
    """The backend for features on a device of type `device`. FGD_BACKEND takes the place of 'auto'.

    Raises:
        TypeError: it was asked for by name and does not compute in float64.
        ValueError: there is no backend of that name, or it does not serve that device.
        RuntimeError: it was asked for by name and cannot run here; the message says why.
    """
    if requested == "auto":
        requested = os.environ.get("FGD_BACKEND", "auto")
    if requested == "auto":
        if device == "meta":
            return "cpu" if _status("cpu").available else "reference"  # shapes alone
        if device in ("cpu", "cuda") and _status(device).available:
            return device
        return "triton" if device == "cuda" and _status("triton").available and not float64 else "reference"
    check_backend(requested)
    status = _status(requested)
    if not status.available:
        raise RuntimeError(f"backend {requested!r} cannot run here: {status.reason}")
    if requested in ("cpu", "cuda") and device != requested:
        raise ValueError(f"backend {requested!r} takes tensors on {requested}, got features on {device}")
    if requested == "triton" and device != "cuda" and not (device == "cpu" and _triton_interprets()):
        raise ValueError(f"backend 'triton' takes tensors on a GPU, got features on {device}")
    if requested == "triton" and float64:
        raise TypeError("backend 'triton': expected float32, float16 or bfloat16 features, got torch.float64")
    return requested


def pyramid_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: PackedBoxes,
    gc_block: Sequence[Tensor],
    weights: Sequence[float],
    spatial_temperature: float,
    channel_temperature: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the operator on checked arguments (see `functional.fgd_loss`): fg, bg, attention, global, terms (L, 4)."""
    float64 = torch.float64 in (student[0].dtype, teacher[0].dtype)
    forward = _operator(_NAMES[choose_backend(backend, student[0].device.type, float64)])
    pairs = [_common_layout(s, t) for s, t in zip(*_common_float64(student, teacher), strict=True)]
    students, teachers = [s for s, _ in pairs], [t for _, t in pairs]
    accumulator = _accumulator(students, teachers)
    parameters = [
        p if p.dtype == accumulator and p.is_contiguous() else p.to(accumulator).contiguous() for p in gc_block
    ]
    out = forward(students, teachers, *boxes, parameters, list(weights), spatial_temperature, channel_temperature)
    return out[:5]


def _common_float64(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """float64 is for gradient checks: it goes only with float64. The other dtypes mix as they are."""
    if (student[0].dtype == torch.float64) != (teacher[0].dtype == torch.float64):
        return [s.double() for s in student], [t.double() for t in teacher]
    return student, teacher


def _common_layout(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """A pair that kernels can walk alike: pixels dense (NCHW) or channels dense (channels_last), batch stride free.

    What comes in one of these two is taken as it is, channel and batch slices included; the rest is copied.
    """
    for dense in (_pixels_dense, _channels_dense):
        if dense(student) and dense(teacher):
            return student, teacher
    if _pixels_dense(student) or not _channels_dense(student):
        return student.contiguous(), teacher.contiguous()
    return student, teacher.contiguous(memory_format=torch.channels_last)


def _pixels_dense(x: Tensor) -> bool:
    _, _, h, w = x.shape
    return (w == 1 or x.stride(3) == 1) and (h == 1 or x.stride(2) == w)


def _channels_dense(x: Tensor) -> bool:
    _, c, h, w = x.shape
    pixel = x.stride(3) if w > 1 else x.stride(2)
    if h * w > 1 and pixel < c:  # pixels that share memory, as after expand(): a gradient has no such layout
        return False
    return (c == 1 or x.stride(1) == 1) and (h == 1 or w == 1 or x.stride(2) == w * x.stride(3))


def _operator(name: str):
    return getattr(getattr(torch.ops, NAMESPACE), name).default


# --- the reference as a backend ---------------------------------------------------------------------------------


def _reference_forward_kernel(student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel):
    with torch.autocast(student[0].device.type, enabled=False):
        terms = reference.pyramid_terms(student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel)
    sums = [total.clone() for total in terms.sum(0).unbind()]  # an operator's outputs share no memory
    return (*sums, terms, terms.new_empty(0), terms.new_empty(0))


@contextlib.contextmanager
def _autograd_inside_kernel():
    """A kernel runs below autograd; this brings autograd back, so that the reference can be differentiated."""
    key = torch._C.DispatchKey
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(key, name))
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def _reference_backward_kernel(
    grads, student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel, maps, stats, need_s, need_gc
):
    with _autograd_inside_kernel(), torch.autocast(student[0].device.type, enabled=False):
        inputs = [s.detach().requires_grad_(need_s) for s in student]
        parameters = [p.detach().requires_grad_(need_gc) for p in gc_block]
        terms = reference.pyramid_terms(
            inputs, teacher, boxes, offsets, sizes, parameters, weights, spatial, channel
        ).sum(0)
        wanted = (inputs if need_s else []) + (parameters if need_gc else [])
        found = torch.autograd.grad(terms, wanted, grads, allow_unused=True) if wanted else ()
    dense = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
    copies = [g.detach().clone(memory_format=torch.preserve_format) for g in dense]
    split = len(inputs) if need_s else 0
    return copies[:split], copies[split:]


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


def _fake_forward(saves: bool):
    def fake(student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel):
        like, dtype = student[0], _accumulator(student, teacher)
        images = like.shape[0]
        maps = sum(MAPS * images * s.shape[2] * s.shape[3] for s in student) if saves else 0
        stats = sum(STATS * images * s.shape[1] for s in student) if saves else 0
        scalars = [like.new_empty((), dtype=dtype) for _ in range(4)]
        terms = like.new_empty((len(student), 4), dtype=dtype)
        return (*scalars, terms, like.new_empty(maps, dtype=dtype), like.new_empty(stats, dtype=dtype))

    return fake


def _fake_backward(
    grads, student, teacher, boxes, offsets, sizes, gc_block, weights, spatial, channel, maps, stats, need_s, need_gc
):
    found = [torch.empty_like(s) for s in student] if need_s else []
    parameters = [torch.empty_like(p) for p in gc_block] if need_gc else []
    return found, parameters


# --- autograd ---------------------------------------------------------------------------------------------------
#
# Written out, and not by torch.library.register_autograd: with some ninety tensors in lists, its bookkeeping costs
# more than two milliseconds a step.


class _Loss(torch.autograd.Function):
    """One backend's forward and backward; tensors come flat: student, teacher, boxes, gc_block."""

    @staticmethod
    def forward(ctx, keyset, suffix, levels, settings, *tensors):
        out = _below_autograd(f"forward{suffix}", keyset, *_unflatten(tensors, levels), *settings)
        ctx.suffix, ctx.levels, ctx.settings = suffix, levels, settings
        ctx.mark_non_differentiable(*out[4:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *out[5:])
        return out

    @staticmethod
    def backward(ctx, *grads):
        *tensors, maps, stats = ctx.saved_tensors
        inputs = _unflatten(tensors, ctx.levels)
        need = ctx.needs_input_grad[4:]
        need_student, need_gc_block = any(need[: ctx.levels]), any(need[2 * ctx.levels + 3 :])
        given = [stats.new_zeros(()) if g is None else g for g in grads[:4]]
        arguments = (*inputs, *ctx.settings, maps, stats, need_student, need_gc_block)
        operator = _operator(f"backward{ctx.suffix}")
        if torch.is_grad_enabled():  # create_graph: what comes out must refuse a second derivative
            student, gc_block = operator(torch.stack(given), *arguments)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                student, gc_block = operator(torch.stack(given), *arguments)
        nothing = [None] * ctx.levels
        student = student if need_student else nothing
        gc_block = gc_block if need_gc_block else [None] * len(inputs[-1])
        return None, None, None, None, *student, *nothing, None, None, None, *gc_block


class _NoSecondDerivative(torch.autograd.Function):
    """The backward operator as autograd sees it: a derivative of it is refused, loudly."""

    @staticmethod
    def forward(ctx, keyset, name, arguments, *tensors):
        student, gc_block = _below_autograd(name, keyset, *arguments)
        return *student, *gc_block

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("fgd_kernels: the FGD loss has no second derivatives (double backward is not supported)")


def _below_autograd(name: str, keyset, *arguments):
    with torch._C._AutoDispatchBelowAutograd():
        return _operator(name).redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _unflatten(tensors: Sequence[Tensor], levels: int):
    student, teacher, rest = tensors[:levels], tensors[levels : 2 * levels], tensors[2 * levels :]
    return list(student), list(teacher), *rest[:3], list(rest[3:])


def _asks_for_grad(tensors: Sequence[Tensor]) -> bool:
    """Also under forward-mode AD, where autograd then says that the operator does not support it."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _autograd_forward(suffix: str):
    def kernel(keyset, student, teacher, boxes, offsets, sizes, gc_block, *settings):
        tensors = (*student, *teacher, boxes, offsets, sizes, *gc_block)
        if _asks_for_grad(tensors):
            if any(t.is_inference() for t in teacher):
                raise RuntimeError(
                    "teacher: expected tensors that autograd can keep, got some made in torch.inference_mode(); "
                    "use torch.no_grad() for the teacher"
                )
            return _Loss.apply(keyset, suffix, len(student), settings, *tensors)
        inputs = (student, teacher, boxes, offsets, sizes, gc_block)
        return _below_autograd(f"forward{suffix}", keyset, *inputs, *settings)

    return kernel


def _autograd_backward(name: str):
    def kernel(keyset, grads, student, *rest):
        arguments = (grads, student, *rest)
        tensors = (grads, *student)
        if not _asks_for_grad(tensors):
            return _below_autograd(name, keyset, *arguments)
        out = _NoSecondDerivative.apply(keyset, name, arguments, *tensors)
        split = len(student) if rest[-2] else 0  # need_student
        return list(out[:split]), list(out[split:])

    return kernel


# --- registration -----------------------------------------------------------------------------------------------


def _register(suffix: str, saves: bool) -> None:
    forward, backward = f"forward{suffix}", f"backward{suffix}"
    torch.library.register_fake(f"{NAMESPACE}::{forward}", _fake_forward(saves))
    torch.library.register_fake(f"{NAMESPACE}::{backward}", _fake_backward)
    _library.impl(forward, _autograd_forward(suffix), "Autograd", with_keyset=True)
    _library.impl(backward, _autograd_backward(backward), "Autograd", with_keyset=True)


def _define(suffix: str, forward, backward, saves: bool) -> None:
    """Both operators, from Python functions that serve every device."""
    _library.define(f"forward{suffix}{_FORWARD}", tags=torch.Tag.pt2_compliant_tag)
    _library.define(f"backward{suffix}{_BACKWARD}", tags=torch.Tag.pt2_compliant_tag)
    _library.impl(f"forward{suffix}", forward, "CompositeExplicitAutograd")
    _library.impl(f"backward{suffix}", backward, "CompositeExplicitAutograd")
    _register(suffix, saves)


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_NAMES = {"cpu": "forward", "cuda": "forward", "triton": "forward_triton", "reference": "forward_reference"}
_define("_reference", _reference_forward_kernel, _reference_backward_kernel, saves=False)
_define("_triton", _triton_forward_kernel, _triton_backward_kernel, saves=True)
if native.load() is None:
    _register("", saves=True)
else:
    _define("", _reference_forward_kernel, _reference_backward_kernel, saves=False)
