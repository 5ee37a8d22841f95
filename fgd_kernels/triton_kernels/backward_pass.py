"""Backward, the one pass over the features. With upstream gradients g_fg .. g_gl (weights and 1/N included), d = s - t:

    ∂L/∂s[c,p] = 2·d·A^C_t[c]·A^S_t[p]·(g_fg fg[p] + g_bg [fg[p]=0]/n_bg)                    feature loss
               + 2·g_gl·(d + r[c])                                                           global loss, direct
               + g_at·sign(s)·( h_S[p] + h_C[c] )                                            attention loss
               + q[p]·g_ctx[c] + Wk_s[c]·q[p]·(u[p] - ū),  u[p] = Σc s[c,p]·g_ctx[c]         global loss, context
    ∂L/∂Wk_s[c] = Σp f[p]·s[c,p],  f = q·(u - ū), and the same of the teacher: to `partials`, one sum a chunk of pixels

Where one pixel has nearly all the weight, its u - ū is rounding alone, far above what ∂L/∂Wk is worth. But Σ f = 0: a
pixel p* with q > 3/4, the peak, is left out, and key_grads.py adds what it is worth, -s[c,p*]·(the sum of the others'
f), which is exact.

With ū = g_ctx·ctx, h_S, h_C, r, q and the factors of the feature loss as the forward pass saved them.

    students, teachers   (N, C, H, W) a level, any of the layouts of tile.py; student_grads likewise: out
    keys_s        (C,) a level: Wk of the student's GcBlock
    grads         (4,)   upstream gradients of the four terms; `weights`: the terms' weights over N, 4 a level
    maps, stats   [level][image][4][P], [level][image][6][C], see csrc/include/fgd/layout.h
    context_grad  [level][net][image][C]    ∂L/∂ctx
    partials      [program][2·C + 4]        out: key sums, Σ f, and peak + 1 (int32), of both nets
"""

import triton
import triton.language as tl

from .device.backward_blocks import chunk_in_blocks
from .device.backward_tile import (
    channel_factors,
    context_mean,
    key_factor,
    pixel_factors,
    store_key_numbers,
    student_grad,
)
from .device.levels import image_start, locate, multiple, number, pick
from .device.tile import (
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
    zero_sums,
)
from .device.upstream import upstream
from .layout import MAPS, STAT_CONTEXT_S, STAT_CONTEXT_T, STATS


