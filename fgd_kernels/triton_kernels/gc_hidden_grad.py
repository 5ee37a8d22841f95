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
from torch import Tensor

from .gc_blocks import GcBlocks
from .gc_hidden import matrix_row_dot
from .levels import STATS, image_start, locate, number, pick
from .pyramid import HIDDEN_BLOCK, Grid, Pyramid, before, cut, encoded, scratch


@triton.jit
def matrix_column_dot(w, x, columns, column_count, rows, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """x·w[:, columns] for a matrix of `rows` rows: [BLOCK_K]."""
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    for start in range(0, rows, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (c < rows)[:, None] & (columns < column_count)[None, :]
        matrix = tl.load(w + c[:, None] * column_count + columns[None, :], mask=mask, other=0.0)
        total += matrix * tl.load(x + c, mask=c < rows, other=0.0)[:, None]
    return tl.sum(total, axis=0)


@triton.jit
def global_grad(grads, weights, level):
    """g_gl: the upstream gradient of a level's global term, its weight and 1/N included."""
    weight = weights[3]
    for i in tl.static_range(1, len(weights) // 4):
        weight = tl.where(level == i, weights[4 * i + 3], weight)
    return tl.load(grads + 3) * weight


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
    h = matrix_row_dot(pick(w1, net), at + (4 + net % 2) * width, k, size, width, BLOCK_K, BLOCK_C)
    tl.store(hidden + out, h + tl.load(pick(b1, net) + k, mask=k < size, other=0.0), mask=k < size)
    factor = global_grad(grads, weights, level) * tl.where(net % 2 == 0, 1.0, -1.0)
    da = matrix_column_dot(pick(w2, net), at + 3 * width, k, size, width, BLOCK_K, BLOCK_C)
    tl.store(hidden_grad + out, da * factor, mask=k < size)


def launch(p: Pyramid, gc: GcBlocks, weights: tuple[float, ...], grads: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
    """h and ∂L/∂relu of all nets and images."""
    grid = Grid.of(cut(gc.hidden, HIDDEN_BLOCK), p.images)
    size = p.images * sum(gc.hidden)
    hidden, hidden_grad = scratch(stats, size), scratch(stats, size)
    gc_hidden_grad[(grid.total,)](
        grads,
        gc.w1,
        gc.b1,
        gc.w2,
        stats,
        hidden,
        hidden_grad,
        weights,
        encoded(grid.first),
        encoded(grid.parts),
        encoded(gc.hidden),
        encoded(before(gc.hidden, p.images)),
        encoded(p.channels),
        encoded(p.channels_before),
        BLOCK_K=HIDDEN_BLOCK,
        BLOCK_C=128,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return hidden, hidden_grad
