"""What the compilers make of the Triton kernels, on a machine without a GPU: registers, spills, shared memory, loads.

    python -m bench.gpu_report_triton                 a table on the screen
    python -m bench.gpu_report_triton --json FILE     the same rows, to a file
    python -m bench.gpu_report_triton --targets 90 gfx942 --features bfloat16

How they are compiled: devtools/offline/triton_build.py. Nothing here measures time.
"""

import argparse
import json
import pathlib

from devtools.offline.triton_build import TARGETS, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--features", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--layouts", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--every-kernel", action="store_true", help="not only the passes over the features")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    rows = report(options.targets, options.features, options.layouts, options.channels, options.every_kernel)
    for row in rows:
        print(*(f"{key}={value}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
