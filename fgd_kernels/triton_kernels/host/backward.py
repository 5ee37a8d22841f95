"""The backward pass: one function a launch, and `backward`, which calls them in order.

Kernels are called by keyword. What they need is decided from shapes, strides and types.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backward_pass import backward_pass
from ..gc_grads import gc_grads
from ..gc_hidden_grad import gc_hidden_grad
from ..key_grads import sum_key_grads
from .device import on_device_of
from .gc_blocks import GcBlocks, empty_grads, like_parameters
from .pyramid import (
    CHANNEL_BLOCK,
    HIDDEN_BLOCK,
    Grid,
    Layouts,
    Pyramid,
    before,
    cut,
    encoded,
    scratch,
)


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
    with on_device_of(sizes):
        scaled = tuple(weight / p.images for weight in weights)
        gc = GcBlocks.of(gc_block) if gc_block else None
        out = GcBlocks.of(gc_grads_out) if gc_grads_out else None
        context_grad = scratch(stats, 0)
        if gc:
            hidden, hidden_grad = hidden_grads(p, gc, scaled, grads, stats)
            context_grad = context_grads(p, gc, out, scaled, grads, hidden, hidden_grad, stats)
        partials = pass_over_features(
            p, student, teacher, student_grads, gc, scaled, grads, maps, stats, context_grad, out is not None
        )
        if out:
            sum_keys(p, student, teacher, out, stats, partials)
    return student_grads, like_parameters(gc_grads_out, gc_block) if need_gc_block else []


def key_size(p: Pyramid) -> int:
    """Entries of a chunk's partial sums in the backward pass."""
    return 2 * max(p.channels) + 4


def hidden_grads(
    p: Pyramid, gc: GcBlocks, weights: tuple[float, ...], grads: Tensor, stats: Tensor
) -> tuple[Tensor, Tensor]:
    """h and ∂L/∂relu of all nets and images."""
    grid = Grid.of(cut(gc.hidden, HIDDEN_BLOCK), p.images)
    size = p.images * sum(gc.hidden)
    hidden, hidden_grad = scratch(stats, size), scratch(stats, size)
    gc_hidden_grad[(grid.total,)](
        grads=grads,
        w1=gc.w1,
        b1=gc.b1,
        w2=gc.w2,
        stats=stats,
        hidden=hidden,
        hidden_grad=hidden_grad,
        weights=weights,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        hidden_size=encoded(gc.hidden),
        hidden_before=encoded(before(gc.hidden, p.images)),
        channels=encoded(p.channels),
        channels_before=encoded(p.channels_before),
        BLOCK_K=HIDDEN_BLOCK,
        BLOCK_C=128,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return hidden, hidden_grad


def context_grads(
    p: Pyramid,
    gc: GcBlocks,
    gc_out: GcBlocks | None,
    weights: tuple[float, ...],
    grads: Tensor,
    hidden: Tensor,
    hidden_grad: Tensor,
    stats: Tensor,
) -> Tensor:
    """The contexts' gradients; those of the parameters go to `gc_out`, if they are asked for."""
    grid = Grid.of([blocks for blocks in cut(p.channels, CHANNEL_BLOCK) for _ in range(2)], 1)
    context_grad = scratch(stats, 2 * p.images * sum(p.channels))
    out = gc_out or gc
    gc_grads[(grid.total,)](
        grads=grads,
        w1=gc.w1,
        ln_weight=gc.ln_weight,
        ln_bias=gc.ln_bias,
        hidden=hidden,
        hidden_grad=hidden_grad,
        stats=stats,
        context_grad=context_grad,
        grad_w1=out.w1,
        grad_b1=out.b1,
        grad_ln_weight=out.ln_weight,
        grad_ln_bias=out.ln_bias,
        grad_w2=out.w2,
        grad_b2=out.b2,
        weights=weights,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        hidden_size=encoded(gc.hidden),
        hidden_before=encoded(before(gc.hidden, p.images)),
        channels=encoded(p.channels),
        channels_before=encoded(p.channels_before),
        images=p.images,
        PARAMETERS=gc_out is not None,
        BLOCK_C=CHANNEL_BLOCK,
        BLOCK_K=32,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return context_grad


def pass_over_features(
    p: Pyramid,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    student_grads: Sequence[Tensor],
    gc: GcBlocks | None,
    weights: tuple[float, ...],
    grads: Tensor,
    maps: Tensor,
    stats: Tensor,
    context_grad: Tensor,
    keys: bool,
) -> Tensor:
    """The student's gradients; returns the chunks' parts of the keys' gradients (where `keys`)."""
    grid, tile = p.chunks, p.tile
    groups = (students, teachers, student_grads) if student_grads else (students, teachers)
    layouts = Layouts.of(groups, tile.align)
    partials = scratch(stats, grid.total * key_size(p) if keys else 0)
    last = len(groups) - 1
    backward_pass[(grid.total,)](
        students=tuple(students),
        teachers=tuple(teachers),
        student_grads=tuple(groups[last]),
        keys_s=gc.keys[::2] if gc else tuple(students),
        grads=grads,
        maps=maps,
        stats=stats,
        context_grad=context_grad,
        partials=partials,
        weights=weights,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        channels=encoded(p.channels),
        channels_before=encoded(p.channels_before),
        pixels=encoded(p.pixels),
        pixels_before=encoded(p.pixels_before),
        s_image=encoded(layouts.images(0)),
        s_row=encoded(layouts.rows(0)),
        t_image=encoded(layouts.images(1)),
        t_row=encoded(layouts.rows(1)),
        g_image=encoded(layouts.images(last)),
        g_row=encoded(layouts.rows(last)),
        kinds=encoded(layouts.kinds),
        partial_size=key_size(p),
        images=p.images,
        KINDS=layouts.present,
        ALIGN=tile.align,
        GC=p.gc,
        STUDENT=bool(student_grads),
        KEYS=keys,
        BLOCK_C=tile.block_c,
        BLOCKS=tile.blocks,
        GROUPS=tile.groups,
        PARTS=tile.parts,
        SLABS=tile.slabs,
        CHUNK=tile.chunk,
        ALL_CHANNELS=tuple(tile.covers(kind, p.channels) for kind in range(4)),
        WIDE=layouts.wide,
        SAME_ROWS=layouts.same_rows,
        num_warps=tile.warps,
        enable_fp_fusion=True,  # as forward
        num_stages=1,
    )
    return partials


def sum_keys(
    p: Pyramid,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    gc_out: GcBlocks,
    stats: Tensor,
    partials: Tensor,
) -> None:
    """The chunks' partial sums become the gradients of the keys; the biases' are zero."""
    grid = Grid.of([blocks for blocks in cut(p.channels, CHANNEL_BLOCK) for _ in range(2)], 1)
    layouts = Layouts.of((students, teachers), p.tile.align)
    sum_key_grads[(grid.total,)](
        students=tuple(students),
        teachers=tuple(teachers),
        stats=stats,
        partials=partials,
        key_grads=gc_out.keys,
        bias_grads=gc_out.biases,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        first_chunk=encoded(p.chunks.first),
        chunks=encoded(p.chunks.parts),
        channels=encoded(p.channels),
        channels_before=encoded(p.channels_before),
        s_image=encoded(layouts.images(0)),
        s_row=encoded(layouts.rows(0)),
        t_image=encoded(layouts.images(1)),
        t_row=encoded(layouts.rows(1)),
        kinds=encoded(layouts.kinds),
        partial_size=key_size(p),
        images=p.images,
        BLOCK_C=CHANNEL_BLOCK,
        BLOCK=32,
        num_warps=4,
        enable_fp_fusion=False,
    )
