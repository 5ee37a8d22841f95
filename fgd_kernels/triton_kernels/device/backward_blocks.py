"""Backward for more channels than a tile holds: as backward_pass.py, but every tile is gone through twice in blocks of
channels, first for u, then (from the cache) for the gradient. The keys' sums stay in `partials`.
"""

import triton
import triton.language as tl

from ..layout import STAT_CONTEXT_S, STAT_CONTEXT_T
from .backward_tile import channel_factors, context_mean, key_factor, pixel_factors, store_key_numbers, student_grad
from .chunks import accumulate
from .tile import (
    load_tile,
    over_channels,
    over_pixels,
    pixel_index,
    pixel_mask,
    second_offset,
    sum_groups,
    sum_part,
    tile_mask,
    tile_offset,
)


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
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    mean_s, mean_t = 0.0, 0.0
    if GC:
        mean_s = context_mean(context_s, stats + STAT_CONTEXT_S * channels, channels, BLOCK_C)
        mean_t = context_mean(context_t, stats + STAT_CONTEXT_T * channels, channels, BLOCK_C)
    totals, peaks = (tl.zeros((GROUPS,), tl.float32),) * 2, (tl.zeros((GROUPS,), tl.int32),) * 2
    for first in range(begin, end, GROUPS * PART):
        p = pixel_index(first, LAYOUT, GROUPS, PART)
        exists = pixel_mask(first, pixels, LAYOUT, GROUPS, PART)
        u_s, u_t = tl.zeros(p.shape, tl.float32), tl.zeros(p.shape, tl.float32)
        if GC:
            for channel_block in range(0, channels, BLOCK_C):
                c = channel_block + tl.arange(0, BLOCK_C)
                at = tile_offset(s_row, c, p, LAYOUT, ALIGN, WIDE)
                s = load_tile(student, at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
                t_at = second_offset(at, t_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
                t = load_tile(teacher, t_at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
                grad_s = tl.load(context_s + c, mask=c < channels, other=0.0)
                grad_t = tl.load(context_t + c, mask=c < channels, other=0.0)
                u_s += tl.sum(s * over_pixels(grad_s, LAYOUT), LAYOUT)
                u_t += tl.sum(t * over_pixels(grad_t, LAYOUT), LAYOUT)
        pixel = pixel_factors(maps, p, exists, pixels, g, u_s, u_t, mean_s, mean_t, LAYOUT, ALIGN, GC)
        rest_s, rest_t = 0.0, 0.0
        if KEYS:
            rest_s, total_s, peak_s = key_factor(pixel[2], pixel[3], p, totals[0], peaks[0], LAYOUT)
            rest_t, total_t, peak_t = key_factor(pixel[5], pixel[4], p, totals[1], peaks[1], LAYOUT)
            totals, peaks = (total_s, total_t), (peak_s, peak_t)
        for channel_block in range(0, channels, BLOCK_C):
            c = channel_block + tl.arange(0, BLOCK_C)
            at = tile_offset(s_row, c, p, LAYOUT, ALIGN, WIDE)
            s = load_tile(student, at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            t_at = second_offset(at, t_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
            t = load_tile(teacher, t_at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            if STUDENT:
                channel = channel_factors(stats, context_s, context_t, key_s, g, c, channels, GC)
                grad = student_grad(s, t, channel, pixel, 2.0 * g[3], LAYOUT, GC)
                mask = tile_mask(c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
                offset = second_offset(at, g_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
                tl.store(student_grad_at + offset, grad.to(student_grad_at.dtype.element_ty), mask=mask)
            if KEYS:
                part_s = sum_groups(sum_part(s * over_channels(rest_s, LAYOUT), LAYOUT), LAYOUT)
                part_t = sum_groups(sum_part(t * over_channels(rest_t, LAYOUT), LAYOUT), LAYOUT)
                accumulate(partial + c, part_s, c < channels, first - begin)
                accumulate(partial + channels + c, part_t, c < channels, first - begin)
        if KEYS:
            tl.debug_barrier()  # the next tile adds to what other threads of this program have stored
    if KEYS:
        store_key_numbers(partial, channels, totals, peaks)
