"""The loss in Triton, for GPUs without the compiled kernels: docs/triton.md. Importing this imports Triton.

Both functions have the operator's schema (ops.py). Everything they decide, they decide from shapes, strides and types:
no synchronisation, nothing copied to the device, so that a CUDA graph can record them.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from . import (
    backward_pass,
    finish,
    forward_pass,
    gc_added,
    gc_grads,
    gc_hidden,
    gc_hidden_grad,
    key_grads,
    mask,
    merge,
    total,
)
from .gc_blocks import GcBlocks, empty_grads, like_parameters
from .pyramid import Grid, Pyramid, scratch


def forward(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    gc_block: Sequence[Tensor],
    weights: Sequence[float],
    spatial: float,
    channel: float,
) -> tuple[Tensor, ...]:
    """fg, bg, attention, global, terms, maps, stats: seven launches, five without GcBlocks."""
    p = Pyramid.of(student, teacher, bool(gc_block))
    maps = sizes.new_empty(4 * p.images * sum(p.pixels))
    stats = sizes.new_empty(6 * p.images * sum(p.channels))
    if p.images == 0:
        return (*(sizes.new_zeros(()) for _ in range(4)), sizes.new_zeros((len(student), 4)), maps, stats)
    with _on_device_of(sizes):
        gc = GcBlocks.of(gc_block) if gc_block else None
        keys = (gc.keys[::2], gc.keys[1::2]) if gc else (student, student)
        fg, outside = mask.launch(p, boxes, offsets, sizes)
        partials = forward_pass.launch(p, student, teacher, keys, spatial, fg, maps)
        sums, distances = merge.launch(p, spatial, partials, maps)
        terms = finish.launch(p, (spatial, channel), sums, distances, partials, fg, outside, maps, stats)
        shifted, grid = terms, Grid.of([0] * len(student), 0)
        if gc:
            shifted, grid = gc_added.launch(p, gc, gc_hidden.launch(p, gc, stats), stats)
        return (*total.launch(p, weights, terms, shifted, grid), maps, stats)


def backward(
    grads: Tensor,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    gc_block: Sequence[Tensor],
    weights: Sequence[float],
    spatial: float,
    channel: float,
    maps: Tensor,
    stats: Tensor,
    need_student: bool,
    need_gc_block: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The student's gradients and the GcBlocks': four launches, one without GcBlocks."""
    p = Pyramid.of(student, teacher, bool(gc_block))
    student_grads = [torch.empty_like(s) for s in student] if need_student else []
    gc_grads_out = empty_grads(gc_block) if need_gc_block else []
    if p.images == 0:
        return student_grads, [torch.zeros_like(parameter) for parameter in gc_block] if need_gc_block else []
    if not (need_student or gc_grads_out):
        return [], []
    with _on_device_of(sizes):
        scaled = tuple(weight / p.images for weight in weights)
        gc = GcBlocks.of(gc_block) if gc_block else None
        out = GcBlocks.of(gc_grads_out) if gc_grads_out else None
        context_grad = scratch(stats, 0)
        if gc:
            hidden, hidden_grad = gc_hidden_grad.launch(p, gc, scaled, grads, stats)
            context_grad = gc_grads.launch(p, gc, out, scaled, grads, hidden, hidden_grad, stats)
        partials = backward_pass.launch(
            p, student, teacher, student_grads, gc, scaled, grads, maps, stats, context_grad, out is not None
        )
        if out:
            key_grads.launch(p, student, teacher, out, stats, partials)
    return student_grads, like_parameters(gc_grads_out, gc_block) if need_gc_block else []


def _on_device_of(tensor: Tensor):
    """Triton launches on the current device; in its interpreter tensors are on the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
