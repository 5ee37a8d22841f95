"""Backward, GcBlock, second half: gradients of the context and of the transform's parameters.

With x = (h - mean)·scale, y = γ·x + β, a = relu(y), ∂y = [y > 0]·∂L/∂relu, ∂x = γ·∂y, K the length of h:

    ∂h = scale·(∂x - Σ∂x/K - x·Σ(∂x·x)/K)      ∂L/∂ctx = W1ᵀ·∂h
    ∂W1 = ∂h ctxᵀ   ∂b1 = ∂h   ∂γ = ∂y·x   ∂β = ∂y   ∂W2 = ∂v aᵀ   ∂b2 = ∂v        summed over the images, in order

One program takes a block of channels of one net, for all images; the first one also writes the vectors of length K.

    hidden, hidden_grad   [net][image][K]        from gc_hidden_grad.py
    stats                 [level][image][6][C]
    context_grad          [net][image][C]        out
    grad_w1 .. grad_b2    as the parameters, a net    out, where PARAMETERS
"""

import triton
import triton.language as tl

from .device.chunks import accumulate
from .device.gc import moments, normalised, relu
from .device.levels import locate, number, pick
from .device.upstream import global_grad
from .layout import STAT_CONTEXT_S, STAT_SHIFT_GRAD, STATS


@triton.jit
def hidden_part(h, da, gamma, beta, k, size, mean, scale):
    """x, a, ∂y, ∂x on the indices k."""
    mask = k < size
    x = normalised(h, k, size, mean, scale)
    weight = tl.load(gamma + k, mask=mask, other=0.0)
    y = x * weight + tl.load(beta + k, mask=mask, other=0.0)
    dy = tl.where(y <= 0, 0.0, tl.load(da + k, mask=mask, other=0.0))  # a NaN lets it through
    return x, relu(y), dy, dy * weight


@triton.jit
def norm_sums(h, da, gamma, beta, size, mean, scale, BLOCK_K: tl.constexpr):
    """Σ∂x and Σ ∂x·x."""
    total, product = tl.zeros((BLOCK_K,), tl.float32), tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, size, BLOCK_K):
        x, _, _, dx = hidden_part(h, da, gamma, beta, start + tl.arange(0, BLOCK_K), size, mean, scale)
        total += dx
        product += dx * x
    return tl.sum(total, axis=0), tl.sum(product, axis=0)


_NETS = [
    "w1",
    "ln_weight",
    "ln_bias",
    "grad_w1",
    "grad_b1",
    "grad_ln_weight",
    "grad_ln_bias",
    "grad_w2",
    "grad_b2",
    "weights",
    "first",
    "parts",
    "hidden_size",
    "hidden_before",
    "channels",
    "channels_before",
]


@triton.jit(do_not_specialize=[*_NETS, "images"], do_not_specialize_on_alignment=_NETS)
def gc_grads(
    grads,
    w1,
    ln_weight,
    ln_bias,
    hidden,
    hidden_grad,
    stats,
    context_grad,
    grad_w1,
    grad_b1,
    grad_ln_weight,
    grad_ln_bias,
    grad_w2,
    grad_b2,
    weights,
    first,
    parts,
    hidden_size,
    hidden_before,
    channels,
    channels_before,
    images,
    PARAMETERS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    net, _, block = locate(first, parts)
    level = net // 2
    size, width = number(hidden_size, net), number(channels, level)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    gamma, beta, matrix = pick(ln_weight, net), pick(ln_bias, net), pick(w1, net)
    if PARAMETERS:
        to_w1, to_b1, to_w2, to_b2 = pick(grad_w1, net), pick(grad_b1, net), pick(grad_w2, net), pick(grad_b2, net)
        to_gamma, to_beta = pick(grad_ln_weight, net), pick(grad_ln_bias, net)
    factor = global_grad(grads, weights, level) * tl.where(net % 2 == 0, 1.0, -1.0)
    for image in range(images):
        h_at = number(hidden_before, net).to(tl.int64) + image * size
        h, da = hidden + h_at, hidden_grad + h_at
        at = number(channels_before, level).to(tl.int64) + image * width
        dv = factor * tl.load(stats + STATS * at + STAT_SHIFT_GRAD * width + c, mask=c < width, other=0.0)
        context = tl.load(stats + STATS * at + (STAT_CONTEXT_S + net % 2) * width + c, mask=c < width, other=0.0)
        mean, scale = moments(h, size, BLOCK_K)
        mean, scale = mean.to(tl.float32), scale.to(tl.float32)
        total, product = norm_sums(h, da, gamma, beta, size, mean, scale, BLOCK_K)
        grad = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
        for start in range(0, size, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x, a, dy, dx = hidden_part(h, da, gamma, beta, k, size, mean, scale)
            dh = tl.where(k < size, scale * (dx - total / size - x * (product / size)), 0.0)
            mask = (k < size)[:, None] & (c < width)[None, :]
            w1_at = k[:, None] * width + c[None, :]
            grad += tl.load(matrix + w1_at, mask=mask, other=0.0) * dh[:, None]
            if PARAMETERS:
                accumulate(to_w1 + w1_at, dh[:, None] * context[None, :], mask, image)
                w2_at = c[None, :] * size + k[:, None]
                accumulate(to_w2 + w2_at, a[:, None] * dv[None, :], mask, image)
                vector = (k < size) & (block == 0)
                accumulate(to_b1 + k, dh, vector, image)
                accumulate(to_gamma + k, dy * x, vector, image)
                accumulate(to_beta + k, dy, vector, image)
        if PARAMETERS:
            accumulate(to_b2 + c, dv, c < width, image)
            tl.debug_barrier()  # the next image's parts are added to what other threads of this program have stored
        out = context_grad + 2 * number(channels_before, level).to(tl.int64) + (net % 2 * images + image) * width
        tl.store(out + c, tl.sum(grad, axis=0), mask=c < width)
