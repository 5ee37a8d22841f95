"""A stand-in for a GPU: launches are compiled for an NVIDIA GPU, and their PTX runs in the interpreter, devtools.ptx.

The tensors lie in the CPU's memory; each launch gets copies of their storages, which come back afterwards.
"""

import collections
import contextlib

import numpy as np
import torch

from devtools.offline import triton_build
from devtools.ptx import GPU, parse
from fgd_kernels import triton_kernels


class Emulator:
    """Runs launches; `counts` has the counters of each kernel, `launched` the kernels' names in order."""

    def __init__(self, target: str = "80"):
        self.target = triton_build.TARGETS[target]
        self.counts: dict[str, list] = collections.defaultdict(list)
        self.launched: list[str] = []

    def run(self, launch: triton_build.Launch) -> None:
        compiled = triton_build.compile_for(launch, self.target)
        gpu, storages = GPU(), {}
        values = [self._argument(gpu, storages, value) for value in _flat(launch)]
        name = launch.kernel.fn.__name__
        counts = gpu.launch(
            parse(compiled.asm["ptx"])[name],
            grid=(launch.programs,),
            block=32 * launch.options["num_warps"],
            args=[*values, 0, 0],
            shared_bytes=compiled.metadata.shared,
        )
        for memory, address in storages.values():
            memory[:] = gpu.get(address, memory.shape, np.uint8)
        self.launched.append(name)
        self.counts[name].append(counts)

    def _argument(self, gpu, storages: dict, value):
        if not isinstance(value, torch.Tensor):
            return np.float32(value) if isinstance(value, float) else value
        storage = value.untyped_storage()
        if not storage.nbytes():
            return 0
        if storage.data_ptr() not in storages:
            memory = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            storages[storage.data_ptr()] = memory, gpu.put(memory)
        return storages[storage.data_ptr()][1] + value.storage_offset() * value.element_size()

    @contextlib.contextmanager
    def instead_of_a_gpu(self):
        with triton_build.instead_of_launching(self.run):
            yield self


def step(target: str, student, teacher, boxes, gc_block) -> Emulator:
    """One level's forward and backward pass on an emulator of that target, for the arguments of measures."""
    inputs = (student, teacher, *boxes, gc_block, [1.0] * 4, 0.5, 0.5)
    with Emulator(target).instead_of_a_gpu() as gpu:
        *_, maps, stats = triton_kernels.forward(*inputs)
        triton_kernels.backward(torch.ones(4), *inputs, maps, stats, True, True)
    return gpu


def _flat(launch: triton_build.Launch) -> list:
    """The arguments as the compiled kernel takes them: tuples spread out, constants left out."""
    values = []
    for parameter, value in zip(launch.kernel.params, launch.arguments.values(), strict=True):
        if not parameter.is_constexpr:
            values.extend(value if isinstance(value, tuple) else (value,))
    return values
