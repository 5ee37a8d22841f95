"""Forward, GcBlock (12), second half, and the global term. For every image, with h from gc_hidden.py:

    v = W2·relu( (h - mean)/sqrt(var + 1e-5)·γ + β ) + b2,  of the student's and the teacher's net
    r = v_s - v_t      L_gl = Σc D2 + 2·r·D1 + P·r²,   ∂L_gl/∂r = 2·(D1 + P·r)

One program takes a block of channels.

    w2         (C, K) a net      b2, ln_weight, ln_bias   (C,), (K,), (K,) a net
    hidden     [net][image][K]
    stats      [level][image][6][C]    in: D1 in the place of the shift's gradient; out: the shift r and its gradient
    shifted    [level][image][block]   out: Σc 2·r·D1 + P·r²
"""

import triton
import triton.language as tl

from .device.gc import moments, normalised, relu
from .device.levels import image_start, locate, number, pick
from .layout import STAT_SHIFT, STAT_SHIFT_GRAD, STATS


@triton.jit
def added(
    w2,
    b2,
    ln_weight,
    ln_bias,
    hidden,
    hidden_size,
    hidden_before,
    net,
    image,
    c,
    channels,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """v of one net on a block of channels."""
    h, size = hidden + image_start(hidden_before, hidden_size, net, image), number(hidden_size, net)
    matrix, gamma, beta = pick(w2, net), pick(ln_weight, net), pick(ln_bias, net)
    mean, scale = moments(h, size, BLOCK_K)
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float64)
    for start in range(0, size, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = normalised(h, k, size, mean, scale) * tl.load(gamma + k, mask=k < size, other=0.0)
        a = relu(a + tl.load(beta + k, mask=k < size, other=0.0))
        mask = (c < channels)[:, None] & (k < size)[None, :]
        total += tl.load(matrix + c[:, None] * size + k[None, :], mask=mask, other=0.0) * a[None, :]
    return tl.sum(total, axis=1) + tl.load(pick(b2, net) + c, mask=c < channels, other=0.0)


_LEVELS = [
    "w2",
    "b2",
    "ln_weight",
    "ln_bias",
    "first",
    "parts",
    "hidden_size",
    "hidden_before",
    "channels",
    "channels_before",
    "pixels",
]


@triton.jit(do_not_specialize=_LEVELS, do_not_specialize_on_alignment=_LEVELS)
def gc_added(
    w2,
    b2,
    ln_weight,
    ln_bias,
    hidden,
    stats,
    shifted,
    first,
    parts,
    hidden_size,
    hidden_before,
    channels,
    channels_before,
    pixels,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    level, image, block = locate(first, parts)
    width, size = number(channels, level), number(pixels, level).to(tl.float32)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    parameters = (w2, b2, ln_weight, ln_bias, hidden, hidden_size, hidden_before)
    v_s = added(*parameters, 2 * level, image, c, width, BLOCK_C, BLOCK_K)
    v_t = added(*parameters, 2 * level + 1, image, c, width, BLOCK_C, BLOCK_K)
    at = image_start(channels_before, channels, level, image)
    mask = c < width
    r = v_s - v_t
    d1 = tl.load(stats + STATS * at + STAT_SHIFT_GRAD * width + c, mask=mask, other=0.0)
    tl.store(stats + STATS * at + STAT_SHIFT * width + c, r, mask=mask)
    tl.store(stats + STATS * at + STAT_SHIFT_GRAD * width + c, 2.0 * (d1 + size * r), mask=mask)
    tl.store(shifted + tl.program_id(0), tl.sum(tl.where(mask, r * (2.0 * d1 + size * r), 0.0), axis=0))
