"""Forward, the merge of an image's chunks. M_q, Z_q: maximum and normaliser of softmax q over all of them.

    Qf, Qb  =  P/Z_t · Σ_chunks exp(m_t - M_t)·(..)     Cs, Ct (now contexts) likewise, over Z without P; others add up
    distance = Σp |A^S_s - A^S_t|,  signed = Σp sign(A^S_s - A^S_t)·A^S_s,   A^S = P/Z·exp(z - M)

where a logit's factor, 1/(C·T) of the attentions, is applied to differences (forward_pass.py).

One program takes a block of channels, or a block of pixels.

    partials   [chunk][8·C + 10]          from forward_pass.py
    maps       [level][image][4][P]       its logits
    sums       [level][image][8][C]       out
    distances  [level][image][block][2]   out, in float64: distance and signed sum of a block of pixels
"""

import triton
import triton.language as tl

from .device.chunks import attention_map, exponential, image_softmax, sign_of
from .device.levels import LOG2E, LOWEST, image_start, locate, number, pick_double
from .layout import MAPS, SOFTMAX_CONTEXT_S, SOFTMAX_STUDENT, SOFTMAX_TEACHER, SUM_CONTEXT_S, SUMS


@triton.jit
def scaled_sum(partial, size, chunks, index, c, channels, factor, scale, SOFTMAX: tl.constexpr, BLOCK: tl.constexpr):
    """Σ over the chunks of one of the eight sums, [BLOCK_C]; SOFTMAX: which maximum it is relative to, or -1."""
    rows = tl.arange(0, BLOCK)[:, None]
    total = tl.zeros((BLOCK, c.shape[1]), tl.float64)
    best, constant = factor
    for start in range(0, chunks, BLOCK):
        row = (start + rows).to(tl.int64)
        at = partial + row * size + index * channels + c
        value = tl.load(at, mask=(row < chunks) & (c < channels), other=0.0).to(tl.float64)
        if SOFTMAX >= 0:
            maximum = tl.load(partial + row * size + SUMS * channels + SOFTMAX, mask=row < chunks, other=LOWEST)
            value *= exponential(maximum, best, scale)
        total += value
    return tl.sum(total, axis=0)[None, :] * constant


@triton.jit
def merge_channels(
    partial,
    sums,
    size,
    chunks,
    block,
    channels,
    pixels,
    scale,
    GC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c = (block * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    scalars = partial + SUMS * channels
    best, normaliser = image_softmax(scalars, size, chunks, SOFTMAX_TEACHER, scale, BLOCK)
    attention = (best, pixels / normaliser)
    one = (best, 1.0)
    for i in tl.static_range(6):
        total = scaled_sum(
            partial, size, chunks, i, c, channels, attention if i < 2 else one, scale, 0 if i < 2 else -1, BLOCK
        )
        tl.store(sums + i * channels + c, total, mask=c < channels)
    if GC:
        for i in tl.static_range(2):
            best, normaliser = image_softmax(scalars, size, chunks, SOFTMAX_CONTEXT_S + i, LOG2E, BLOCK)
            factor = (best, 1.0 / normaliser)
            context = scaled_sum(partial, size, chunks, 6 + i, c, channels, factor, LOG2E, 2 + i, BLOCK)
            tl.store(sums + (SUM_CONTEXT_S + i) * channels + c, context, mask=c < channels)


@triton.jit
def merge_pixels(
    maps, scalars, distances, size, chunks, block, pixels, scale, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr
):
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    teacher = attention_map(maps, scalars, size, chunks, SOFTMAX_TEACHER, p, pixels, scale, BLOCK)
    student = attention_map(maps, scalars, size, chunks, SOFTMAX_STUDENT, p, pixels, scale, BLOCK)
    tl.store(distances + 2 * block, tl.sum(tl.abs(student - teacher), axis=0))
    tl.store(distances + 2 * block + 1, tl.sum(sign_of(student, teacher) * student, axis=0))


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
    "scales",
    "scale_rests",
]


@triton.jit(do_not_specialize=[*_LEVELS, "partial_size"])
def merge(
    partials,
    maps,
    sums,
    distances,
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
    scales,
    scale_rests,
    partial_size,
    GC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    level, image, part = locate(first, parts)
    count, size = number(chunks, level), number(pixels, level)
    pixel_blocks = number(blocks, level)
    partial = partials + (number(first_chunk, level) + image * count).to(tl.int64) * partial_size
    width, scale = number(channels, level), pick_double(scales, scale_rests, level)
    if part < pixel_blocks:
        merge_pixels(
            maps + MAPS * image_start(pixels_before, pixels, level, image),
            partial + SUMS * width,
            distances + 2 * (number(first_block, level) + image * pixel_blocks),
            partial_size,
            count,
            part,
            size,
            scale,
            BLOCK_P,
            BLOCK,
        )
    else:
        merge_channels(
            partial,
            sums + SUMS * image_start(channels_before, channels, level, image),
            partial_size,
            count,
            part - pixel_blocks,
            width,
            size,
            scale,
            GC,
            BLOCK_C,
            BLOCK,
        )
