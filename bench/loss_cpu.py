"""Forward + backward of the loss on the CPU: the published loop, the reference eager and compiled, and our kernels.

    python -m bench.loss_cpu                      # everything: CSV and plot in runs/
    python -m bench.loss_cpu --peak               # peak memory instead
    python -m bench.loss_cpu --batches 4 --dtypes float32 --threads 1 2

Five levels of an 800x1344 batch (strides 8 to 128), 256 channels, 7 boxes an image. Contenders run alternately, each
round one call of each, so that a noisy neighbour meets them all; the median counts, with p20 and p80 beside it. The
streaming bound is torch.add(a, b, out=c) over the same features, scaled from its three units of traffic to the five
of a training step (read student and teacher twice, write the gradient once).

`memory` says what the allocator does with a freed gradient of 70 MB. glibc gives it back to the system, and the next
step pays for fresh, zeroed pages (`returned`, the default); with --keep-memory it is kept, as jemalloc or tcmalloc
do under PyTorch's usual advice for CPU training (`kept`).

The output file is continued: settings that are in it are not measured again.
"""

import argparse
import csv
import ctypes
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch

import fgd_kernels as fgd
from bench.loss_cpu_plot import plot
from bench.machine import description
from devtools.published import published_loss
from fgd_kernels import reference

FRAME = (800, 1344)
LEVELS = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
CHANNELS = 256
BOXES = 7
RESULTS = pathlib.Path("runs")  # what is worth keeping is copied to bench/results, with the processor in its name


def keep_freed_memory() -> None:
    """glibc: serve large blocks from the heap and never shrink it (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD)."""
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 28)):
        libc.mallopt(option, value)


class Problem:
    """One batch of features and boxes, and the contenders that compute its loss."""

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        shapes = [(batch, CHANNELS, h, w) for h, w in LEVELS]
        self.student = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
        self.teacher = [torch.randn(shape).to(dtype) for shape in shapes]
        self.out = [torch.empty_like(t) for t in self.teacher]
        corner = torch.rand(batch, BOXES, 2) * torch.tensor([FRAME[1] * 0.8, FRAME[0] * 0.8])
        size = 16 + torch.rand(batch, BOXES, 2) * torch.tensor([FRAME[1] * 0.2 - 16, FRAME[0] * 0.2 - 16])
        self.boxes = list(torch.cat([corner, corner + size], dim=2))
        self.sizes = [FRAME] * batch
        self.criterion = fgd.FGDLoss(CHANNELS, CHANNELS, len(LEVELS))
        self.compiled = torch.compile(self._reference, dynamic=False)

    def bound(self) -> float:
        """Seconds of torch.add over the features, scaled to the step's five units of traffic."""
        start = time.perf_counter()
        with torch.no_grad():
            for s, t, out in zip(self.student, self.teacher, self.out, strict=True):
                torch.add(s, t, out=out)
        return (time.perf_counter() - start) * 5 / 3

    def step(self, contender: str) -> float:
        """Seconds of one forward + backward."""
        call = {
            "ours": self._ours,
            "reference": self._reference,
            "compiled": self.compiled,
            "published": self._published,
        }
        for tensor in (*self.student, *self.criterion.parameters()):
            tensor.grad = None
        start = time.perf_counter()
        call[contender]().backward()
        return time.perf_counter() - start

    def _ours(self) -> torch.Tensor:
        return sum(self.criterion(self.student, self.teacher, self.boxes, self.sizes).values())

    def _reference(self) -> torch.Tensor:
        c = self.criterion
        packed = fgd.pack_boxes(self.boxes, self.sizes, "cpu")
        gc_block = [p for level in c.levels for p in level.gc_block()]
        weights = [c.alpha, c.beta, c.gamma, c.lambda_] * len(LEVELS)
        t = c.temperature
        return reference.pyramid_terms(self.student, self.teacher, *packed, gc_block, weights, t, t).sum()

    def _published(self) -> torch.Tensor:
        c = self.criterion
        weights = (c.alpha, c.beta, c.gamma, c.lambda_)
        levels = zip(self.student, self.teacher, c.levels, strict=True)
        # Its GcBlock multiplies features and parameters of one dtype.
        return sum(
            published_loss(
                s, t, self.boxes, self.sizes, [p.to(s.dtype) for p in level.gc_block()], weights, c.temperature
            )
            for s, t, level in levels
        ).float()


