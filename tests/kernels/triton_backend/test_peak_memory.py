"""How much memory a step of the Triton backend holds at its peak: sizes of allocations. No kernel runs here."""

import os
import weakref

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: launches are interpreted", allow_module_level=True)

from cases import Case, make_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from devtools.offline import triton_build
from fgd_kernels import triton_kernels

P3_TO_P7 = ((256, 100, 168), (256, 50, 84), (256, 25, 42), (256, 13, 21), (256, 7, 11))  # of an 800×1344 batch
GRANULE = 512  # bytes, in which PyTorch's allocator hands out a GPU's memory
BUDGET = 0.05  # of a feature map
FORWARD_PEAK = {torch.float32: 0.045, torch.bfloat16: 0.08}  # found, see docs/triton.md: above the budget in 16 bits


class Memory(TorchDispatchMode):
    """Bytes of the storages that live, of those that were made within, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, torch.Tensor)):
            if storage._cdata not in self.live:
                self.live[storage._cdata] = -(-storage.nbytes() // GRANULE) * GRANULE
                weakref.finalize(storage, self.live.pop, storage._cdata)
        self.peak = max(self.peak, self.held)
        return out

    @property
    def held(self) -> int:
        return sum(self.live.values())


@pytest.mark.parametrize("images", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory(images, dtype):
    """Above inputs and gradients: a step keeps to the budget; its forward pass by itself does not in 16 bits.

    A step's peak is in the backward pass: while the forward pass has its scratch memory, there is no gradient yet.
    """
    student, teacher, _, _, criterion = make_inputs(Case("memory", P3_TO_P7, (7,) * images, dtype, dtype), "meta")
    gc_block = [p.detach() for level in criterion.levels for p in level.gc_block()]
    boxes, offsets, sizes = torch.empty(7 * images, 4), torch.empty(images + 1), torch.empty(images, 2)
    shared = (student, teacher, *(x.to("meta") for x in (boxes, offsets.int(), sizes)), gc_block)
    settings = ([1.0] * 4 * len(P3_TO_P7), 0.5, 0.5)
    memory = Memory()
    with triton_build.instead_of_launching(lambda launch: None), memory:
        *_, maps, stats = triton_kernels.forward(*shared, *settings)
        forward, saved = memory.peak, memory.held
        memory.peak = 0
        grads = torch.empty(4, device="meta")
        found = triton_kernels.backward(grads, *shared, *settings, maps, stats, True, True)
    feature_map = sum(s.numel() * s.element_size() for s in student)
    step = memory.peak - sum(g.numel() * g.element_size() for g in tree_leaves(found))
    assert 0 < saved < step <= BUDGET * feature_map
    assert saved < forward <= FORWARD_PEAK[dtype] * feature_map
    for name, size in (("saved", saved), ("step", step), ("forward", forward)):
        print(f"{name}: {size / feature_map:.4f} of a feature map of {dtype}")
