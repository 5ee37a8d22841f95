"""The GcBlocks' parameters, regrouped: a tuple for each kind of tensor with one entry a net (2·level, 2·level + 1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference import GC_BLOCK_SIZE, GcBlockPair


class GcBlocks(NamedTuple):
    """Row-major in memory: matrices (K, C) and (C, K), vectors (K,) and (C,)."""

    keys: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    w1: tuple[Tensor, ...]
    b1: tuple[Tensor, ...]
    ln_weight: tuple[Tensor, ...]
    ln_bias: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    b2: tuple[Tensor, ...]

    IN_PAIR = ("key", "key_bias", "w1", "b1", "ln_weight", "ln_bias", "w2", "b2")  # the same, of a net in GcBlockPair

    @property
    def hidden(self) -> tuple[int, ...]:
        """K of every net."""
        return tuple(bias.shape[0] for bias in self.b1)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "GcBlocks":
        nets = []
        for start in range(0, len(tensors), GC_BLOCK_SIZE):
            pair = GcBlockPair(*map(_row_major, tensors[start : start + GC_BLOCK_SIZE]))
            for net in "st":
                nets.append([getattr(pair, f"{name}_{net}") for name in cls.IN_PAIR])
        return cls(*zip(*nets, strict=True))


def _row_major(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def empty_grads(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Row-major memory for the gradients of the parameters."""
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


def like_parameters(grads: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients with their parameters' strides; a copy only where those are not row-major."""
    return [
        grad if tensor.is_contiguous() else torch.empty_like(tensor).copy_(grad)
        for grad, tensor in zip(grads, tensors, strict=True)
    ]
