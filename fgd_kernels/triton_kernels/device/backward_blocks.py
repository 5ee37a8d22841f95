"""Backward for more channels than a tile holds: as backward_pass.py, but every tile is gone through twice in blocks of
channels, first for u, then (from the cache) for the gradient. The keys' sums stay in `partials`.
"""

import triton
import triton.language as tl

from ..layout import STAT_CONTEXT_S, STAT_CONTEXT_T
from .backward_tile import (
    channel_factors,
    context_logits,
    context_mean,
    key_factors,
    no_logits,
    pixel_factors,
    store_grad,
    store_key_numbers,
    weighted_sum,
)
from .chunks import accumulate
from .forward_blocks import add_logits
from .tile import load_tile, second_offsets, sum_groups, tile_offsets, tile_pixels


@triton.jit
def chunk_in_blocks(
    student,
    teacher,
    student_grad_at,
    key_s,
    context_s,
    context_t,
    maps,
    stats,
    partial,
    g,
    channels,
    pixels,
    s_row,
    t_row,
    g_row,
    begin,
    end,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    GC: tl.constexpr,
    STUDENT: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUPS: tl.constexpr,
    PART: tl.constexpr,
    SLABS: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    mean_s, mean_t = 0.0, 0.0
    if GC:
        mean_s = context_mean(context_s, stats + STAT_CONTEXT_S * channels, channels, BLOCK_C)
        mean_t = context_mean(context_t, stats + STAT_CONTEXT_T * channels, channels, BLOCK_C)
    totals, peaks = (tl.zeros((GROUPS,), tl.float32),) * 2, (tl.zeros((GROUPS,), tl.int32),) * 2
    for first in range(begin, end, GROUPS * PART * SLABS):
        p, exists = tile_pixels(first, pixels, GROUPS, PART, SLABS)
        u = no_logits(p[0], SLABS)
        if GC:
            for channel_block in range(0, channels, BLOCK_C):
                c = channel_block + tl.arange(0, BLOCK_C)
                at = tile_offsets(s_row, c, p, LAYOUT, ALIGN, WIDE)
                s = load_tile(student, at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
                t_at = second_offsets(at, t_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
                t = load_tile(teacher, t_at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
                grad_s = tl.load(context_s + c, mask=c < channels, other=0.0)
                grad_t = tl.load(context_t + c, mask=c < channels, other=0.0)
                u = add_logits(u, context_logits(s, t, grad_s, grad_t, LAYOUT))
        pixel = pixel_factors(maps, p, exists, pixels, g, u, mean_s, mean_t, LAYOUT, ALIGN, GC)
        rest_s, rest_t = (), ()
        if KEYS:
            rest_s, rest_t, totals, peaks = key_factors(pixel, p, totals, peaks)
        for channel_block in range(0, channels, BLOCK_C):
            c = channel_block + tl.arange(0, BLOCK_C)
            at = tile_offsets(s_row, c, p, LAYOUT, ALIGN, WIDE)
            s = load_tile(student, at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            t_at = second_offsets(at, t_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
            t = load_tile(teacher, t_at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            if STUDENT:
                channel = channel_factors(stats, context_s, context_t, key_s, g, c, channels, GC)
                offsets = second_offsets(at, g_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
                store_grad(
                    student_grad_at,
                    offsets,
                    s,
                    t,
                    channel,
                    pixel,
                    g,
                    c,
                    exists,
                    channels,
                    LAYOUT,
                    ALIGN,
                    GC,
                    ALL_CHANNELS,
                )
            if KEYS:
                part_s = sum_groups(weighted_sum(s, rest_s, LAYOUT), LAYOUT)
                part_t = sum_groups(weighted_sum(t, rest_t, LAYOUT), LAYOUT)
                accumulate(partial + c, part_s, c < channels, first - begin)
                accumulate(partial + channels + c, part_t, c < channels, first - begin)
        if KEYS:
            tl.debug_barrier()  # the next tile adds to what other threads of this program have stored
    if KEYS:
        store_key_numbers(partial, channels, totals, peaks)
