"""How fast the PTX interpreter (devtools/ptx) is, on this repository's passes over the features.

    python -m bench.ptx_interpreter                 a table on the screen, one core
    python -m bench.ptx_interpreter --rounds 9

Each kernel runs a few times, the median counts; kernels of CUDA C++ need nvcc, those of Triton the package.
"""

import argparse
import statistics
import time

import torch

from bench.machine import description
from devtools.offline import cuda_build
from devtools.offline.cuda_device import Device, Loss
from devtools.offline.measures import operator_inputs
from devtools.ptx import GPU

SHAPES = ({"height": 16, "width": 64}, {"height": 64, "width": 256})


def timed_launches(run) -> dict[str, tuple[float, int, int]]:
    """(seconds, thread instructions, blocks) of every launch that `run` makes, by the kernel's name."""
    found, launch = {}, GPU.launch

    def timed(gpu, kernel, *args, **options):
        start = time.perf_counter()
        counts = launch(gpu, kernel, *args, **options)
        found[kernel.name] = time.perf_counter() - start, counts.thread_instructions, counts.blocks
        return counts

    GPU.launch = timed
    try:
        run()
    finally:
        GPU.launch = launch
    return found


def cuda(inputs: tuple) -> None:
    """Forward and backward of the CUDA C++ kernels."""
    loss = Loss(*inputs, multiprocessors=4)
    loss.forward()
    loss.backward((1.0, 1.0, 1.0, 1.0))


def triton(inputs: tuple) -> None:
    """The same of the Triton kernels."""
    from devtools.offline.triton_device import Emulator
    from fgd_kernels import triton_kernels

    student, teacher, boxes, gc_block = inputs
    arguments = (student, teacher, *boxes, gc_block, [1.0] * 4, 0.5, 0.5)
    with Emulator("90").instead_of_a_gpu():
        *_, maps, stats = triton_kernels.forward(*arguments)
        triton_kernels.backward(torch.ones(4), *arguments, maps, stats, True, True)
