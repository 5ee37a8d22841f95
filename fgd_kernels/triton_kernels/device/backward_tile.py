"""Device helpers of the backward passes: the factors of a channel and of a pixel, and the gradient made of them.

The equation is in backward_pass.py. Without GcBlocks (GC false) the global loss is left out.
"""

import triton
import triton.language as tl

from ..layout import (
    MAP_ATTENTION,
    MAP_CONTEXT_S,
    MAP_CONTEXT_T,
    MAP_FOCAL,
    STAT_ATTENTION,
    STAT_ATTENTION_GRAD,
    STAT_SHIFT,
)
from .chunks import sign
from .tile import block_channels, map_index, over_channels, over_pixels, slab_mask, sum_part


@triton.jit
def channel_factors(stats, context_s, context_t, key_s, g, c, channels, GC: tl.constexpr):
    """A^C_t, g_at·h_C, and of the global term 2·g_gl·r, g_ctx_s, Wk_s, g_ctx_t: vectors of channels."""
    mask = c < channels
    attention = tl.load(stats + STAT_ATTENTION * channels + c, mask=mask, other=0.0)
    signed = g[2] * tl.load(stats + STAT_ATTENTION_GRAD * channels + c, mask=mask, other=0.0)
    if GC:
        shift = 2.0 * g[3] * tl.load(stats + STAT_SHIFT * channels + c, mask=mask, other=0.0)
        grad_s = tl.load(context_s + c, mask=mask, other=0.0)
        grad_t = tl.load(context_t + c, mask=mask, other=0.0)
        return attention, signed, shift, grad_s, tl.load(key_s + c, mask=mask, other=0.0), grad_t
    else:
        return attention, signed


@triton.jit
def all_channel_factors(
    stats, context_s, context_t, key_s, g, channels, BLOCK_C: tl.constexpr, BLOCKS: tl.constexpr, GC: tl.constexpr
):
    """channel_factors of a tile's channels, block by block."""
    found = ()
    for block in tl.static_range(BLOCKS):
        c = block_channels(block, BLOCK_C)
        found = found + (channel_factors(stats, context_s, context_t, key_s, g, c, channels, GC),)  # noqa: RUF005
    return found


