"""Device helpers of the forward passes: the logits of a tile, a step of the online softmaxes, the sums over pixels.

The four softmaxes are numbered as in csrc/include/fgd/layout.h: attention of the teacher, of the student, context of
the student, of the teacher. Without GcBlocks (GC false) there are the first two, and six sums instead of eight.
"""

import triton
import triton.language as tl

from .levels import LOG2E, LOWEST
from .tile import group_factor, map_index, over_channels, over_pixels, sum_groups, sum_part


@triton.jit
def logits(s, t, key_s, key_t, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """zt, zs, ks, kt of a tile's pixels, without their factors: those come when a maximum has been subtracted."""
    found = ()
    for slab in tl.static_range(len(s)):
        zt, zs = tl.sum(tl.abs(t[slab]), LAYOUT), tl.sum(tl.abs(s[slab]), LAYOUT)
        if GC:
            ks = tl.sum(s[slab] * over_pixels(key_s, LAYOUT), LAYOUT)
            kt = tl.sum(t[slab] * over_pixels(key_t, LAYOUT), LAYOUT)
            found = found + ((zt, zs, ks, kt),)  # noqa: RUF005 - Triton knows no * in a tuple
        else:
            found = found + ((zt, zs),)  # noqa: RUF005
    return found


@triton.jit
def store_logits(maps, z, p, exists, pixels, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    for slab in tl.static_range(len(z)):
        for i in tl.static_range(len(z[slab])):
            tl.store(maps + map_index(i, pixels, p[slab], LAYOUT, ALIGN), z[slab][i], mask=exists[slab])


@triton.jit
def load_mask(mask, p, exists, pixels, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    """fg of a tile's pixels."""
    found = ()
    for slab in tl.static_range(len(p)):
        fg = tl.load(mask + map_index(0, pixels, p[slab], LAYOUT, ALIGN), mask=exists[slab], other=0.0)
        found = found + (fg,)  # noqa: RUF005
    return found


@triton.jit
def softmax_step(z, INDEX: tl.constexpr, scale, exists, maximum, normaliser, COMMON: tl.constexpr):
    """One of the softmaxes, on by a tile: exp2((z - new maximum)·scale), what the older sums shrink by, new maximum and
    normaliser.

    Each group of pixels has its own maximum, which costs no exchange between threads, or all have one (COMMON).
    """
    new = tl.max(tl.where(exists[0], z[0][INDEX], LOWEST), axis=1)
    for slab in tl.static_range(1, len(z)):
        new = tl.maximum(new, tl.max(tl.where(exists[slab], z[slab][INDEX], LOWEST), axis=1))
    if COMMON:
        new = tl.max(new, axis=0)
    new = tl.maximum(maximum, new)
    shrink = tl.exp2((maximum - new) * scale)
    normaliser = normaliser * shrink
    found = ()
    for slab in tl.static_range(len(z)):
        e = tl.where(exists[slab], tl.exp2((z[slab][INDEX] - new[:, None]) * scale), 0.0)
        normaliser += tl.sum(e, axis=1)
        found = found + (e,)  # noqa: RUF005
    return found, shrink, new, normaliser


@triton.jit
def softmax_steps(z, scale, exists, maxima, normalisers, GC: tl.constexpr, COMMON: tl.constexpr):
    """All of a tile's softmaxes; `scale`: log2(e)/(C·T), for exp2 is the hardware's exponential.

    No sum over channels is weighted with the second one, the student's attention.
    """
    et, rt, mt, nt = softmax_step(z, 0, scale, exists, maxima[0], normalisers[0], COMMON)
    _, _, ms, ns = softmax_step(z, 1, scale, exists, maxima[1], normalisers[1], COMMON)
    if GC:
        eks, rks, mks, nks = softmax_step(z, 2, LOG2E, exists, maxima[2], normalisers[2], COMMON)
        ekt, rkt, mkt, nkt = softmax_step(z, 3, LOG2E, exists, maxima[3], normalisers[3], COMMON)
        return (et, eks, ekt), (rt, rks, rkt), (mt, ms, mks, mkt), (nt, ns, nks, nkt)
    else:
        return (et,), (rt,), (mt, ms), (nt, ns)


@triton.jit
def slab_sums(s, t, fg, e, SLAB: tl.constexpr, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """The sums over a slab's V."""
    et = e[0][SLAB]
    ef, eb = over_channels(et * fg, LAYOUT), over_channels(tl.where(fg > 0, 0.0, et), LAYOUT)
    d = s - t
    d2 = d * d
    first = sum_part(d2 * ef), sum_part(d2 * eb), sum_part(d), sum_part(d2), sum_part(tl.abs(s)), sum_part(tl.abs(t))
    if GC:
        cs, ct = sum_part(s * over_channels(e[1][SLAB], LAYOUT)), sum_part(t * over_channels(e[2][SLAB], LAYOUT))
        return first + (cs, ct)  # noqa: RUF005
    else:
        return first


@triton.jit
def add_tile(s, t, fg, e, shrink, sums, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """The sums over pixels, on by a tile: old sums with an exponential shrink as its maximum grows."""
    part = slab_sums(s[0], t[0], fg[0], e, 0, LAYOUT, GC)
    for slab in tl.static_range(1, len(s)):
        part = add_each(part, slab_sums(s[slab], t[slab], fg[slab], e, slab, LAYOUT, GC))
    rt = group_factor(shrink[0], LAYOUT)
    qf, qb = sums[0] * rt + part[0], sums[1] * rt + part[1]
    found = (qf, qb, sums[2] + part[2], sums[3] + part[3], sums[4] + part[4], sums[5] + part[5])
    if GC:
        cs = sums[6] * group_factor(shrink[1], LAYOUT) + part[6]
        ct = sums[7] * group_factor(shrink[2], LAYOUT) + part[7]
        return found + (cs, ct)  # noqa: RUF005
    else:
        return found


@triton.jit
def add_each(one, other):
    """Sums of the entries of two tuples."""
    found = ()
    for i in tl.static_range(len(one)):
        found = found + (one[i] + other[i],)  # noqa: RUF005
    return found


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