@triton.jit
def backward_chunk(
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
    c = tl.arange(0, BLOCK_C)
    channel = channel_factors(stats, context_s, context_t, key_s, g, c, channels, GC)
    mean_s, mean_t = 0.0, 0.0
    if GC:
        mean_s = context_mean(context_s, stats + STAT_CONTEXT_S * channels, channels, BLOCK_C)
        mean_t = context_mean(context_t, stats + STAT_CONTEXT_T * channels, channels, BLOCK_C)
    sum_s, sum_t = zero_sums(BLOCK_C, GROUPS, LAYOUT), zero_sums(BLOCK_C, GROUPS, LAYOUT)
    totals, peaks = (tl.zeros((GROUPS,), tl.float32),) * 2, (tl.zeros((GROUPS,), tl.int32),) * 2
    for first in range(begin, end, GROUPS * PART):
        p = pixel_index(first, LAYOUT, GROUPS, PART)
        exists = pixel_mask(first, pixels, LAYOUT, GROUPS, PART)
        at = tile_offset(s_row, c, p, LAYOUT, ALIGN, WIDE)
        s = load_tile(student, at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
        t_at = second_offset(at, t_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
        t = load_tile(teacher, t_at, c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
        u_s, u_t = 0.0, 0.0
        if GC:
            u_s = tl.sum(s * over_pixels(channel[3], LAYOUT), LAYOUT)
            u_t = tl.sum(t * over_pixels(channel[5], LAYOUT), LAYOUT)
        pixel = pixel_factors(maps, p, exists, pixels, g, u_s, u_t, mean_s, mean_t, LAYOUT, ALIGN, GC)
        if STUDENT:
            grad = student_grad(s, t, channel, pixel, 2.0 * g[3], LAYOUT, GC)
            mask = tile_mask(c, exists, channels, LAYOUT, ALIGN, ALL_CHANNELS)
            offset = second_offset(at, g_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
            tl.store(student_grad_at + offset, grad.to(student_grad_at.dtype.element_ty), mask=mask)
        if KEYS:
            rest_s, total_s, peak_s = key_factor(pixel[2], pixel[3], p, totals[0], peaks[0], LAYOUT)
            rest_t, total_t, peak_t = key_factor(pixel[5], pixel[4], p, totals[1], peaks[1], LAYOUT)
            totals, peaks = (total_s, total_t), (peak_s, peak_t)
            sum_s += sum_part(s * over_channels(rest_s, LAYOUT), LAYOUT)
            sum_t += sum_part(t * over_channels(rest_t, LAYOUT), LAYOUT)
    if KEYS:
        tl.store(partial + c, sum_groups(sum_s, LAYOUT), mask=c < channels)
        tl.store(partial + channels + c, sum_groups(sum_t, LAYOUT), mask=c < channels)
        store_key_numbers(partial, channels, totals, peaks)


_LEVELS = [
    "students",
    "teachers",
    "student_grads",
    "keys_s",
    "weights",
    "first",
    "parts",
    "channels",
    "channels_before",
    "pixels",
    "pixels_before",
    "s_image",
    "s_row",
    "t_image",
    "t_row",
    "g_image",
    "g_row",
    "kinds",
]


@triton.jit(do_not_specialize=[*_LEVELS, "partial_size", "images"], do_not_specialize_on_alignment=_LEVELS)
def backward_pass(
    students,
    teachers,
    student_grads,
    keys_s,
    grads,
    maps,
    stats,
    context_grad,
    partials,
    weights,
    first,
    parts,
    channels,
    channels_before,
    pixels,
    pixels_before,
    s_image,
    s_row,
    t_image,
    t_row,
    g_image,
    g_row,
    kinds,
    partial_size,
    images,
    KINDS: tl.constexpr,
    ALIGN: tl.constexpr,
    GC: tl.constexpr,
    STUDENT: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
    IN_BLOCKS: tl.constexpr,
):
    level, image, part = locate(first, parts)
    size, kind, width = number(pixels, level), number(kinds, level), number(channels, level)
    row = image.to(tl.int64)
    begin = part * CHUNK
    end = tl.minimum(begin + CHUNK, size)
    context_s = context_grad + 2 * number(channels_before, level).to(tl.int64) + row * width
    key_s = 0
    if GC:
        key_s = pick(keys_s, level)
    g = upstream(grads, weights, level)
    # One body for every kind of layout that a level of this launch has.
    for k in tl.static_range(4):
        if (KINDS // 2**k) % 2:  # noqa: SIM102 - the outer one is decided by the compiler
            if kind == k:
                student = pick(students, level) + row * multiple(number(s_image, level), k, ALIGN)
                teacher = pick(teachers, level) + row * multiple(number(t_image, level), k, ALIGN)
                grad = student
                if STUDENT:
                    grad = pick(student_grads, level) + row * multiple(number(g_image, level), k, ALIGN)
                arguments = (
                    tl.multiple_of(student, 16) if k % 2 == 0 else student,
                    tl.multiple_of(teacher, 16) if k % 2 == 0 else teacher,
                    tl.multiple_of(grad, 16) if k % 2 == 0 else grad,
                    key_s,
                    context_s,
                    context_s + images.to(tl.int64) * width,
                    tl.multiple_of(maps + MAPS * image_start(pixels_before, pixels, level, image), 16),
                    stats + STATS * image_start(channels_before, channels, level, image),
                    partials + tl.program_id(0).to(tl.int64) * partial_size,
                    g,
                    width,
                    multiple(size, k, ALIGN) if k == 0 else size,
                    multiple(number(s_row, level), k, ALIGN),
                    multiple(number(t_row, level), k, ALIGN),
                    g_row[0] if not STUDENT else multiple(number(g_row, level), k, ALIGN),
                    begin,
                    end,
                )
                if IN_BLOCKS:
                    chunk_in_blocks(
                        *arguments,
                        LAYOUT=k if k < 2 else 2,
                        ALIGN=ALIGN if k % 2 == 0 else 1,
                        GC=GC,
                        STUDENT=STUDENT,
                        KEYS=KEYS,
                        BLOCK_C=BLOCK_C,
                        GROUPS=GROUPS[k],
                        PART=PARTS[k],
                        ALL_CHANNELS=ALL_CHANNELS,
                        WIDE=WIDE,
                        SAME_ROWS=SAME_ROWS,
                    )
                else:
                    backward_chunk(
                        *arguments,
                        LAYOUT=k if k < 2 else 2,
                        ALIGN=ALIGN if k % 2 == 0 else 1,
                        GC=GC,
                        STUDENT=STUDENT,
                        KEYS=KEYS,
                        BLOCK_C=BLOCK_C,
                        GROUPS=GROUPS[k],
                        PART=PARTS[k],
                        ALL_CHANNELS=ALL_CHANNELS,
                        WIDE=WIDE,
                        SAME_ROWS=SAME_ROWS,
                    )
