"""The forward pass: one function a launch, and `forward`, which calls them in order.

Kernels are called by keyword. What they need is decided from shapes, strides and types.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..finish import finish
from ..forward_pass import forward_pass
from ..gc_added import gc_added
from ..gc_hidden import gc_hidden
from ..mask import rasterise as rasterise_kernel
from ..merge import merge
from ..total import total
from .device import on_device_of
from .gc_blocks import GcBlocks
from .pyramid import (
    CHANNEL_BLOCK,
    HIDDEN_BLOCK,
    PIXEL_BLOCK,
    Grid,
    Layouts,
    Pyramid,
    before,
    cut,
    encoded,
    power_of_two,
    scratch,
)


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
    foreground: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """fg, bg, attention, global, terms, maps, stats: seven launches, five without GcBlocks."""
    p = Pyramid.of(student, teacher, bool(gc_block))
    maps = sizes.new_empty(4 * p.images * sum(p.pixels))
    stats = sizes.new_empty(6 * p.images * sum(p.channels))
    if p.images == 0:
        return (*(sizes.new_zeros(()) for _ in range(4)), sizes.new_zeros((len(student), 4)), maps, stats)
    with on_device_of(sizes):
        gc = GcBlocks.of(gc_block) if gc_block else None
        keys = (gc.keys[::2], gc.keys[1::2]) if gc else (student, student)
        fg, outside = rasterise(p, boxes, offsets, sizes, foreground)
        partials = pass_over_features(p, student, teacher, keys, spatial, fg, maps)
        sums, distances = merge_chunks(p, spatial, partials, maps)
        terms = finish_images(p, (spatial, channel), sums, distances, partials, fg, outside, maps, stats)
        shifted, grid = terms, Grid.of([0] * len(student), 0)
        if gc:
            shifted, grid = added_vectors(p, gc, hidden_vectors(p, gc, stats), stats)
        return (*sum_terms(p, weights, terms, shifted, grid), maps, stats)


def rasterise(
    p: Pyramid, boxes: Tensor, offsets: Tensor, sizes: Tensor, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """fg, of boxes or as it is given, and the background pixels of every block of pixels."""
    grid = p.blocks
    mask = scratch(sizes, p.images * sum(p.mask_size))
    outside = scratch(sizes, grid.total, torch.int32)
    rasterise_kernel[(grid.total,)](
        boxes=boxes,
        offsets=offsets,
        sizes=sizes,
        given=mask if given is None else given,
        mask=mask,
        outside=outside,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        heights=encoded(p.heights),
        widths=encoded(p.widths),
        pixels=encoded(p.pixels),
        pixels_before=encoded(p.pixels_before),
        mask_size=encoded(p.mask_size),
        mask_before=encoded(p.mask_before),
        GIVEN=given is not None,
        BLOCK=PIXEL_BLOCK,
        BOXES=16,
        num_warps=2,  # a thread has 16 pixels to share what a box costs
        enable_fp_fusion=False,
    )
    return mask, outside


def pass_over_features(
    p: Pyramid,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    keys: tuple[Sequence[Tensor], Sequence[Tensor]],
    spatial_temperature: float,
    mask: Tensor,
    maps: Tensor,
) -> Tensor:
    """The chunks' partial sums; logits go to `maps`."""
    grid, tile = p.chunks, p.tile
    layouts = Layouts.of((students, teachers), tile.align)
    partials = scratch(mask, grid.total * p.sum_size)
    scales, rests = p.pixel_scales(spatial_temperature)
    forward_pass[(grid.total,)](
        students=tuple(students),
        teachers=tuple(teachers),
        keys_s=tuple(keys[0]),
        keys_t=tuple(keys[1]),
        mask=mask,
        maps=maps,
        partials=partials,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        channels=encoded(p.channels),
        pixels=encoded(p.pixels),
        pixels_before=encoded(p.pixels_before),
        mask_size=encoded(p.mask_size),
        mask_before=encoded(p.mask_before),
        s_image=encoded(layouts.images(0)),
        s_row=encoded(layouts.rows(0)),
        t_image=encoded(layouts.images(1)),
        t_row=encoded(layouts.rows(1)),
        scales=scales,
        scale_rests=rests,
        kinds=encoded(layouts.kinds),
        partial_size=p.sum_size,
        KINDS=layouts.present,
        ALIGN=tile.align,
        GC=p.gc,
        BLOCK_C=tile.block_c,
        BLOCKS=tile.blocks,
        GROUPS=tile.groups,
        PARTS=tile.parts,
        SLABS=tile.slabs,
        CHUNK=tile.chunk,
        CHUNK_BLOCK=power_of_two(tile.chunk),
        ALL_CHANNELS=tuple(tile.covers(kind, p.channels) for kind in range(4)),
        WIDE=layouts.wide,
        SAME_ROWS=layouts.same_rows,
        num_warps=tile.warps,
        enable_fp_fusion=True,  # said, because what Triton takes by default changes in 3.10
        num_stages=1,
    )
    return partials


