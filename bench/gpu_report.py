"""What can be said about the CUDA kernels without a GPU: a row for every kernel, type, layout and architecture.

    python bench/gpu_report.py                          all of it: CSV, JSON and plot in bench/results/gpu_report.*
    python bench/gpu_report.py --architectures sm_90    fewer architectures: nvcc takes most of the time

Registers, spills and shared memory are nvcc's own words (-Xptxas -v) for that architecture. Instructions and sectors
come from executing the kernel's PTX in the interpreter of tests/ptx, at 256 channels. Occupancy follows from registers,
threads and shared memory; bytes in flight are those of the tile that a block has on its way while it computes another.

The predicted time is a bound, not a measurement: the larger of sectors over the memory's bandwidth and of warp
instructions over the issue rate, for the five levels of an 800x1344 batch of 8.
"""

import argparse
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "ptx"), str(ROOT / "tests" / "cuda")]

import torch  # noqa: E402
from compiled import CUDA, missing  # noqa: E402
from device import Loss  # noqa: E402
from measures import instructions, operator_inputs, sectors_over_floor  # noqa: E402

RESULTS = pathlib.Path(__file__).parent / "results"
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
UNITS = {"forward": 2, "backward": 3}  # of N·C·H·W elements, that a pass reads and writes at least
PAIRS = 8 * 256 * sum(h * w for h, w in ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11)))
THREADS = 256

# (architecture, multiprocessors, clock in GHz, memory bandwidth in GB/s), from the vendors' data sheets.
DEVICES = {
    "H100 SXM": ("sm_90", 132, 1.755, 3350),
    "A100 80GB": ("sm_80", 108, 1.41, 2039),
    "RTX 4090": ("sm_89", 128, 2.52, 1008),
}
# A multiprocessor's shared memory in KiB, and the threads it can hold.
LIMITS = {
    "sm_75": (64, 1024),
    "sm_80": (164, 2048),
    "sm_86": (100, 1536),
    "sm_89": (100, 1536),
    "sm_90": (228, 2048),
    "sm_100": (228, 2048),
    "sm_120": (100, 1536),
}


def executed(dtype: str, layout: str) -> dict[str, dict]:
    """Instructions an element pair and sectors over the floor, forward and backward, from the interpreter."""
    inputs = operator_inputs(DTYPES[dtype], LAYOUTS[layout])
    loss = Loss(*inputs, multiprocessors=4, check_races=False)
    loss.forward()
    loss.backward((1.0, 1.0, 1.0, 1.0))
    pairs = loss.student[0].numel()
    out = {}
    for step, units in UNITS.items():
        counts = loss.device.counts[f"fgd_{step}_{layout}_{dtype}"]
        out[step] = {
            "instructions_per_pair": round(instructions(counts) / pairs, 2),
            "ptx_instructions_per_pair": round(counts.thread_instructions / pairs, 2),
            "sectors_over_floor": round(sectors_over_floor(counts, pairs * DTYPES[dtype].itemsize * units), 4),
            "shared_wavefronts_per_warp_pair": round(counts.shared_wavefronts * 32 / pairs, 2),
        }
    return out


