"""Forward, the merge of an image's slices. M_q, Z_q: maximum and normaliser of softmax q over all of them.

    Qf, Qb  =  P/Z_t · Σ_slices exp(m_t - M_t)·(..)     Cs, Ct (now contexts) likewise, over Z without P; others add up
    distance = Σp |A^S_s - A^S_t|,  signed = Σp sign(A^S_s - A^S_t)·A^S_s,   A^S = P/Z·exp(z - M)

where a logit's factor, 1/(C·T) of the attentions, is applied to differences (forward_pass.py).

One program takes a block of channels, or a block of pixels.

    partials   [slice][8·C + 8]           from forward_pass.py
    maps       [level][image][4][P]       its logits
    sums       [level][image][8][C]       out
    distances  [level][image][block][2]   out: distance and signed sum of a block of pixels
"""

import triton
import triton.language as tl
from torch import Tensor

from .levels import LOG2E, LOWEST, MAPS, SUMS, image_start, locate, number, pick
from .pyramid import CHANNEL_BLOCK, PIXEL_BLOCK, Grid, Pyramid, cut, encoded, scratch
from .slices import image_softmax


@triton.jit
def scaled_sum(partial, size, slices, index, c, channels, factor, scale, SOFTMAX: tl.constexpr, BLOCK: tl.constexpr):
    """Σ over the slices of one of the eight sums, [BLOCK_C]; SOFTMAX: which maximum it is relative to, or -1."""
    rows = tl.arange(0, BLOCK)[:, None]
    total = tl.zeros((BLOCK, c.shape[1]), tl.float32)
    best, constant = factor
    for start in range(0, slices, BLOCK):
        row = (start + rows).to(tl.int64)
        value = tl.load(partial + row * size + index * channels + c, mask=(row < slices) & (c < channels), other=0.0)
        if SOFTMAX >= 0:
            maximum = tl.load(partial + row * size + SUMS * channels + SOFTMAX, mask=row < slices, other=LOWEST)
            value *= tl.exp2((maximum - best) * scale)
        total += value
    return tl.sum(total, axis=0)[None, :] * constant


@triton.jit
def merge_channels(
    partial,
    sums,
    size,
    slices,
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
    best, normaliser = image_softmax(scalars, size, slices, 0, scale, BLOCK)
    attention = (best, pixels / normaliser)
    one = (best, 1.0)
    for i in tl.static_range(6):
        total = scaled_sum(
            partial, size, slices, i, c, channels, attention if i < 2 else one, scale, 0 if i < 2 else -1, BLOCK
        )
        tl.store(sums + i * channels + c, total, mask=c < channels)
    if GC:
        for i in tl.static_range(2):
            best, normaliser = image_softmax(scalars, size, slices, 2 + i, LOG2E, BLOCK)
            factor = (best, 1.0 / normaliser)
            context = scaled_sum(partial, size, slices, 6 + i, c, channels, factor, LOG2E, 2 + i, BLOCK)
            tl.store(sums + (6 + i) * channels + c, context, mask=c < channels)


@triton.jit
def sign(x):
    """1, 0, -1, or NaN."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def attention_map(maps, scalars, size, slices, index, p, pixels, scale, BLOCK: tl.constexpr):
    """A^S (7) of a block of pixels, from the logits."""
    best, normaliser = image_softmax(scalars, size, slices, index, scale, BLOCK)
    z = tl.load(maps + index * pixels + p, mask=p < pixels, other=LOWEST)
    return tl.where(p < pixels, tl.exp2((z - best) * scale) * (pixels / normaliser), 0.0)


@triton.jit
def merge_pixels(
    maps, scalars, distances, size, slices, block, pixels, scale, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr
):
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    teacher = attention_map(maps, scalars, size, slices, 0, p, pixels, scale, BLOCK)
    student = attention_map(maps, scalars, size, slices, 1, p, pixels, scale, BLOCK)
    difference = student - teacher
    tl.store(distances + 2 * block, tl.sum(tl.abs(difference), axis=0))
    tl.store(distances + 2 * block + 1, tl.sum(sign(difference) * student, axis=0))


_LEVELS = [
    "first",
    "parts",
    "first_slice",
    "slices",
    "first_block",
    "blocks",
    "channels",
    "channels_before",
    "pixels",
    "pixels_before",
    "scales",
]


@triton.jit(do_not_specialize=[*_LEVELS, "partial_size"])
def merge(
    partials,
    maps,
    sums,
    distances,
    first,
    parts,
    first_slice,
    slices,
    first_block,
    blocks,
    channels,
    channels_before,
    pixels,
    pixels_before,
    scales,
    partial_size,
    GC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    level, image, part = locate(first, parts)
    count, size = number(slices, level), number(pixels, level)
    pixel_blocks = number(blocks, level)
    partial = partials + (number(first_slice, level) + image * count).to(tl.int64) * partial_size
    width = number(channels, level)
    if part < pixel_blocks:
        merge_pixels(
            maps + MAPS * image_start(pixels_before, pixels, level, image),
            partial + SUMS * width,
            distances + 2 * (number(first_block, level) + image * pixel_blocks),
            partial_size,
            count,
            part,
            size,
            pick(scales, level),
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
            pick(scales, level),
            GC,
            BLOCK_C,
            BLOCK,
        )


def launch(p: Pyramid, spatial_temperature: float, partials: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The images' sums, and the distance of the spatial attentions in every block of pixels."""
    parts = [a + b for a, b in zip(p.blocks.parts, cut(p.channels, CHANNEL_BLOCK), strict=True)]
    grid = Grid.of(parts, p.images)
    sums = scratch(maps, 8 * p.images * sum(p.channels))
    distances = scratch(maps, 2 * p.blocks.total)
    merge[(grid.total,)](
        partials,
        maps,
        sums,
        distances,
        encoded(grid.first),
        encoded(grid.parts),
        encoded(p.slices.first),
        encoded(p.slices.parts),
        encoded(p.blocks.first),
        encoded(p.blocks.parts),
        encoded(p.channels),
        encoded(p.channels_before),
        encoded(p.pixels),
        encoded(p.pixels_before),
        p.logit_scales(spatial_temperature),
        p.sum_size,
        GC=p.gc,
        BLOCK_C=CHANNEL_BLOCK,
        BLOCK_P=PIXEL_BLOCK,
        BLOCK=32,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return sums, distances
