"""What the compilers make of the Triton kernels, on a machine without a GPU: registers, spills, shared memory, loads.

    python -m bench.gpu_report_triton                 a table on the screen
    python -m bench.gpu_report_triton --json FILE     the same rows, to a file
    python -m bench.gpu_report_triton --targets 90 gfx942 --features bfloat16
    python -m bench.gpu_report_triton --executed --channels 1024 --features bfloat16 --teacher float32
    python -m bench.gpu_report_triton --executed --size 32 128

How they are compiled: devtools/offline/triton_build.py. --executed runs the code for sm_90 in devtools/ptx and counts,
for every pair of a student's and a teacher's element, instructions, and sectors over those of the features read and
written once. Nothing here measures time.
"""

import argparse
import itertools
import json
import pathlib

import torch

from devtools.offline import measures
from devtools.offline.triton_build import TARGETS, report

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def executed(
    features: list[str], layouts: list[str], channels: int, teacher: str | None, size: tuple[int, int]
) -> list[dict]:
    """One row a type, layout and pass: one image of that height and width."""
    from devtools.offline import triton_device

    rows = []
    for feature, layout in itertools.product(features, layouts):
        types = getattr(torch, feature), getattr(torch, teacher or feature)
        inputs = measures.operator_inputs(types[0], FORMATS[layout], *size, channels, types[1])
        gpu, pairs = triton_device.step("90", *inputs), inputs[0][0].numel()
        for name, bytes_of_a_pair in (("forward_pass", 0), ("backward_pass", types[0].itemsize)):
            (counts,) = gpu.counts[name]
            floor = pairs * (bytes_of_a_pair + sum(kind.itemsize for kind in types))
            row = {"kernel": name, "features": feature, "teacher": teacher or feature, "layout": layout}
            row |= {"channels": channels, "instructions": round(measures.instructions(counts) / pairs, 1)}
            rows.append(row | {"sectors": round(measures.sectors_over_floor(counts, floor), 3)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--features", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--layouts", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--every-kernel", action="store_true", help="not only the passes over the features")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--executed", action="store_true", help="what the code for sm_90 executes, in devtools/ptx")
    parser.add_argument("--teacher", help="--executed: type of the teacher's features, where it is another")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=(16, 32),
        metavar=("HEIGHT", "WIDTH"),
        help="--executed: of the image; 16 32 is one chunk in 16 bits",
    )
    options = parser.parse_args()
    if options.executed:
        rows = executed(options.features, options.layouts, options.channels, options.teacher, options.size)
    else:
        rows = report(options.targets, options.features, options.layouts, options.channels, options.every_kernel)
    for row in rows:
        print(*(f"{key}={value}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
