"""Forward, GcBlock (12), first half:  h = W1·ctx + b1, for both nets of every level and every image.

One program takes a block of rows of W1. A net is 2·level for the student's GcBlock, 2·level + 1 for the teacher's; what
differs between nets is passed in tuples with one entry a net.

    w1      (K, C) a net      b1   (K,) a net
    stats   [level][image][6][C]    from finish.py: the contexts
    hidden  [net][image][K]         out
"""

import triton
import triton.language as tl
from torch import Tensor

from .gc_blocks import GcBlocks
from .levels import STATS, image_start, locate, number, pick
from .pyramid import HIDDEN_BLOCK, Grid, Pyramid, before, cut, encoded, scratch

_NETS = ["w1", "b1", "first", "parts", "hidden_size", "hidden_before", "channels", "channels_before"]


@triton.jit
def matrix_row_dot(w, x, rows, row_count, columns, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """w[rows, :]·x for a matrix of row_count rows: [BLOCK_K]."""
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (rows < row_count)[:, None] & (c < columns)[None, :]
        matrix = tl.load(w + rows[:, None] * columns + c[None, :], mask=mask, other=0.0)
        total += matrix * tl.load(x + c, mask=c < columns, other=0.0)[None, :]
    return tl.sum(total, axis=1)


@triton.jit(do_not_specialize=_NETS, do_not_specialize_on_alignment=_NETS)
def gc_hidden(
    w1,
    b1,
    stats,
    hidden,
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
    size, width = number(hidden_size, net), number(channels, net // 2)
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    context = stats + STATS * image_start(channels_before, channels, net // 2, image) + (4 + net % 2) * width
    h = matrix_row_dot(pick(w1, net), context, k, size, width, BLOCK_K, BLOCK_C)
    h += tl.load(pick(b1, net) + k, mask=k < size, other=0.0)
    tl.store(hidden + image_start(hidden_before, hidden_size, net, image) + k, h, mask=k < size)


def launch(p: Pyramid, gc: GcBlocks, stats: Tensor) -> Tensor:
    """h of all nets and images."""
    grid = Grid.of(cut(gc.hidden, HIDDEN_BLOCK), p.images)
    hidden = scratch(stats, p.images * sum(gc.hidden))
    gc_hidden[(grid.total,)](
        gc.w1,
        gc.b1,
        stats,
        hidden,
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
    return hidden
