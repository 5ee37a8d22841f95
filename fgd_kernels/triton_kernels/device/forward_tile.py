"""Device helpers of the forward passes: the logits of a tile, a step of the online softmaxes, the sums over pixels.

The four logits are numbered as the softmaxes in csrc/include/fgd/layout.h: attention of the teacher, of the student,
context of the student, of the teacher. Three of them weight sums over pixels, all but the student's attention. Without
GcBlocks (GC false) there are the first two, one of which weights, and six sums instead of eight.
"""

import triton
import triton.language as tl

from ..layout import SOFTMAX_CONTEXT_S, SOFTMAXES
from .levels import LOG2E, LOWEST
from .tile import block_channels, group_factor, map_index, over_channels, over_pixels, sum_groups, sum_part


@triton.jit
def load_keys(key_s, key_t, channels, BLOCK_C: tl.constexpr, BLOCKS: tl.constexpr, GC: tl.constexpr):
    """Wk_s, Wk_t of a tile's channels, block by block."""
    found = ()
    for block in tl.static_range(BLOCKS):
        pair = 0.0, 0.0
        if GC:
            c = block_channels(block, BLOCK_C)
            pair = tl.load(key_s + c, mask=c < channels, other=0.0), tl.load(key_t + c, mask=c < channels, other=0.0)
        found = found + (pair,)  # noqa: RUF005 - Triton knows no * in a tuple
    return found


@triton.jit
def logit_terms(s, t, keys, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """What the logits of a slab's pixels are sums of."""
    if GC:
        return tl.abs(t), tl.abs(s), s * over_pixels(keys[0], LAYOUT), t * over_pixels(keys[1], LAYOUT)
    else:
        return tl.abs(t), tl.abs(s)


@triton.jit
def logits(tile, keys, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """zt, zs, ks, kt of a tile's pixels, without their factors: those come when a maximum has been subtracted."""
    found = ()
    for slab in tl.static_range(len(tile[0][0])):
        terms = logit_terms(tile[0][0][slab], tile[0][1][slab], keys[0], LAYOUT, GC)
        for block in tl.static_range(1, len(tile)):
            terms = add_each(terms, logit_terms(tile[block][0][slab], tile[block][1][slab], keys[block], LAYOUT, GC))
        found = found + (sum_each(terms, LAYOUT),)  # noqa: RUF005
    return found


@triton.jit
def store_logits(maps, z, p, exists, pixels, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    for slab in tl.static_range(len(z)):
        for i in tl.static_range(len(z[slab])):
            tl.store(maps + map_index(i, pixels, p[slab]), z[slab][i], mask=exists[slab])


@triton.jit
def load_mask(mask, p, exists, pixels, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    """fg of a tile's pixels."""
    found = ()
    for slab in tl.static_range(len(p)):
        fg = tl.load(mask + map_index(0, pixels, p[slab]), mask=exists[slab], other=0.0)
        found = found + (fg,)  # noqa: RUF005
    return found


@triton.jit
def softmax_step(z, INDEX: tl.constexpr, scale, exists, maximum):
    """One of the softmaxes, on by a tile: exp2((z - new maximum)·scale), what the older sums shrink by, new maximum.

    Each group of pixels has its own maximum, which costs no exchange between threads.
    """
    new = tl.max(tl.where(exists[0], z[0][INDEX], LOWEST), axis=1)
    for slab in tl.static_range(1, len(z)):
        new = tl.maximum(new, tl.max(tl.where(exists[slab], z[slab][INDEX], LOWEST), axis=1))
    new = tl.maximum(maximum, new)
    shrink = tl.exp2((maximum - new) * scale)
    found = ()
    for slab in tl.static_range(len(z)):
        e = tl.where(exists[slab], tl.exp2((z[slab][INDEX] - new[:, None]) * scale), 0.0)
        found = found + (e,)  # noqa: RUF005
    return found, shrink, new


@triton.jit
def add_exponentials(normaliser, shrink, e):
    """A context's normaliser, on by a tile."""
    normaliser = normaliser * shrink
    for slab in tl.static_range(len(e)):
        normaliser += tl.sum(e[slab], axis=1)
    return normaliser


@triton.jit
def softmax_steps(z, scale, exists, maxima, normalisers, GC: tl.constexpr):
    """The softmaxes that weight sums of a tile; `scale`: log2(e)/(C·T), for exp2 is the hardware's exponential.

    The contexts' normalisers are sums of these exponentials; an attention's has more digits (chunks.py).
    """
    et, rt, mt = softmax_step(z, 0, scale, exists, maxima[0])
    if GC:
        eks, rks, mks = softmax_step(z, 2, LOG2E, exists, maxima[1])
        ekt, rkt, mkt = softmax_step(z, 3, LOG2E, exists, maxima[2])
        ns, nt = add_exponentials(normalisers[0], rks, eks), add_exponentials(normalisers[1], rkt, ekt)
        return (et, eks, ekt), (rt, rks, rkt), (mt, mks, mkt), (ns, nt)
    else:
        return (et,), (rt,), (mt,), normalisers


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
def add_block(s, t, fg, e, shrink, sums, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """A block's sums over pixels, on by a tile: old sums with an exponential shrink as its maximum grows."""
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
def add_tile(tile, fg, e, shrink, sums, LAYOUT: tl.constexpr, GC: tl.constexpr):
    """The sums over pixels of all blocks, on by a tile."""
    found = ()
    for block in tl.static_range(len(tile)):
        found = found + (add_block(tile[block][0], tile[block][1], fg, e, shrink, sums[block], LAYOUT, GC),)  # noqa: RUF005
    return found


@triton.jit
def add_each(one, other):
    """Sums of the entries of two tuples."""
    found = ()
    for i in tl.static_range(len(one)):
        found = found + (one[i] + other[i],)  # noqa: RUF005
    return found


@triton.jit
def sum_each(terms, AXIS: tl.constexpr):
    """Sums of the entries of a tuple along an axis."""
    found = ()
    for i in tl.static_range(len(terms)):
        found = found + (tl.sum(terms[i], AXIS),)  # noqa: RUF005
    return found


@triton.jit
def store_contexts(at, scale, maxima, normalisers):
    """The groups' maxima become the chunk's; returns the factors of the groups' sums. The contexts' go to memory."""
    factors = ()
    for i in tl.static_range(len(maxima)):
        best = tl.max(maxima[i], axis=0)
        factor = tl.exp2((maxima[i] - best) * (scale if i == 0 else LOG2E))
        factors = factors + (factor,)  # noqa: RUF005 - Triton knows no * in a tuple
        if i > 0:
            tl.store(at + SOFTMAX_CONTEXT_S + i - 1, best)
            tl.store(at + SOFTMAXES + SOFTMAX_CONTEXT_S + i - 1, tl.sum(normalisers[i - 1] * factor, axis=0))
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
            total = sum_groups(sums[6 + i] * group_factor(factors[1 + i], LAYOUT), LAYOUT)
            tl.store(at + (6 + i) * channels + c, total, mask=mask)
