"""Forward, what needs all of an image: the channel attention, the terms, and what is saved for the backward pass.

    A^C = C·softmax_c(Σp |F|/(P·T))       h_C[c] = A^C_s·(σ - Σ σ·A^C_s/C)/(P·T),  σ = sign(A^C_s - A^C_t)
    L_fg = Σc A^C_t·Qf    L_bg = Σc A^C_t·Qb/n_bg    L_at = Σc |A^C_s - A^C_t| + Σp |A^S_s - A^S_t|
    maps: A^S_t·fg, or -A^S_t/n_bg where fg = 0;  h_S[p] = A^S_s·(σ - Σ σ·A^S_s/P)/(C·T);  softmax of both contexts

One program takes a block of pixels, the last of each image takes its channels.

    sums, distances, partials   from merge.py and forward_pass.py
    mask, outside               from mask.py
    maps    [level][image][4][P]     in: logits, out: as csrc/include/fgd/layout.h says
    stats   [level][image][6][C]     out: likewise; without GcBlocks the shift and the contexts are 0
    terms   [level][image][4]        out: fg, bg, attention, and Σc D2 for the global term
"""

import triton
import triton.language as tl

from .device.chunks import attention_map, exponential, image_softmax, sign_of, sum_blocks
from .device.levels import LOG2E, LOWEST, image_start, locate, number, pick_double
from .layout import (
    MAP_ATTENTION,
    MAP_FOCAL,
    MAPS,
    SOFTMAX_STUDENT,
    SOFTMAX_TEACHER,
    STAT_ATTENTION,
    STAT_ATTENTION_GRAD,
    STAT_CONTEXT_S,
    STAT_SHIFT,
    STAT_SHIFT_GRAD,
    STATS,
    SUM_ABS_S,
    SUM_ABS_T,
    SUM_BG,
    SUM_CONTEXT_S,
    SUM_D,
    SUM_D2,
    SUM_FG,
    SUMS,
    TERM_ATTENTION,
    TERM_BG,
    TERM_FG,
    TERM_GLOBAL,
)


@triton.jit
def channel_attention(total, c, channels, scale):
    """A^C (8), in float64; `scale`: log2(e)/(P·T)."""
    best = tl.max(tl.where(c < channels, total, LOWEST), axis=0)
    e = tl.where(c < channels, exponential(total, best, scale), 0.0)
    return e * (channels / tl.sum(e, axis=0))


@triton.jit
def finish_channels(sums, stats, terms, background, distance, channels, scale, GC: tl.constexpr, BLOCK_C: tl.constexpr):
    c = tl.arange(0, BLOCK_C)
    mask = c < channels
    teacher = channel_attention(tl.load(sums + SUM_ABS_T * channels + c, mask=mask, other=0.0), c, channels, scale)
    student = channel_attention(tl.load(sums + SUM_ABS_S * channels + c, mask=mask, other=0.0), c, channels, scale)
    sign = sign_of(student, teacher)
    mean = tl.sum(sign * student, axis=0) / channels
    fg = tl.sum(teacher * tl.load(sums + SUM_FG * channels + c, mask=mask, other=0.0), axis=0)
    bg = tl.sum(teacher * tl.load(sums + SUM_BG * channels + c, mask=mask, other=0.0), axis=0)
    tl.store(terms + TERM_FG, fg)
    tl.store(terms + TERM_BG, bg / tl.maximum(background, 1).to(tl.float64))
    tl.store(terms + TERM_ATTENTION, tl.sum(tl.abs(student - teacher), axis=0) + distance)
    tl.store(terms + TERM_GLOBAL, tl.sum(tl.load(sums + SUM_D2 * channels + c, mask=mask, other=0.0), axis=0))
    tl.store(stats + STAT_ATTENTION * channels + c, teacher, mask=mask)
    tl.store(stats + STAT_ATTENTION_GRAD * channels + c, student * (sign - mean) * (scale / LOG2E), mask=mask)
    tl.store(stats + STAT_SHIFT * channels + c, tl.zeros_like(teacher), mask=mask)
    tl.store(
        stats + STAT_SHIFT_GRAD * channels + c, tl.load(sums + SUM_D * channels + c, mask=mask, other=0.0), mask=mask
    )
    for i in tl.static_range(2):
        context = tl.zeros_like(teacher)
        if GC:
            context = tl.load(sums + (SUM_CONTEXT_S + i) * channels + c, mask=mask, other=0.0)
        tl.store(stats + (STAT_CONTEXT_S + i) * channels + c, context, mask=mask)