@triton.jit
def context_logits(tile, channel, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """u_s, u_t of a tile's pixels, slab by slab; without GcBlocks there are none."""
    found = ()
    if GC:
        for slab in tl.static_range(len(tile[0][0])):
            u_s = tile[0][0][slab] * over_pixels(channel[0][3], LAYOUT)
            u_t = tile[0][1][slab] * over_pixels(channel[0][5], LAYOUT)
            for block in tl.static_range(1, len(tile)):
                u_s += tile[block][0][slab] * over_pixels(channel[block][3], LAYOUT)
                u_t += tile[block][1][slab] * over_pixels(channel[block][5], LAYOUT)
            found = found + ((tl.sum(u_s, LAYOUT), tl.sum(u_t, LAYOUT)),)  # noqa: RUF005 - Triton knows no * in a tuple
    return found


@triton.jit
def pixel_factors(
    maps, p, exists, pixels, g, u, mean_s, mean_t, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, GC: tl.constexpr
):
    """The feature loss's factor of d·A^C_t, g_at·h_S, and of the global term q_s, f_s, f_t, q_t: per pixel, by slab."""
    found = ()
    for slab in tl.static_range(len(p)):
        at, mask = p[slab], exists[slab]
        focal = tl.load(maps + map_index(MAP_FOCAL, pixels, at), mask=mask, other=0.0)
        feature = focal * tl.where(focal > 0, 2.0 * g[0], -2.0 * g[1])
        signed = g[2] * tl.load(maps + map_index(MAP_ATTENTION, pixels, at), mask=mask, other=0.0)
        if GC:
            q_s = tl.load(maps + map_index(MAP_CONTEXT_S, pixels, at), mask=mask, other=0.0)
            q_t = tl.load(maps + map_index(MAP_CONTEXT_T, pixels, at), mask=mask, other=0.0)
            f_s, f_t = q_s * (u[slab][0] - mean_s), q_t * (u[slab][1] - mean_t)
            # A pixel with all of the weight is ctx, its u is ū: what is left of u - ū is rounding. NaN stays.
            f_s = tl.where(q_s == 1.0, f_s - f_s, f_s)
            found = found + ((feature, signed, q_s, f_s, f_t, q_t),)  # noqa: RUF005
        else:
            found = found + ((feature, signed),)  # noqa: RUF005
    return found


@triton.jit
def slab_grad(s, t, channel, pixel, direct, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """∂L/∂s of a slab; `direct`: 2·g_gl."""
    d = s - t
    feature = over_pixels(channel[0], LAYOUT) * over_channels(pixel[0], LAYOUT)
    attention = sign(s) * (over_channels(pixel[1], LAYOUT) + over_pixels(channel[1], LAYOUT))
    if GC:
        grad = d * (feature + direct) + over_pixels(channel[2], LAYOUT) + attention
        grad += over_pixels(channel[3], LAYOUT) * over_channels(pixel[2], LAYOUT)
        return grad + over_pixels(channel[4], LAYOUT) * over_channels(pixel[3], LAYOUT)
    else:
        return d * feature + attention


@triton.jit
def store_grad(
    base,
    offsets,
    s,
    t,
    channel,
    pixel,
    g,
    c,
    exists,
    channels,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    GC: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
):
    """∂L/∂s of a tile, to memory."""
    for slab in tl.static_range(len(s)):
        grad = slab_grad(s[slab], t[slab], channel, pixel[slab], 2.0 * g[3], LAYOUT, GC)
        mask = slab_mask(c, exists[slab], channels, LAYOUT, ALIGN, ALL_CHANNELS)
        tl.store(base + offsets[slab], grad.to(base.dtype.element_ty), mask=mask)


@triton.jit
def key_factor(q, f, p, total, peak):
    """f without the peak's; Σ of that and the peak's index + 1 (0: none so far), on by a slab: both [G].

    Where f is not finite, neither is what is left of it.
    """
    is_peak = q > 0.75
    rest = tl.where(is_peak, f - f, f)
    total += tl.sum(rest, axis=1)
    return rest, total, tl.maximum(peak, tl.max(tl.where(is_peak, p + 1, 0), axis=1))


@triton.jit
def key_factors(pixel, p, totals, peaks):
    """key_factor of both nets, of all slabs: the student's, the teacher's, totals, peaks."""
    rests_s, rests_t = (), ()
    for slab in tl.static_range(len(p)):
        _, _, q_s, f_s, f_t, q_t = pixel[slab]
        rest_s, total_s, peak_s = key_factor(q_s, f_s, p[slab], totals[0], peaks[0])
        rest_t, total_t, peak_t = key_factor(q_t, f_t, p[slab], totals[1], peaks[1])
        rests_s, rests_t = rests_s + (rest_s,), rests_t + (rest_t,)  # noqa: RUF005
        totals, peaks = (total_s, total_t), (peak_s, peak_t)
    return rests_s, rests_t, totals, peaks


@triton.jit
def weighted_sum(x, factors, LAYOUT: tl.constexpr):
    """Σ over V and slabs of features times a factor of their pixel."""
    total = sum_part(x[0] * over_channels(factors[0], LAYOUT))
    for slab in tl.static_range(1, len(x)):
        total += sum_part(x[slab] * over_channels(factors[slab], LAYOUT))
    return total


@triton.jit
def add_key_sums(sums, tile, rest_s, rest_t, LAYOUT: tl.constexpr):
    """The key sums of all blocks, of student and teacher, on by a tile."""
    found = ()
    for block in tl.static_range(len(tile)):
        of_s = sums[block][0] + weighted_sum(tile[block][0], rest_s, LAYOUT)
        of_t = sums[block][1] + weighted_sum(tile[block][1], rest_t, LAYOUT)
        found = found + ((of_s, of_t),)  # noqa: RUF005
    return found


@triton.jit
def store_key_numbers(partial, channels, totals, peaks):
    """Behind a chunk's key sums: Σ f of both nets, then the peaks, whose bits are those of integers."""
    at = partial + 2 * channels
    for net in tl.static_range(2):
        tl.store(at + net, tl.sum(totals[net], axis=0))
        tl.store(at + 2 + net, tl.max(peaks[net], axis=0).to(tl.float32, bitcast=True))


@triton.jit
def context_mean(context_grad, context, channels, BLOCK_C: tl.constexpr):
    """ū = g_ctx·ctx."""
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        value = tl.load(context + c, mask=c < channels, other=0.0)
        total += value * tl.load(context_grad + c, mask=c < channels, other=0.0)
    return tl.sum(total, axis=0)
