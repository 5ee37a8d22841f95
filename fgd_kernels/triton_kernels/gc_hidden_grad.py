"""Backward, GcBlock, first half, for both nets of every level and every image: h again, and ∂L/∂relu.

    h = W1·ctx + b1      ∂L/∂relu = W2ᵀ·∂L/∂v,   ∂L/∂v = ±g_gl·∂L_gl/∂r   (+ the student's net, - the teacher's)

One program takes a block of the hidden vector.

    grads         (4,)   upstream gradients of the four terms; `weights`: the terms' weights over N, 4 a level
    w1, b1, w2    (K, C), (K,), (C, K) a net
    stats         [level][image][6][C]
    hidden        [net][image][K]        out: h
    hidden_grad   [net][image][K]        out: ∂L/∂relu
"""

import triton
import triton.language as tl

from .device.gc import matrix_column_dot, matrix_row_dot
from .device.levels import image_start, locate, number, pick
from .device.upstream import global_grad
from .layout import STAT_CONTEXT_S, STAT_SHIFT_GRAD, STATS

_NETS = ["w1", "b1", "w2", "weights", "first", "parts", "hidden_size", "hidden_before", "channels", "channels_before"]


@triton.jit(do_not_specialize=_NETS, do_not_specialize_on_alignment=_NETS)
def gc_hidden_grad(
    grads,
    w1,
    b1,
    w2,
    stats,
    hidden,
    hidden_grad,
    weights,
    first,
    parts,
    hidden_size,
    hidden_before,
    channels,
    channels_before,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    net, image, block = locate(first, parts)
    level = net // 2
    size, width = number(hidden_size, net), number(channels, level)
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    at = stats + STATS * image_start(channels_before, channels, level, image)
    out = image_start(hidden_before, hidden_size, net, image) + k
    h = matrix_row_dot(pick(w1, net), at + (STAT_CONTEXT_S + net % 2) * width, k, size, width, BLOCK_K, BLOCK_C)
    tl.store(hidden + out, h + tl.load(pick(b1, net) + k, mask=k < size, other=0.0), mask=k < size)
    factor = global_grad(grads, weights, level) * tl.where(net % 2 == 0, 1.0, -1.0)
    da = matrix_column_dot(pick(w2, net), at + STAT_SHIFT_GRAD * width, k, size, width, BLOCK_K, BLOCK_C)
    tl.store(hidden_grad + out, da * factor, mask=k < size)
