"""Device helpers of the forward passes: the logits of a tile, a step of the online softmaxes, the sums over pixels.

The four softmaxes are numbered as in csrc/include/fgd/layout.h: attention of the teacher, of the student, context of
the student, of the teacher. Without GcBlocks (GC false) there are the first two, and six sums instead of eight.
"""

import triton
import triton.language as tl

from .levels import LOG2E, LOWEST
from .tile import (
    column_maximum,
    column_sum,
    group_factor,
    map_index,
    over_channels,
    over_pixels,
    per_group,
    sum_groups,
    sum_part,
)


@triton.jit
def logits(s, t, key_s, key_t, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """zt, zs, ks, kt of a tile's pixels, without their factors: those come when a maximum has been subtracted."""
    zt, zs = tl.sum(tl.abs(t), LAYOUT), tl.sum(tl.abs(s), LAYOUT)
    if GC:
        ks = tl.sum(s * over_pixels(key_s, LAYOUT), LAYOUT)
        kt = tl.sum(t * over_pixels(key_t, LAYOUT), LAYOUT)
        return zt, zs, ks, kt
    else:
        return zt, zs


@triton.jit
def store_logits(maps, z, p, exists, pixels, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    for i in tl.static_range(len(z)):
        tl.store(maps + map_index(i, pixels, p, LAYOUT, ALIGN), z[i], mask=exists)


@triton.jit
def softmax_step(z, scale, exists, maximum, normaliser, LAYOUT: tl.constexpr, COMMON: tl.constexpr):
    """One softmax, on by a tile: exp2((z - new maximum)·scale), what the older sums shrink by, new maximum and
    normaliser.

    Each group of pixels has its own maximum, which costs no exchange between threads, or all have one (COMMON).
    """
    new = column_maximum(tl.where(exists, z, LOWEST), LAYOUT)
    if COMMON:
        new = tl.max(new, axis=0)
    new = tl.maximum(maximum, new)
    e = tl.where(exists, tl.exp2((z - per_group(new, LAYOUT)) * scale), 0.0)
    shrink = tl.exp2((maximum - new) * scale)
    return e, shrink, new, normaliser * shrink + column_sum(e, LAYOUT)


@triton.jit
def softmax_steps(z, scale, exists, maxima, normalisers, LAYOUT: tl.constexpr, GC: tl.constexpr, COMMON: tl.constexpr):
    """All of a tile's softmaxes; `scale`: log2(e)/(C·T), for exp2 is the hardware's exponential.

    No sum over channels is weighted with the second one, the student's attention.
    """
    et, rt, mt, nt = softmax_step(z[0], scale, exists, maxima[0], normalisers[0], LAYOUT, COMMON)
    _, _, ms, ns = softmax_step(z[1], scale, exists, maxima[1], normalisers[1], LAYOUT, COMMON)
    if GC:
        eks, rks, mks, nks = softmax_step(z[2], LOG2E, exists, maxima[2], normalisers[2], LAYOUT, COMMON)
        ekt, rkt, mkt, nkt = softmax_step(z[3], LOG2E, exists, maxima[3], normalisers[3], LAYOUT, COMMON)
        return (et, eks, ekt), (rt, rks, rkt), (mt, ms, mks, mkt), (nt, ns, nks, nkt)
    else:
        return (et,), (rt,), (mt, ms), (nt, ns)


@triton.jit
def add_tile(s, t, fg, e, shrink, sums, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """The sums over pixels, on by a tile: old sums with an exponential shrink as its maximum grows."""
    ef, eb = over_channels(e[0] * fg, LAYOUT), over_channels(tl.where(fg > 0, 0.0, e[0]), LAYOUT)
    d = s - t
    d2 = d * d
    rt = group_factor(shrink[0], LAYOUT)
    qf = sums[0] * rt + sum_part(d2 * ef, LAYOUT)
    qb = sums[1] * rt + sum_part(d2 * eb, LAYOUT)
    sd, sd2 = sums[2] + sum_part(d, LAYOUT), sums[3] + sum_part(d2, LAYOUT)
    ss, st = sums[4] + sum_part(tl.abs(s), LAYOUT), sums[5] + sum_part(tl.abs(t), LAYOUT)
    if GC:
        cs = sums[6] * group_factor(shrink[1], LAYOUT) + sum_part(s * over_channels(e[1], LAYOUT), LAYOUT)
        ct = sums[7] * group_factor(shrink[2], LAYOUT) + sum_part(t * over_channels(e[2], LAYOUT), LAYOUT)
        return qf, qb, sd, sd2, ss, st, cs, ct
    else:
        return qf, qb, sd, sd2, ss, st


@triton.jit
def store_softmaxes(at, scale, maxima, normalisers):
    """The groups' maxima and normalisers become the chunk's; returns the factors of the groups' sums."""
    factors = ()
    for i in tl.static_range(len(maxima)):
        best = tl.max(maxima[i], axis=0)
        factor = tl.exp2((maxima[i] - best) * (scale if i < 2 else LOG2E))
        factors = factors + (factor,)  # noqa: RUF005 - Triton knows no * in a tuple
        tl.store(at + i, best)
        tl.store(at + 4 + i, tl.sum(normalisers[i] * factor, axis=0))
    return factors


@triton.jit
def store_sums(at, sums, factors, c, channels, LAYOUT: tl.constexpr, GC: tl.constexpr):
    mask = c < channels
    factor = group_factor(factors[0], LAYOUT)
    for i in tl.static_range(2):
        tl.store(at + i * channels + c, sum_groups(sums[i] * factor, LAYOUT), mask=mask)
    for i in tl.static_range(2, 6):
        tl.store(at + i * channels + c, sum_groups(sums[i], LAYOUT), mask=mask)
    if GC:
        for i in tl.static_range(2):
            total = sum_groups(sums[6 + i] * group_factor(factors[2 + i], LAYOUT), LAYOUT)
            tl.store(at + (6 + i) * channels + c, total, mask=mask)
