"""Device helpers: the softmaxes over pixels of an image, from those of its chunks; sums over an image's blocks.

A chunk's partial has the eight sums [8][C], four maxima and four normalisers (forward_pass.py). Chunks are gone
through in order, so the result is the same bits whatever runs when.
"""

import triton
import triton.language as tl

from ..layout import SOFTMAXES
from .levels import LOWEST


@triton.jit
def image_softmax(scalars, size, chunks, index, scale, BLOCK: tl.constexpr):
    """Maximum and normaliser of one of the four softmaxes; `scalars` points to the first chunk's maxima.

    `scale` is what exp2 wants: log2(e)/(C·T) of the attentions, log2(e) of the contexts. The normaliser is of float64:
    its rounding would be common to all pixels, which is all there is to see where student and teacher are nearly alike.
    """
    rows = tl.arange(0, BLOCK)
    maximum = tl.full((BLOCK,), LOWEST, tl.float32)
    for start in range(0, chunks, BLOCK):
        row = (start + rows).to(tl.int64)
        maximum = tl.maximum(maximum, tl.load(scalars + row * size + index, mask=row < chunks, other=LOWEST))
    best = tl.max(maximum, axis=0)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, chunks, BLOCK):
        row = (start + rows).to(tl.int64)
        at = scalars + row * size + index
        maximum = tl.load(at, mask=row < chunks, other=LOWEST)
        part = tl.load(at + SOFTMAXES, mask=row < chunks, other=0.0)
        total += part * tl.exp2((maximum - best).to(tl.float64) * scale)
    return best, tl.sum(total, axis=0)


@triton.jit
def sum_blocks(at, stride, blocks, BLOCK: tl.constexpr):
    """Sum of `blocks` numbers that lie `stride` apart; of float32 in float64."""
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
def attention_map(maps, scalars, size, chunks, index, p, pixels, scale, BLOCK: tl.constexpr):
    """A^S (7) of a block of pixels, from the logits; in float64, for at high temperatures its last digits matter."""
    best, normaliser = image_softmax(scalars, size, chunks, index, scale, BLOCK)
    z = tl.load(maps + index * pixels + p, mask=p < pixels, other=LOWEST)
    return tl.where(p < pixels, tl.exp2((z - best).to(tl.float64) * scale) * (pixels / normaliser), 0.0)


@triton.jit
def accumulate(at, value, mask, image):
    """Write the first image's part, add the others' to it."""
    tl.store(at, value + tl.load(at, mask=mask & (image > 0), other=0.0), mask=mask)
