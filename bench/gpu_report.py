"""What can be said about the GPU kernels without a GPU: a row for every kernel, type, layout and architecture.

    python -m bench.gpu_report                          all of it: CSV, JSON and plot in bench/results/gpu_report.*
    python -m bench.gpu_report --architectures sm_90    fewer architectures: the compilers take most of the time
    python -m bench.gpu_report --without-triton

All of it takes a quarter of an hour of processor time.

Registers, spills and shared memory are the compilers' own words for that architecture: nvcc -Xptxas -v for CUDA C++,
devtools/offline/triton_build.py for Triton. Instructions and sectors come from executing PTX in devtools/ptx:
one image of 32x128 pixels and 256 channels, for the CUDA kernels in four chunks (the wide ones: 8x64 pixels of every
number of channels in WIDE, in one chunk), of Triton the code for sm_90. They count per pair of a student's and a
teacher's element; sectors are all that the kernel moves, over the floor of its pass, which is two feature maps forward
and three backward. The steps between the passes stand in the same units: what they add. Occupancy follows from
registers, threads and shared memory; bytes in flight are those of the tile that a block has on its way while it
computes another, for all blocks that a multiprocessor holds.

The predicted time is a bound, not a measurement: the larger of sectors over the memory's bandwidth and of warp
instructions over the issue rate, for the five levels of an 800x1344 batch of 8.

Columns labelled 'modelled' come from devtools/offline/sass_model.py, where there is a cuobjdump (the CUDA toolkit's or
Triton's): the machine code of the tile loop, played through on a model of one multiprocessor. Cycles are those of a
tile of 32 KiB with all its data on its way in time; a device that moves B bytes a second through M multiprocessors of
clock f needs 32,768·M·f/B of them for its loads: 2,530 on an H100 that moves 3 TB/s.
"""

import argparse
import csv
import itertools
import json
import os
import pathlib
import re
import subprocess
import tempfile

import torch

from devtools.offline import sass, sass_model
from devtools.offline.cuda_build import CUDA, UNITS, missing, ptx_for, ptx_of
from devtools.offline.cuda_device import Loss
from devtools.offline.measures import instructions, operator_inputs, sectors_over_floor

RESULTS = pathlib.Path(__file__).parent / "results"
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PASSES = {"forward": 2, "backward": 3}  # feature maps that a pass reads and writes at least
FORWARD_STEPS = ("forward", "merge", "finish", "gc_added", "terms")
PAIRS = 8 * 256 * sum(h * w for h, w in ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11)))
WIDE = (320, 384, 512, 640, 768, 1024, 1280, 2048)  # channels
THREADS = 256
EXECUTED_TRITON = "sm_90"
PREDICTED = "predicted, not measured"

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


# ---- executed ------------------------------------------------------------------------------------------------------


def executed(dtype: torch.dtype, layout: torch.memory_format, **shape: int) -> dict[str, dict]:
    """Of every launch of a step, by the kernel's name: instructions an element pair, sectors over the pass's floor."""
    one = shape.get("channels", 256) > 256
    loss = Loss(*operator_inputs(dtype, layout, **shape), multiprocessors=1 if one else 4, check_races=False)
    loss.forward()
    loss.backward((1.0, 1.0, 1.0, 1.0))
    found = {}
    for name, counts in loss.device.counts.items():
        step = name.removeprefix("fgd_").rsplit("_", 1)[0]
        maps = PASSES["forward" if step.startswith(FORWARD_STEPS) else "backward"]
        found[name] = counted(counts, loss.student[0].numel(), dtype, maps)
    return found


def counted(counts, pairs: int, dtype: torch.dtype, maps: int) -> dict:
    """A launch's counters in the units of the table."""
    return {
        "instructions_per_pair": round(instructions(counts) / pairs, 3),
        "ptx_instructions_per_pair": round(counts.thread_instructions / pairs, 3),
        "sectors_over_floor": round(sectors_over_floor(counts, pairs * dtype.itemsize * maps), 4),
        "shared_wavefronts_per_warp_pair": round(counts.shared_wavefronts * 32 / pairs, 3),
    }


def executed_kernels() -> list[tuple[dict, dict]]:
    """(what was run, what was seen) of every kernel of float32 sums."""
    out = []
    for layout, memory_format in LAYOUTS.items():
        for dtype, torch_dtype in DTYPES.items():
            run = {"dtype": dtype, "layout": layout, "channels": 256}
            for name, seen in executed(torch_dtype, memory_format).items():
                small = "nchw" not in name and "nhwc" not in name
                if not small or (dtype, layout) == ("bf16", "nchw"):  # the steps between are the same for all
                    out.append(({"kernel": name} | run, seen))
            for channels in WIDE:
                shape = {"channels": channels, "height": 8, "width": 64, "hidden": 8}
                for name, seen in executed(torch_dtype, memory_format, **shape).items():
                    if "wide" in name:
                        out.append(({"kernel": name} | run | {"channels": channels}, seen))
    return out


