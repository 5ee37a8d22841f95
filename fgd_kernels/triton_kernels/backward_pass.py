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

from .device.backward_tile import (
    add_key_sums,
    all_channel_factors,
    context_logits,
    context_mean,
    key_factors,
    pixel_factors,
    store_grad,
    store_key_numbers,
)
from .device.levels import image_start, locate, multiple, number, pick
from .device.tile import block_channels, load_tile, second_offsets, sum_groups, tile_pixels, zero_sums
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
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    PART: tl.constexpr,
    SLABS: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
):
    channel = all_channel_factors(stats, context_s, context_t, key_s, g, channels, BLOCK_C, BLOCKS, GC)
    mean_s, mean_t = 0.0, 0.0
    if GC:
        mean_s = context_mean(context_s, stats + STAT_CONTEXT_S * channels, channels, BLOCK_C)
        mean_t = context_mean(context_t, stats + STAT_CONTEXT_T * channels, channels, BLOCK_C)
    sums = ((zero_sums(BLOCK_C, GROUPS, LAYOUT),) * 2,) * BLOCKS
    totals, peaks = (tl.zeros((GROUPS,), tl.float32),) * 2, (tl.zeros((GROUPS,), tl.int32),) * 2
    for first in range(begin, end, GROUPS * PART * SLABS):
        p, exists = tile_pixels(first, pixels, GROUPS, PART, SLABS)
        tile, at = load_tile(
            student,
            teacher,
            s_row,
            t_row,
            p,
            exists,
            channels,
            LAYOUT,
            ALIGN,
            BLOCK_C,
            BLOCKS,
            ALL_CHANNELS,
            WIDE,
            SAME_ROWS,
        )
        u = context_logits(tile, channel, LAYOUT, GC)
        pixel = pixel_factors(maps, p, exists, pixels, g, u, mean_s, mean_t, LAYOUT, ALIGN, GC)
        if STUDENT:
            for block in tl.static_range(BLOCKS):
                s, t = tile[block]
                c = block_channels(block, BLOCK_C)
                offsets = second_offsets(at[block], g_row, c, p, LAYOUT, ALIGN, WIDE, SAME_ROWS)
                store_grad(
                    student_grad_at,
                    offsets,
                    s,
                    t,
                    channel[block],
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
            rest_s, rest_t, totals, peaks = key_factors(pixel, p, totals, peaks)
            sums = add_key_sums(sums, tile, rest_s, rest_t, LAYOUT)
    if KEYS:
        for block in tl.static_range(BLOCKS):
            c = block_channels(block, BLOCK_C)
            for net in tl.static_range(2):
                at_net = partial + net * channels + c
                tl.store(at_net, sum_groups(sums[block][net], LAYOUT), mask=c < channels)
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
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTS: tl.constexpr,
    SLABS: tl.constexpr,
    CHUNK: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    SAME_ROWS: tl.constexpr,
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
                backward_chunk(
                    *arguments,
                    LAYOUT=k // 2,
                    ALIGN=ALIGN if k % 2 == 0 else 1,
                    GC=GC,
                    STUDENT=STUDENT,
                    KEYS=KEYS,
                    BLOCK_C=BLOCK_C[k],
                    BLOCKS=BLOCKS[k],
                    GROUPS=GROUPS[k],
                    PART=PARTS[k],
                    SLABS=SLABS[k],
                    ALL_CHANNELS=ALL_CHANNELS[k],
                    WIDE=WIDE,
                    SAME_ROWS=SAME_ROWS,
                )
