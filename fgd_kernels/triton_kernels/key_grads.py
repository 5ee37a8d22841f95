"""Backward, the end:  ∂L/∂Wk = Σ over the slices of all images, in order; ∂L/∂bk = 0, for it shifts every logit alike.

One program takes a block of channels of one net.

    partials     [slice][2][C]      from backward_pass.py; partials of a level's slices follow one another
    key_grads    (C,) a net         out
    bias_grads   (1,) a net         out
"""

import triton
import triton.language as tl
from torch import Tensor

from .gc_blocks import GcBlocks
from .levels import locate, number, pick
from .pyramid import CHANNEL_BLOCK, Grid, Pyramid, cut, encoded

_NETS = ["key_grads", "bias_grads", "first", "parts", "first_slice", "slices", "channels"]


@triton.jit(do_not_specialize=[*_NETS, "partial_size", "images"], do_not_specialize_on_alignment=_NETS)
def sum_key_grads(
    partials,
    key_grads,
    bias_grads,
    first,
    parts,
    first_slice,
    slices,
    channels,
    partial_size,
    images,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    net, _, block = locate(first, parts)
    level = net // 2
    width, count = number(channels, level), images * number(slices, level)
    c = (block * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    at = partials + number(first_slice, level).to(tl.int64) * partial_size + net % 2 * width
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK):
        row = (start + tl.arange(0, BLOCK))[:, None].to(tl.int64)
        total += tl.load(at + row * partial_size + c, mask=(row < count) & (c < width), other=0.0)
    tl.store(pick(key_grads, net) + c, tl.sum(total, axis=0)[None, :], mask=c < width)
    tl.store(pick(bias_grads, net), 0.0, mask=block == 0)


def key_size(p: Pyramid) -> int:
    """Entries of a slice's partial sums in the backward pass."""
    return 2 * max(p.channels)


def launch(p: Pyramid, gc_out: GcBlocks, partials: Tensor) -> None:
    """The slices' partial sums become the gradients of the keys; the biases' are zero."""
    grid = Grid.of([blocks for blocks in cut(p.channels, CHANNEL_BLOCK) for _ in range(2)], 1)
    sum_key_grads[(grid.total,)](
        partials,
        gc_out.keys,
        gc_out.biases,
        encoded(grid.first),
        encoded(grid.parts),
        encoded(p.slices.first),
        encoded(p.slices.parts),
        encoded(p.channels),
        key_size(p),
        p.images,
        BLOCK_C=CHANNEL_BLOCK,
        BLOCK=32,
        num_warps=4,
        enable_fp_fusion=False,
    )
