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
from devtools.offline.cuda_device import Loss
from devtools.offline.measures import operator_inputs
from devtools.ptx import GPU

PASSES = ("fgd_forward_n", "fgd_backward_n", "forward_pass", "backward_pass")
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
    from devtools.offline import triton_device

    triton_device.step("90", *inputs)


def rows(name: str, step, rounds: int) -> list[tuple]:
    """(kernel, C × P, blocks, seconds, million thread instructions a second) of the passes over the features."""
    found = []
    for shape in SHAPES:
        inputs = operator_inputs(torch.bfloat16, torch.contiguous_format, **shape)
        runs = [timed_launches(lambda inputs=inputs: step(inputs)) for _ in range(rounds + 1)][1:]  # the first compiles
        channels, pixels = inputs[0][0].shape[1], inputs[0][0][0, 0].numel()
        for kernel in (k for k in runs[0] if k.startswith(PASSES)):
            seconds = statistics.median(run[kernel][0] for run in runs)
            _, instructions, blocks = runs[0][kernel]
            found.append((f"{kernel}, {name}", f"{channels} × {pixels}", blocks, seconds, instructions / seconds / 1e6))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    if why := cuda_build.missing():
        print(f"ptx_interpreter: without the CUDA kernels: {why}")
    else:
        found += rows("CUDA C++", cuda, arguments.rounds)
    try:
        found += rows("Triton", triton, arguments.rounds)
    except ImportError as error:
        print(f"ptx_interpreter: without the Triton kernels: {error}")
    print("| kernel (bfloat16, NCHW) | C × P | blocks | seconds | million a second |\n|---|---|---|---|---|")
    for kernel, size, blocks, seconds, rate in found:
        print(f"| {kernel} | {size} | {blocks} | {seconds:.2f} | {rate:.0f} |")
    print(*(f"{name}: {value}" for name, value in description().items()), sep=", ")


if __name__ == "__main__":
    main()
