"""Backward, the end: ∂L/∂Wk from the chunks of all images, in order.

    ∂L/∂Wk[c] = Σ_images ( Σ_chunks (sums of f·F[c,p] without the peak) - F[c,p*]·Σ f ),  p* the image's peak

where Σ f leaves the peak out, too (backward_pass.py). Without a peak ctx[c] stands for F[c,p*]: Σ f is 0 then, and only
its roundings are subtracted. Where a map is constant the two sums are the same rounding, and what is left of them its
square: a difference of less than 2^-18 of them is 0. ∂L/∂bk = 0, for it shifts every logit alike; NaN where Σ f is no
number.

One program takes a block of channels of one net.

    partials     [chunk][2·C + 4]           from backward_pass.py; partials of a level's chunks follow one another
    students, teachers, stats               as in backward_pass.py: the peaks' features, the contexts
    key_grads    (C,) a net                 out
    bias_grads   (1,) a net                 out
"""

import triton
import triton.language as tl

from .device.levels import locate, number, pick
from .layout import STAT_CONTEXT_S, STATS

CONSTANT_MAP: tl.constexpr = tl.constexpr(2.0**-18)


@triton.jit
def image_key_numbers(at, size, chunks, BLOCK: tl.constexpr):
    """Σ f of an image's chunks, and the peak's index, -1 where there is none."""
    total, peak = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.int32)
    for start in range(0, chunks, BLOCK):
        row = start + tl.arange(0, BLOCK)
        to = at + row.to(tl.int64) * size
        total += tl.load(to, mask=row < chunks, other=0.0)
        peak = tl.maximum(peak, tl.load(to + 2, mask=row < chunks, other=0.0).to(tl.int32, bitcast=True))
    return tl.sum(total, axis=0), tl.max(peak, axis=0) - 1


@triton.jit
def features_of_pixel(features, row, kind, p, c, channels):
    """[1, BLOCK_C] features of one pixel, as float32; zeros where p < 0. Rows are channels or pixels (tile.py)."""
    c, p = c.to(tl.int64), p.to(tl.int64)
    at = tl.where(kind < 2, c * row + p, p * row + c)
    return tl.load(features + at, mask=(c < channels) & (p >= 0), other=0.0).to(tl.float32)


_NETS = [
    "students",
    "teachers",
    "key_grads",
    "bias_grads",
    "first",
    "parts",
    "first_chunk",
    "chunks",
    "channels",
    "channels_before",
    "s_image",
    "s_row",
    "t_image",
    "t_row",
    "kinds",
]


@triton.jit(do_not_specialize=[*_NETS, "partial_size", "images"], do_not_specialize_on_alignment=_NETS)
def sum_key_grads(
    students,
    teachers,
    stats,
    partials,
    key_grads,
    bias_grads,
    first,
    parts,
    first_chunk,
    chunks,
    channels,
    channels_before,
    s_image,
    s_row,
    t_image,
    t_row,
    kinds,
    partial_size,
    images,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    net, _, block = locate(first, parts)
    level, of_teacher = net // 2, net % 2
    width, count, kind = number(channels, level), number(chunks, level), number(kinds, level)
    c = (block * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    peaks = tl.zeros((1, BLOCK_C), tl.float32)
    roundings = tl.zeros((1, BLOCK_C), tl.float32)  # Σ |ctx·Σ f| over the images
    shifts = 0.0
    for image in range(images):
        at = partials + (number(first_chunk, level) + image * count).to(tl.int64) * partial_size
        for start in range(0, count, BLOCK):
            row = (start + tl.arange(0, BLOCK))[:, None].to(tl.int64)
            mask = (row < count) & (c < width)
            total += tl.load(at + of_teacher * width + row * partial_size + c, mask=mask, other=0.0)
        sum_f, peak = image_key_numbers(at + 2 * width + of_teacher, partial_size, count, BLOCK)
        if of_teacher == 0:
            at_s, row_s = pick(students, level) + number(s_image, level).to(tl.int64) * image, number(s_row, level)
            value = features_of_pixel(at_s, row_s, kind, peak, c, width)
        else:
            at_t, row_t = pick(teachers, level) + number(t_image, level).to(tl.int64) * image, number(t_row, level)
            value = features_of_pixel(at_t, row_t, kind, peak, c, width)
        before = number(channels_before, level).to(tl.int64) + image * width
        context = stats + STATS * before + (STAT_CONTEXT_S + of_teacher) * width
        value += tl.load(context + c, mask=(c < width) & (peak < 0), other=0.0)
        peaks += sum_f * value
        roundings += tl.where(peak < 0, tl.abs(sum_f * value), 0.0)
        shifts += sum_f
    grads = tl.sum(total, axis=0)[None, :] - peaks
    grads = tl.where(tl.abs(grads) < roundings * CONSTANT_MAP, 0.0, grads)
    tl.store(pick(key_grads, net) + c, grads, mask=c < width)
    tl.store(pick(bias_grads, net), shifts * 0.0, mask=block == 0)
