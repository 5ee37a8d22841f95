"""Forward for more channels than a tile holds: as forward_pass.py, but every tile is gone through twice in blocks of
channels, first for the sums over channels, then (from the cache) for those over pixels, which stay in `partials`.

All groups of pixels have one running maximum here, because sums leave the registers after every tile.
"""

import triton
import triton.language as tl

from ..layout import SUMS
from .forward_tile import add_each, add_tile, load_mask, logits, softmax_steps, store_logits, store_softmaxes
from .levels import LOWEST
from .tile import load_tile, second_offsets, sum_groups, tile_offsets, tile_pixels, zero_sums


@triton.jit
def add_logits(z, more):
    found = ()
    for slab in tl.static_range(len(z)):
        found = found + (add_each(z[slab], more[slab]),)  # noqa: RUF005 - Triton knows no * in a tuple
    return found


@triton.jit
def no_logits(like, GC: tl.constexpr, SLABS: tl.constexpr):
    nothing = tl.zeros(like.shape, tl.float32)
    if GC:
        return ((nothing,) * 4,) * SLABS
    else:
        return ((nothing,) * 2,) * SLABS


@triton.jit
def load_key(key, c, channels, GC: tl.constexpr):
    if GC:
        return tl.load(key + c, mask=c < channels, other=0.0)
    else:
        return 0.0


@triton.jit
def rescale(total, index, shrink):
    """What the older part of a sum is multiplied with when the maximum that it is relative to grows."""
    factor = 1.0
    if index < 2:
        factor = tl.max(shrink[0], axis=0)
    elif index >= 6:
        factor = tl.max(shrink[index - 5], axis=0)
    return total * factor


@triton.jit
def chunk_in_blocks(
    student,
    teacher,
    key_s,
    key_t,
    mask,
    maps,
    partial,
    channels,
    pixels,
    s_row,
    t_row,
    scale,
    begin,
    end,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    GC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUPS: tl.constexpr,
    PART: tl.constexpr,
    SLABS: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    none, zero = tl.zeros((GROUPS,), tl.float32), zero_sums(BLOCK_C, GROUPS, LAYOUT)
    maxima, normalisers, zeros = (none + LOWEST,) * 2, (none,) * 2, (zero,) * 6
    if GC:
        maxima, normalisers, zeros = (none + LOWEST,) * 4, (none,) * 4, (zero,) * 8
    for first in range(begin, end, GROUPS * PART * SLABS):
        p, exists = tile_pixels(first, pixels, GROUPS, PART, SLABS)
        z = no_logits(p[0], GC, SLABS)
        for channel_block in range(0, channels, BLOCK_C):
            c = channel_block + tl.arange(0, BLOCK_C)
            at = tile_offsets(s_row, c, p, LAYOUT, ALIGN, WIDE)
            s = load_tile(student, at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            t_at = second_offsets(at, t_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
            t = load_tile(teacher, t_at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            wk_s, wk_t = load_key(key_s, c, channels, GC), load_key(key_t, c, channels, GC)
            z = add_logits(z, logits(s, t, wk_s, wk_t, LAYOUT, GC))
        store_logits(maps, z, p, exists, pixels, LAYOUT, ALIGN)
        fg = load_mask(mask, p, exists, pixels, LAYOUT, ALIGN)
        e, shrink, maxima, normalisers = softmax_steps(z, scale, exists, maxima, normalisers, GC, True)
        for channel_block in range(0, channels, BLOCK_C):
            c = channel_block + tl.arange(0, BLOCK_C)
            at = tile_offsets(s_row, c, p, LAYOUT, ALIGN, WIDE)
            s = load_tile(student, at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            t_at = second_offsets(at, t_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
            t = load_tile(teacher, t_at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            sums = add_tile(s, t, fg, e, shrink, zeros, LAYOUT, GC)
            for i in tl.static_range(len(sums)):
                to = partial + i * channels + c
                old = tl.load(to, mask=(c < channels) & (first > begin), other=0.0)
                tl.store(to, rescale(old, i, shrink) + sum_groups(sums[i], LAYOUT), mask=c < channels)
        tl.debug_barrier()  # the next tile adds to what other threads of this program have stored
    store_softmaxes(partial + SUMS * channels, scale, maxima, normalisers)
