"""Device helpers: the softmaxes over pixels of an image, from those of its chunks; sums over an image's blocks.

A chunk's partial has the eight sums [8][C], four maxima, four normalisers and what two of these, the attentions',
lack of their float64 (forward_pass.py). Chunks are gone through in order, so the result is the same bits whatever runs
when.
"""

import triton
import triton.language as tl

from ..layout import SOFTMAX_CONTEXT_S, SOFTMAXES
from .levels import LOWEST

EQUAL: tl.constexpr = tl.constexpr(2.0**-48)


@triton.jit
def store_attentions(maps, at, begin, end, pixels, scale, BLOCK: tl.constexpr):
    """Maximum and normaliser of a chunk's spatial attentions, teacher's and student's, from its logits in memory.

    In float64, so that the same numbers in other places have the same normaliser: up to the order of a sum, which
    `sign_of` excuses. The running maxima of a tile's groups would leave roundings that hang on the place.
    """
    net, p = tl.arange(0, 2), begin + tl.arange(0, BLOCK)
    exists = tl.broadcast_to((p < end)[None, :], (2, BLOCK))
    z = tl.load(maps + net[:, None] * pixels + p[None, :], mask=exists, other=LOWEST)
    best = tl.max(z, axis=1)
    total = tl.sum(tl.where(exists, exponential(z, best[:, None], scale), 0.0), axis=1)
    nearest = total.to(tl.float32)
    tl.store(at + net, best)
    tl.store(at + SOFTMAXES + net, nearest)
    tl.store(at + 2 * SOFTMAXES + net, (total - nearest).to(tl.float32))


@triton.jit
def exponential(z, best, scale):
    """exp2((z - best)·scale) in float64."""
    return tl.exp2((z.to(tl.float64) - best.to(tl.float64)) * scale)


@triton.jit
def image_softmax(scalars, size, chunks, INDEX: tl.constexpr, scale, BLOCK: tl.constexpr):
    """Maximum and normaliser of one of the four softmaxes; `scalars` points to the first chunk's maxima.

    `scale` is what exp2 wants: log2(e)/(C·T) of the attentions, log2(e) of the contexts. The normaliser is of float64:
    its rounding would be common to all pixels, which is all there is to see where student and teacher are nearly alike.
    """
    rows = tl.arange(0, BLOCK)
    maximum = tl.full((BLOCK,), LOWEST, tl.float32)
    for start in range(0, chunks, BLOCK):
        row = (start + rows).to(tl.int64)
        maximum = tl.maximum(maximum, tl.load(scalars + row * size + INDEX, mask=row < chunks, other=LOWEST))
    best = tl.max(maximum, axis=0)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, chunks, BLOCK):
        row = (start + rows).to(tl.int64)
        at = scalars + row * size + INDEX
        maximum = tl.load(at, mask=row < chunks, other=LOWEST)
        part = tl.load(at + SOFTMAXES, mask=row < chunks, other=0.0).to(tl.float64)
        if INDEX < SOFTMAX_CONTEXT_S:
            part += tl.load(at + 2 * SOFTMAXES, mask=row < chunks, other=0.0)
        total += part * exponential(maximum, best, scale)
    return best, tl.sum(total, axis=0)


@triton.jit
def sum_blocks(at, stride, blocks, BLOCK: tl.constexpr):
    """Sum of `blocks` numbers that lie `stride` apart; of floating point in float64."""
    rows = tl.arange(0, BLOCK)
    kind: tl.constexpr = at.dtype.element_ty
    total = tl.zeros((BLOCK,), tl.float64 if kind == tl.float32 else kind)
    for start in range(0, blocks, BLOCK):
        row = start + rows
        total += tl.load(at + row * stride, mask=row < blocks, other=0)
    return tl.sum(total, axis=0)


@triton.jit
def sign(x):
    """1, 0, -1, or NaN."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def sign_of(student, teacher):
    """sign(A_s - A_t). Attentions that differ by less than their normalisers may be wrong by are equal: those of maps
    with the same numbers in other places differ by the order of a sum."""
    x, equal = student - teacher, teacher * EQUAL
    return tl.where(x > equal, 1.0, tl.where(x < -equal, -1.0, 0.0 * x))


@triton.jit
def attention_map(maps, scalars, size, chunks, INDEX: tl.constexpr, p, pixels, scale, BLOCK: tl.constexpr):
    """A^S (7) of a block of pixels, from the logits; in float64, for at high temperatures its last digits matter."""
    best, normaliser = image_softmax(scalars, size, chunks, INDEX, scale, BLOCK)
    z = tl.load(maps + INDEX * pixels + p, mask=p < pixels, other=LOWEST)
    return tl.where(p < pixels, exponential(z, best, scale) * (pixels / normaliser), 0.0)


@triton.jit
def accumulate(at, value, mask, image):
    """Write the first image's part, add the others' to it."""
    tl.store(at, value + tl.load(at, mask=mask & (image > 0), other=0.0), mask=mask)