def merge_chunks(p: Pyramid, spatial_temperature: float, partials: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The images' sums, and the distance of the spatial attentions in every block of pixels."""
    parts = [a + b for a, b in zip(p.blocks.parts, cut(p.channels, CHANNEL_BLOCK), strict=True)]
    grid = Grid.of(parts, p.images)
    sums = scratch(maps, 8 * p.images * sum(p.channels))
    distances = scratch(maps, 2 * p.blocks.total, torch.float64)
    scales, rests = p.pixel_scales(spatial_temperature)
    merge[(grid.total,)](
        partials=partials,
        maps=maps,
        sums=sums,
        distances=distances,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        first_chunk=encoded(p.chunks.first),
        chunks=encoded(p.chunks.parts),
        first_block=encoded(p.blocks.first),
        blocks=encoded(p.blocks.parts),
        channels=encoded(p.channels),
        channels_before=encoded(p.channels_before),
        pixels=encoded(p.pixels),
        pixels_before=encoded(p.pixels_before),
        scales=scales,
        scale_rests=rests,
        partial_size=p.sum_size,
        GC=p.gc,
        BLOCK_C=CHANNEL_BLOCK,
        BLOCK_P=PIXEL_BLOCK,
        BLOCK=32,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return sums, distances


def finish_images(
    p: Pyramid,
    temperatures: tuple[float, float],
    sums: Tensor,
    distances: Tensor,
    partials: Tensor,
    mask: Tensor,
    outside: Tensor,
    maps: Tensor,
    stats: Tensor,
) -> Tensor:
    """The images' terms; `maps` and `stats` become what the backward pass reads."""
    grid = Grid.of([blocks + 1 for blocks in p.blocks.parts], p.images)
    terms = scratch(maps, 4 * p.images * len(p.channels))
    pixel_scales, channel_scales = p.pixel_scales(temperatures[0]), p.channel_scales(temperatures[1])
    finish[(grid.total,)](
        sums=sums,
        distances=distances,
        partials=partials,
        mask=mask,
        outside=outside,
        maps=maps,
        stats=stats,
        terms=terms,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        first_chunk=encoded(p.chunks.first),
        chunks=encoded(p.chunks.parts),
        first_block=encoded(p.blocks.first),
        blocks=encoded(p.blocks.parts),
        channels=encoded(p.channels),
        channels_before=encoded(p.channels_before),
        pixels=encoded(p.pixels),
        pixels_before=encoded(p.pixels_before),
        mask_size=encoded(p.mask_size),
        mask_before=encoded(p.mask_before),
        pixel_scales=pixel_scales[0],
        pixel_scale_rests=pixel_scales[1],
        channel_scales=channel_scales[0],
        channel_scale_rests=channel_scales[1],
        partial_size=p.sum_size,
        images=p.images,
        GC=p.gc,
        BLOCK_C=power_of_two(max(p.channels)),
        BLOCK_P=PIXEL_BLOCK,
        BLOCK=32,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return terms


def hidden_vectors(p: Pyramid, gc: GcBlocks, stats: Tensor) -> Tensor:
    """h of all nets and images."""
    grid = Grid.of(cut(gc.hidden, HIDDEN_BLOCK), p.images)
    hidden = scratch(stats, p.images * sum(gc.hidden))
    gc_hidden[(grid.total,)](
        w1=gc.w1,
        b1=gc.b1,
        stats=stats,
        hidden=hidden,
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
    return hidden


def added_vectors(p: Pyramid, gc: GcBlocks, hidden: Tensor, stats: Tensor) -> tuple[Tensor, Grid]:
    """The blocks' parts of the global terms and how they lie; the shift goes to `stats`."""
    grid = Grid.of(cut(p.channels, CHANNEL_BLOCK), p.images)
    shifted = scratch(stats, grid.total)
    gc_added[(grid.total,)](
        w2=gc.w2,
        b2=gc.b2,
        ln_weight=gc.ln_weight,
        ln_bias=gc.ln_bias,
        hidden=hidden,
        stats=stats,
        shifted=shifted,
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        hidden_size=encoded(gc.hidden),
        hidden_before=encoded(before(gc.hidden, p.images)),
        channels=encoded(p.channels),
        channels_before=encoded(p.channels_before),
        pixels=encoded(p.pixels),
        BLOCK_C=CHANNEL_BLOCK,
        BLOCK_K=32,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return shifted, grid


def sum_terms(p: Pyramid, weights: Sequence[float], terms: Tensor, shifted: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """fg, bg, attention, global, and the weighted terms of every level."""
    weighted = terms.new_empty((len(p.channels), 4))
    scalars = tuple(terms.new_empty(()) for _ in range(4))
    total[(1,)](
        terms=terms,
        shifted=shifted,
        weighted=weighted,
        fg=scalars[0],
        bg=scalars[1],
        attention=scalars[2],
        global_=scalars[3],
        weights=tuple(weight / p.images for weight in weights),
        first=encoded(grid.first),
        parts=encoded(grid.parts),
        images=p.images,
        GC=p.gc,
        BLOCK=32,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return (*scalars, weighted)