@triton.jit
def finish_pixels(
    maps,
    mask,
    scalars,
    size,
    chunks,
    block,
    pixels,
    background,
    signed,
    scale,
    GC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    exists = p < pixels
    teacher = attention_map(maps, scalars, size, chunks, SOFTMAX_TEACHER, p, pixels, scale, BLOCK)
    student = attention_map(maps, scalars, size, chunks, SOFTMAX_STUDENT, p, pixels, scale, BLOCK)
    fg = tl.load(mask + p, mask=exists, other=0.0)
    outside = -1.0 / tl.maximum(background, 1).to(tl.float64)
    tl.store(maps + MAP_FOCAL * pixels + p, teacher * tl.where(fg > 0, fg, outside), mask=exists)
    grad = student * (sign_of(student, teacher) - signed / pixels) * (scale / LOG2E)
    tl.store(maps + MAP_ATTENTION * pixels + p, grad, mask=exists)
    for i in tl.static_range(2, 4):
        q = tl.zeros_like(teacher)
        if GC:
            best, normaliser = image_softmax(scalars, size, chunks, i, LOG2E, BLOCK)
            z = tl.load(maps + i * pixels + p, mask=exists, other=LOWEST)
            q = tl.exp2((z - best) * LOG2E) * (1.0 / normaliser)
        tl.store(maps + i * pixels + p, q, mask=exists)


_LEVELS = [
    "first",
    "parts",
    "first_chunk",
    "chunks",
    "first_block",
    "blocks",
    "channels",
    "channels_before",
    "pixels",
    "pixels_before",
    "mask_size",
    "mask_before",
    "pixel_scales",
    "pixel_scale_rests",
    "channel_scales",
    "channel_scale_rests",
]


@triton.jit(do_not_specialize=[*_LEVELS, "partial_size", "images"])
def finish(
    sums,
    distances,
    partials,
    mask,
    outside,
    maps,
    stats,
    terms,
    first,
    parts,
    first_chunk,
    chunks,
    first_block,
    blocks,
    channels,
    channels_before,
    pixels,
    pixels_before,
    mask_size,
    mask_before,
    pixel_scales,
    pixel_scale_rests,
    channel_scales,
    channel_scale_rests,
    partial_size,
    images,
    GC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    level, image, part = locate(first, parts)
    count, size, width = number(chunks, level), number(pixels, level), number(channels, level)
    pixel_blocks = number(blocks, level)
    block = number(first_block, level) + image * pixel_blocks
    background = sum_blocks(outside + block, 1, pixel_blocks, BLOCK)
    partial = partials + (number(first_chunk, level) + image * count).to(tl.int64) * partial_size
    at = image_start(channels_before, channels, level, image)
    pixel_at = image_start(pixels_before, pixels, level, image)
    if part < pixel_blocks:
        finish_pixels(
            maps + MAPS * pixel_at,
            mask + image_start(mask_before, mask_size, level, image),
            partial + SUMS * width,
            partial_size,
            count,
            part,
            size,
            background,
            sum_blocks(distances + 2 * block + 1, 2, pixel_blocks, BLOCK),
            pick_double(pixel_scales, pixel_scale_rests, level),
            GC,
            BLOCK_P,
            BLOCK,
        )
    else:
        finish_channels(
            sums + SUMS * at,
            stats + STATS * at,
            terms + 4 * (level * images + image),
            background,
            sum_blocks(distances + 2 * block, 2, pixel_blocks, BLOCK),
            width,
            pick_double(channel_scales, channel_scale_rests, level),
            GC,
            BLOCK_C,
        )