def compiled_for(unit: str, architecture: str) -> dict[str, dict]:
    """Registers, spills and shared memory of every kernel of a unit."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-cubin", "-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas", "-v"]
        paths = [f"-I{CUDA}", f"-I{CUDA.parent / 'include'}", "-o", os.path.join(folder, "out.cubin")]
        command = ["nvcc", *flags, *paths, CUDA / f"{unit}.cu"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {}
    for part in said.split("Compiling entry function '")[1:]:
        numbers = [r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes smem"]
        registers, spills, shared = (int(m[1]) if (m := re.search(n, part)) else 0 for n in numbers)
        found[part.split("'")[0]] = {"registers": registers, "spills": spills, "shared_bytes": shared}
    return found


def blocks_per_multiprocessor(architecture: str, registers: int, shared: int) -> int:
    """How many blocks of THREADS threads fit."""
    kib, threads = LIMITS[architecture]
    by_registers = 65_536 // (-(-registers // 8) * 8 * THREADS)
    return min(by_registers, threads // THREADS, kib * 1024 // (shared + 1024))


def predictions(architecture: str, size: int, step: str, seen: dict) -> dict:
    """Milliseconds of the pass over PAIRS on the devices of that architecture, as a bound."""
    out = {}
    for name, (of, multiprocessors, ghz, bandwidth) in DEVICES.items():
        if of != architecture:
            continue
        memory = PAIRS * size * UNITS[step] * seen["sectors_over_floor"] / (bandwidth * 1e9)
        issue = PAIRS * seen["instructions_per_pair"] / (multiprocessors * 128 * ghz * 1e9)
        out[f"predicted, not measured: ms on {name}"] = round(max(memory, issue) * 1e3, 3)
        out[f"predicted, not measured: bound on {name}"] = "memory" if memory >= issue else "instructions"
    return out


def rows_of(architectures) -> list[dict]:
    """The table."""
    rows = []
    for layout in LAYOUTS:
        resources = {a: {s: compiled_for(f"{s}_{layout}", a) for s in UNITS} for a in architectures}
        for dtype in DTYPES:
            seen = executed(dtype, layout)
            for step in UNITS:
                for architecture in architectures:
                    name = f"fgd_{step}_{layout}_{dtype}"
                    used = resources[architecture][step][name]
                    blocks = blocks_per_multiprocessor(architecture, used["registers"], used["shared_bytes"])
                    row = {"kernel": name, "step": step, "dtype": dtype, "layout": layout, "architecture": architecture}
                    row |= used | {"blocks_per_multiprocessor": blocks}
                    row["occupancy"] = round(blocks * THREADS / LIMITS[architecture][1], 3)
                    row["bytes_in_flight"] = blocks * THREADS * 8 * 16  # eight packets of 16 bytes a thread
                    row |= seen[step] | predictions(architecture, DTYPES[dtype].itemsize, step, seen[step])
                    rows.append(row)
                    print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def small_kernels(architectures) -> list[dict]:
    """Registers, spills and shared memory of all other kernels."""
    units = ("forward_generic", "backward_generic", "merge", "gc_block", "gc_backward")
    return [
        {"kernel": name, "architecture": architecture} | used
        for architecture in architectures
        for unit in units
        for name, used in compiled_for(unit, architecture).items()
    ]


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Instructions an element pair against the budget, and predicted times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.5))
    kernels = sorted({row["kernel"] for row in rows})
    per_pair = {row["kernel"]: row["instructions_per_pair"] for row in rows}
    left.barh([k.removeprefix("fgd_") for k in kernels], [per_pair[k] for k in kernels])
    for budget, label in ((34, "budget forward, 16 bit"), (51, "budget backward, 16 bit")):
        left.axvline(budget, linestyle="--", color="gray")
        left.text(budget, len(kernels) - 0.4, label, fontsize=7, rotation=90, va="top", ha="right")
    left.set_xlabel("thread instructions per (student, teacher) element pair")
    width = 0.25
    for i, name in enumerate(DEVICES):
        key = f"predicted, not measured: ms on {name}"
        times = {row["kernel"]: row[key] for row in rows if key in row}
        at = [k + (i - 1) * width for k in range(len(kernels))]
        right.barh(at, [times.get(k, 0) for k in kernels], height=width, label=name)
    right.set_yticks(range(len(kernels)), [k.removeprefix("fgd_") for k in kernels])
    right.set_xlabel("ms for five levels of an 800×1344 batch of 8: predicted, not measured")
    right.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Compile, execute, print, and write CSV, JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "gpu_report.csv")
    arguments = parser.parse_args()
    if missing():
        print(f"gpu_report: nothing done, {missing()}")
        return
    rows, small = rows_of(arguments.architectures), small_kernels(arguments.architectures)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows + small for column in row))
    with open(arguments.output, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows + small)
    table = {"passes over features": rows, "other kernels": small}
    arguments.output.with_suffix(".json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    plot(rows, arguments.output.with_suffix(".png"))
    spilling = [row["kernel"] + " on " + row["architecture"] for row in rows + small if row["spills"]]
    print("spills: " + (", ".join(spilling) or "none"))


if __name__ == "__main__":
    main()