def executed_triton(dtype: torch.dtype, layout: torch.memory_format) -> dict[str, dict]:
    """The same of the two Triton kernels that pass over the features."""
    from devtools.offline import triton_device  # needs Triton

    inputs = operator_inputs(dtype, layout)
    gpu, pairs = triton_device.step(EXECUTED_TRITON[3:], *inputs), inputs[0][0].numel()
    launches = {f"{step}_pass": (gpu.counts[f"{step}_pass"][0], size) for step, size in PASSES.items()}
    return {name: counted(counts, pairs, dtype, size) for name, (counts, size) in launches.items()}


# ---- compiled ------------------------------------------------------------------------------------------------------


def compiled_for(unit: str, architectures) -> dict[tuple[str, str], dict]:
    """Registers, spills and shared memory, by (kernel, architecture), of csrc/cuda/<unit>.cu."""
    with tempfile.TemporaryDirectory() as folder:
        targets = [f"-gencode=arch=compute_{ptx_for(a)[3:]},code={a}" for a in architectures]
        flags = ["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v", *targets, f"-I{CUDA}", f"-I{CUDA.parent / 'include'}"]
        command = ["nvcc", *flags, "-o", os.path.join(folder, "out.fatbin"), CUDA / f"{unit}.cu"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {}
    for part in said.split("Compiling entry function ")[1:]:
        name, architecture = re.match(r"'(\w+)' for '(\w+)'", part).groups()
        numbers = [r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes smem"]
        registers, spills, shared = (int(m[1]) if (m := re.search(n, part)) else 0 for n in numbers)
        found[name, architecture] = {"registers": registers, "spills": spills, "shared_bytes": shared}
    return found


def residency(architecture: str, registers: int, shared: int, threads: int) -> dict:
    """How many blocks a multiprocessor holds, and which part of its threads that is."""
    kib, most_threads = LIMITS[architecture]
    by_registers = 65_536 // (-(-max(registers, 1) // 8) * 8 * threads)
    blocks = min(by_registers, most_threads // threads, kib * 1024 // (shared + 1024))
    return {"blocks_per_multiprocessor": blocks, "occupancy": round(blocks * threads / most_threads, 3)}


def bytes_in_flight(kernel: str, blocks: int) -> int | None:
    """Of a multiprocessor: eight packets of 16 bytes a thread, in the kernels that prefetch a tile."""
    return blocks * THREADS * 8 * 16 if "_nchw_" in kernel or "_nhwc_" in kernel else None


def predictions(architecture: str, size: int, maps: int, seen: dict) -> dict:
    """Milliseconds of the pass over PAIRS on the devices of that architecture, as a bound."""
    out = {}
    for name, (of, multiprocessors, ghz, bandwidth) in DEVICES.items():
        if of != architecture:
            continue
        memory = PAIRS * size * maps * seen["sectors_over_floor"] / (bandwidth * 1e9)
        issue = PAIRS * seen["instructions_per_pair"] / (multiprocessors * 128 * ghz * 1e9)
        out[f"{PREDICTED}: ms on {name}"] = round(max(memory, issue) * 1e3, 3)
        out[f"{PREDICTED}: bound on {name}"] = "memory" if memory >= issue else "instructions"
    return out


# ---- the table -----------------------------------------------------------------------------------------------------


def cuda_rows(architectures) -> list[dict]:
    """The CUDA kernels."""
    used = {key: value for unit in UNITS for key, value in compiled_for(unit, architectures).items()}
    rows, named = [], set()
    for run, seen in executed_kernels():
        named.add(run["kernel"])
        for architecture in architectures:
            resources = used[run["kernel"], architecture]
            row = {"backend": "cuda"} | run | {"architecture": architecture} | resources
            row |= residency(architecture, resources["registers"], resources["shared_bytes"], THREADS)
            row["bytes_in_flight"] = bytes_in_flight(run["kernel"], row["blocks_per_multiprocessor"])
            row |= seen
            if step := re.match(r"fgd_(forward|backward)_n", run["kernel"]):
                row |= predictions(architecture, DTYPES[run["dtype"]].itemsize, PASSES[step[1]], seen)
                if sass.tool("cuobjdump") and "_wide_" not in run["kernel"]:  # whose loops the model does not know
                    code = sass.disassembled(ptx_of(f"{step[1]}_{run['layout']}", ptx_for(architecture)), architecture)
                    row |= sass_model.report(run["kernel"], code[run["kernel"]])
            rows.append(row)
    for (kernel, architecture), resources in used.items():  # compiled alone: double sums, mixed types, generic
        if kernel not in named:
            rows.append({"backend": "cuda", "kernel": kernel, "architecture": architecture} | resources)
    return rows


def triton_rows(architectures) -> list[dict]:
    """The Triton kernels that pass over the features."""
    from devtools.offline import triton_build  # needs Triton

    targets = [a[3:] for a in architectures if a[3:] in triton_build.TARGETS]
    targets += [t for t in triton_build.TARGETS if t.startswith("gfx")]
    dtypes, layouts = {"float32": "f32", "bfloat16": "bf16"}, {"contiguous": "nchw", "channels_last": "nhwc"}
    rows, seen = [], {}
    if EXECUTED_TRITON in architectures:
        kinds = itertools.product(dtypes.values(), layouts.values())
        seen = {kind: executed_triton(DTYPES[kind[0]], LAYOUTS[kind[1]]) for kind in kinds}
    for found in triton_build.report(targets, [*dtypes], [*layouts], channels=256, every_kernel=False):
        nvidia = not found["target"].startswith("gfx")
        row = {
            "backend": "triton",
            "kernel": found["kernel"],
            "dtype": dtypes[found["features"]],
            "layout": layouts[found["layout"]],
            "channels": found["channels"],
            "architecture": f"sm_{found['target']}" if nvidia else found["target"],
            "registers": found["registers"],
            "spills": found["spilled"],
            "shared_bytes": found["shared"],
        }
        if nvidia:
            row |= residency(row["architecture"], row["registers"], row["shared_bytes"], 32 * found["warps"])
        if row["architecture"] == EXECUTED_TRITON:
            row |= seen[row["dtype"], row["layout"]][row["kernel"]]
        rows.append(row)
    return rows


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Of the CUDA kernels that pass over 256 channels: instructions against the budget, and predicted times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    passes = [row for row in rows if re.match(r"fgd_(forward|backward)_n", row["kernel"])]
    rows = [row for row in passes if row.get("channels") == 256]  # of those that were executed
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.5))
    kernels = sorted({row["kernel"] for row in rows})
    per_pair = {row["kernel"]: row["instructions_per_pair"] for row in rows}
    left.barh([k.removeprefix("fgd_") for k in kernels], [per_pair[k] for k in kernels])
    for budget, label in ((34, "budget forward, 16 bit"), (51, "budget backward, 16 bit")):
        left.axvline(budget, linestyle="--", color="gray")
        left.text(budget, 1.01, label, fontsize=7, ha="center", transform=left.get_xaxis_transform())
    left.set_xlabel("thread instructions per (student, teacher) element pair")
    width = 0.25
    for i, name in enumerate(DEVICES):
        key = f"{PREDICTED}: ms on {name}"
        times = {row["kernel"]: row[key] for row in rows if key in row}
        at = [k + (i - 1) * width for k in range(len(kernels))]
        right.barh(at, [times.get(k, 0) for k in kernels], height=width, label=name)
    right.set_yticks(range(len(kernels)), [k.removeprefix("fgd_") for k in kernels])
    right.set_xlabel(f"ms for five levels of an 800×1344 batch of 8:\n{PREDICTED}")
    right.legend()
    figure.tight_layout()
    figure.savefig(path)


def write(rows: list[dict], path: pathlib.Path) -> None:
    """CSV, JSON and plot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.with_suffix(".json").write_text(f"[\n{lines}\n]\n")
    plot(rows, path.with_suffix(".png"))


def main() -> None:
    """Compile, execute, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--without-triton", action="store_true")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "gpu_report.csv")
    arguments = parser.parse_args()
    rows = []
    if missing():
        print(f"gpu_report: without the CUDA kernels: {missing()}")
    else:
        rows += cuda_rows(arguments.architectures)
    if not arguments.without_triton:
        try:
            rows += triton_rows(arguments.architectures)
        except ImportError as error:
            print(f"gpu_report: without the Triton kernels: {error}")
    if not rows:
        return
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))
    write(rows, arguments.output)
    spilling = [f"{row['kernel']} on {row['architecture']}" for row in rows if row["spills"]]
    print("spills: " + (", ".join(spilling) or "none"))


if __name__ == "__main__":
    main()