def measure(batch: int, dtype: str, threads: int, contenders: list[str], seconds: float) -> list[dict]:
    """Alternate the contenders for about `seconds`; at least 5 rounds of each, slow ones at least 3."""
    torch.set_num_threads(threads)
    problem = Problem(batch, getattr(torch, dtype))
    times: dict[str, list[float]] = {name: [] for name in ("bound", *contenders)}
    problem.bound()
    first = {name: problem.step(name) for name in contenders}  # warm up, compile
    first |= {name: problem.step(name) for name in contenders if first[name] < 1 or name == "compiled"}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times["bound"]) < 5:
        times["bound"].append(problem.bound())
        for name in contenders:
            if len(times[name]) < 3 or first[name] < seconds / 10:
                times[name].append(problem.step(name))
    rows = []
    bound = statistics.median(times["bound"])
    for name, values in times.items():
        p20, median, p80 = (torch.quantile(torch.tensor(values), q).item() * 1e3 for q in (0.2, 0.5, 0.8))
        rows.append(
            {
                "contender": name,
                "batch": batch,
                "dtype": dtype,
                "threads": threads,
                "median_ms": round(median, 2),
                "p20_ms": round(p20, 2),
                "p80_ms": round(p80, 2),
                "runs": len(values),
                "of_bound": round(bound * 1e3 / median, 3),
            }
        )
    return rows


def peak_memory(batch: int, dtype: str, contender: str) -> dict:
    """What one step needs above its inputs and gradients: the growth of a fresh process's peak resident set."""
    code = f"""
import torch
from bench import loss_cpu
def peak():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
torch.set_num_threads(1)
problem = loss_cpu.Problem({batch}, torch.{dtype})
problem.step({contender!r})                     # loads and compiles code, makes the gradients
problem.out = None
for tensor in problem.student:                  # the next gradients find these pages free
    tensor.grad = None
gradients = [torch.zeros_like(t) for t in problem.teacher]
open('/proc/self/clear_refs', 'w').write('5')   # the peak begins anew, at what is resident now
before = peak()
del gradients
problem.step({contender!r})
print(peak() - before)
"""
    # glibc then maps every large block by itself, and nothing that was freed hides what the step takes.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    mib = int(out.split()[-1]) / 1024
    largest = batch * CHANNELS * LEVELS[0][0] * LEVELS[0][1] * getattr(torch, dtype).itemsize / 2**20
    row = {"contender": contender, "batch": batch, "dtype": dtype, "peak_mib": round(mib, 1)}
    return row | {"of_largest_map": round(mib / largest, 3)}


def main() -> None:
    """Measure, print, and write CSV and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--contenders", nargs="+", default=["published", "reference", "compiled", "ours"])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each setting")
    parser.add_argument("--keep-memory", action="store_true", help="the allocator keeps what is freed")
    parser.add_argument("--peak", action="store_true", help="peak memory instead of time (Linux)")
    parser.add_argument("--output", type=pathlib.Path, help="CSV; default in runs")
    arguments = parser.parse_args()
    if arguments.keep_memory:
        keep_freed_memory()
    output = arguments.output or RESULTS / ("loss_cpu_peak.csv" if arguments.peak else "loss_cpu.csv")
    rows = read(output)
    done = {(row["batch"], row["dtype"], row.get("threads", "1")) for row in rows}
    threads = [1] if arguments.peak else arguments.threads
    for setting in itertools.product(arguments.batches, arguments.dtypes, threads):
        if tuple(map(str, setting)) in done:
            continue
        if arguments.peak:
            new = [peak_memory(*setting[:2], name) for name in arguments.contenders]
        else:
            memory = "kept" if arguments.keep_memory else "returned"
            new = [row | {"memory": memory} for row in measure(*setting, arguments.contenders, arguments.seconds)]
        for row in new:
            print(json.dumps(row), flush=True)
            rows.append({key: str(value) for key, value in row.items()} | description())
        write(rows, output)
    if not arguments.peak:
        plot(output, output.with_suffix(".png"))
    print(f"wrote {output}")


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of an earlier run, which this one continues; those of another machine or version are an error."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    other = [key for row in rows for key, value in description().items() if row[key] != value]
    if other:
        raise SystemExit(f"{path} has rows of another {other[0]}: move it away, or name another --output")
    return rows


def write(rows: list[dict[str, str]], path: pathlib.Path) -> None:
    """All rows so far: a run that is cut short keeps what it measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
