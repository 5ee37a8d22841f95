"""Forward + backward of the loss on a CUDA GPU: the published loop, the reference eager and compiled, and our kernels.

    python -m bench.loss_gpu                      # everything: CSV in bench/results/loss_gpu.csv
    python -m bench.loss_gpu --batches 2 8 --dtypes bfloat16 --contenders ours compiled
    python -m bench.loss_gpu --steps 1 --contenders ours      # takes steps and measures nothing, for a profiler

Five levels of an 800x1344 batch (strides 8 to 128), 256 channels, 7 boxes an image. Times are medians of CUDA events
around one step; before each, a buffer larger than the second-level cache is read, so that features come from memory and
no line is left to be written back. Contenders run alternately, and with them, as contender `copy`, Tensor.copy_ of as
many bytes as a step moves at least: five units of traffic (student and teacher read twice, the gradient written once).
`gb_s` is those bytes over the time, `of_copy` the copy's time over the contender's. `ours_graph` and `triton_graph` are
steps replayed as a CUDA graph, without the host; `ours_small` and `triton_small` the same for maps of a few pixels:
what the launches and their small sums cost. `peak_mib` is torch.cuda.max_memory_allocated above inputs and gradients.
Rows are written as they come. Without a GPU it says so and ends.
"""

import argparse
import csv
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence

import torch

import fgd_kernels as fgd
from bench.loss_cpu import BOXES, CHANNELS, FRAME, LEVELS, RESULTS
from bench.machine import description
from devtools.published import published_loss
from fgd_kernels import reference

CONTENDERS = ("published", "reference", "compiled", "triton", "ours")
BACKENDS = {"ours": "cuda", "triton": "triton"}
SMALL = ((4, 4), (3, 3), (2, 2), (2, 2), (1, 1))  # maps that cost next to nothing
UNITS = 5  # of N·C·H·W elements, that a step moves at least


class Problem:
    """One batch of features and boxes on the GPU, and the contenders that compute its loss."""

    def __init__(self, batch: int, dtype: torch.dtype, levels: Sequence[tuple[int, int]] = LEVELS) -> None:
        torch.manual_seed(0)
        torch.compiler.reset()  # or the ninth problem would find the limit of recompilations reached, and run eagerly
        shapes = [(batch, CHANNELS, h, w) for h, w in levels]
        self.student = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]
        self.teacher = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
        corner = torch.rand(batch, BOXES, 2) * torch.tensor([FRAME[1] * 0.8, FRAME[0] * 0.8])
        size = 16 + torch.rand(batch, BOXES, 2) * torch.tensor([FRAME[1] * 0.2 - 16, FRAME[0] * 0.2 - 16])
        self.boxes = [box.cuda() for box in torch.cat([corner, corner + size], dim=2)]
        self.sizes = [FRAME] * batch
        self.packed = fgd.pack_boxes(self.boxes, self.sizes, self.boxes[0].device)
        self.criterion = fgd.FGDLoss(CHANNELS, CHANNELS, len(levels)).cuda()
        self.compiled = torch.compile(self._reference, dynamic=False)
        self.bytes = UNITS * sum(s.numel() * s.element_size() for s in self.student)

    def loss(self, contender: str) -> torch.Tensor:
        """The loss as one contender computes it."""
        if contender in BACKENDS:
            self.criterion.backend = BACKENDS[contender]
            return sum(self.criterion(self.student, self.teacher, self.packed).values())
        return {"reference": self._reference, "compiled": self.compiled, "published": self._published}[contender]()

    def step(self, contender: str) -> None:
        """One forward + backward."""
        for tensor in (*self.student, *self.criterion.parameters()):
            tensor.grad = None
        self.loss(contender).backward()

    def graph(self, contender: str) -> torch.cuda.CUDAGraph:
        """A step of ours, captured; the replays write the gradients of the capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(contender)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for tensor in (*self.student, *self.criterion.parameters()):
            tensor.grad = None
        with torch.cuda.graph(graph):
            self.loss(contender).backward()
        return graph

    def _reference(self) -> torch.Tensor:
        c = self.criterion
        gc_block = [p for level in c.levels for p in level.gc_block()]
        weights = [c.alpha, c.beta, c.gamma, c.lambda_] * len(LEVELS)
        t = c.temperature
        return reference.pyramid_terms(self.student, self.teacher, *self.packed, gc_block, weights, t, t).sum()

    def _published(self) -> torch.Tensor:
        c = self.criterion
        weights = (c.alpha, c.beta, c.gamma, c.lambda_)
        losses = []
        with torch.device("cuda"):  # it makes its masks on the default device
            for s, t, level in zip(self.student, self.teacher, c.levels, strict=True):
                gc_block = [p.to(s.dtype) for p in level.gc_block()]
                losses.append(published_loss(s, t, self.boxes, self.sizes, gc_block, weights, c.temperature).float())
        return sum(losses)


class Device:
    """The GPU: a way to empty its cache, and a clock."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.name = properties.name
        self.flush = torch.ones(max(properties.L2_cache_size, 32 << 20), dtype=torch.float32, device="cuda")
        self.read = torch.empty((), dtype=torch.float32, device="cuda")

    def time(self, call) -> float:
        """Seconds of one call on the device, with a cold and clean cache."""
        torch.sum(self.flush, dim=0, out=self.read)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(20_000_000)  # some 10 ms, in which the host runs ahead: launches do not count
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def peak_memory(problem: Problem, contender: str) -> float:
    """MiB that one step holds at its peak above inputs and gradients."""
    problem.step(contender)  # warms up, and compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    problem.step(contender)
    return round((torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / 2**20, 1)


def peaks_of(problem: Problem, contenders: list[str]) -> dict[str, float]:
    """Of those contenders that find enough memory on this device; the others are named and left out."""
    peaks = {}
    for name in contenders:
        try:
            peaks[name] = peak_memory(problem, name)
        except torch.OutOfMemoryError as error:
            print(f"loss_gpu: {name} left out: {str(error).splitlines()[0]}", file=sys.stderr)
        torch.cuda.empty_cache()
    return peaks


def measure(device: Device, batch: int, dtype: str, contenders: list[str], rounds: int) -> list[dict]:
    """Alternate the contenders; one row each."""
    problem = Problem(batch, getattr(torch, dtype))
    peaks = peaks_of(problem, contenders)
    calls = {name: lambda name=name: problem.step(name) for name in peaks}
    for name in peaks.keys() & BACKENDS.keys():
        calls[f"{name}_graph"] = problem.graph(name).replay
        calls[f"{name}_small"] = Problem(batch, getattr(torch, dtype), SMALL).graph(name).replay
    source = torch.ones(problem.bytes // 8, dtype=torch.float32, device="cuda")  # read once and written once
    target = torch.empty_like(source)
    calls["copy"] = lambda: target.copy_(source)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(device.time(call))
    copy = statistics.median(times["copy"])
    rows = []
    for name, seconds in times.items():
        p20, median, p80 = (torch.quantile(torch.tensor(seconds), q).item() for q in (0.2, 0.5, 0.8))
        small = name.endswith("_small")
        row = {"contender": name, "batch": batch, "dtype": dtype}
        row |= {"median_ms": round(median * 1e3, 3), "p20_ms": round(p20 * 1e3, 3), "p80_ms": round(p80 * 1e3, 3)}
        row |= {"runs": len(seconds), "gb_s": "" if small else round(problem.bytes / median / 1e9, 1)}
        row |= {"of_copy": "" if small else round(copy / median, 3), "peak_mib": peaks.get(name, "")}
        rows.append(row | {"device": device.name})
    return rows


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Milliseconds of a step over the batch size, one panel a dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = pyplot.subplots(1, len(dtypes), figsize=(5 * len(dtypes), 4), sharey=True, squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for name in dict.fromkeys(row["contender"] for row in rows):
            mine = [row for row in rows if row["dtype"] == dtype and row["contender"] == name]
            axis.plot([row["batch"] for row in mine], [row["median_ms"] for row in mine], marker="o", label=name)
        axis.set(title=dtype, xlabel="images in the batch", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms, forward + backward")
    axes[0][-1].legend()
    figure.suptitle(f"FGD loss, five levels of 800x1344, 256 channels, cold cache: {rows[0]['device']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Measure, print, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 16, 32])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, help="take so many steps of each contender, and measure nothing")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "loss_gpu.csv")
    arguments = parser.parse_args()
    status = fgd.backends()
    if not torch.cuda.is_available():
        print("loss_gpu: nothing measured, torch.cuda.is_available() is False")
        return
    missing = {name: status[backend] for name, backend in BACKENDS.items()}
    for name, why in missing.items():
        if name in arguments.contenders and not why.available:
            print(f"loss_gpu: without {name!r}: {why.reason}")
    contenders = [name for name in arguments.contenders if name not in missing or missing[name].available]
    if not contenders:
        print("loss_gpu: nothing measured, no contender is left")
        return
    problems = [(batch, dtype) for batch in arguments.batches for dtype in arguments.dtypes]
    if arguments.steps is not None:
        for batch, dtype in problems:
            take_steps(Problem(batch, getattr(torch, dtype)), contenders, arguments.steps)
        return
    device, rows = Device(), []
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for batch, dtype in problems:
        for row in measure(device, batch, dtype, contenders, arguments.rounds):
            rows.append(row | description())
            print(json.dumps(rows[-1]), flush=True)
        with open(arguments.output, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        plot([row for row in rows if not row["contender"].endswith("_small")], arguments.output.with_suffix(".png"))


def take_steps(problem: Problem, contenders: list[str], steps: int) -> None:
    """For a profiler."""
    for name in contenders:
        for _ in range(steps):
            problem.step(name)
    torch.cuda.synchronize()
    print(f"loss_gpu: {steps} steps of {', '.join(contenders)}")


if __name__ == "__main__":
    main()
