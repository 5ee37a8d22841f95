"""Forward + backward of the loss on a CUDA GPU: the published loop, the reference eager and compiled, and our kernels.

    python -m bench.loss_gpu                      # everything: CSV in bench/results/loss_gpu.csv
    python -m bench.loss_gpu --batches 2 8 --dtypes bfloat16 --contenders ours compiled

Five levels of an 800x1344 batch (strides 8 to 128), 256 channels, 7 boxes an image. Times are medians of CUDA events
around one step; before each, a buffer larger than the second-level cache is overwritten, so that features come from
memory. Contenders run alternately. `gb_s` is the five units of traffic that a step needs at least (student and teacher
read twice, the gradient written once) over the time, `of_copy` that over what Tensor.copy_ reaches on the same device.
`peak_mib` is torch.cuda.max_memory_allocated above inputs and gradients. Without a GPU it says so and ends.
"""

import argparse
import csv
import json
import pathlib
import statistics
import sys

import torch

import fgd_kernels as fgd
from bench.loss_cpu import BOXES, CHANNELS, FRAME, LEVELS, RESULTS
from bench.machine import description
from devtools.published import published_loss
from fgd_kernels import reference

CONTENDERS = ("published", "reference", "compiled", "triton", "ours")
UNITS = 5  # of N·C·H·W elements, that a step moves at least


class Problem:
    """One batch of features and boxes on the GPU, and the contenders that compute its loss."""

    def __init__(self, batch: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        torch.compiler.reset()  # or the ninth problem would find the limit of recompilations reached, and run eagerly
        shapes = [(batch, CHANNELS, h, w) for h, w in LEVELS]
        self.student = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]
        self.teacher = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
        corner = torch.rand(batch, BOXES, 2) * torch.tensor([FRAME[1] * 0.8, FRAME[0] * 0.8])
        size = 16 + torch.rand(batch, BOXES, 2) * torch.tensor([FRAME[1] * 0.2 - 16, FRAME[0] * 0.2 - 16])
        self.boxes = [box.cuda() for box in torch.cat([corner, corner + size], dim=2)]
        self.sizes = [FRAME] * batch
        self.packed = fgd.pack_boxes(self.boxes, self.sizes, self.boxes[0].device)
        self.criterion = fgd.FGDLoss(CHANNELS, CHANNELS, len(LEVELS)).cuda()
        self.compiled = torch.compile(self._reference, dynamic=False)
        self.bytes = UNITS * sum(s.numel() * s.element_size() for s in self.student)

    def loss(self, contender: str) -> torch.Tensor:
        """The loss as one contender computes it."""
        if contender in ("ours", "triton"):
            self.criterion.backend = "cuda" if contender == "ours" else "triton"
            return sum(self.criterion(self.student, self.teacher, self.boxes, self.sizes).values())
        return {"reference": self._reference, "compiled": self.compiled, "published": self._published}[contender]()

    def step(self, contender: str) -> None:
        """One forward + backward."""
        for tensor in (*self.student, *self.criterion.parameters()):
            tensor.grad = None
        self.loss(contender).backward()

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
    """The GPU: its copy bandwidth, a way to empty its cache, a clock."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.name = properties.name
        self.flush = torch.empty(4 * max(properties.L2_cache_size, 32 << 20), dtype=torch.uint8, device="cuda")
        source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
        target = torch.empty_like(source)
        seconds = statistics.median(self.time(lambda: target.copy_(source)) for _ in range(20))
        self.copy_bytes_per_second = 2 * source.numel() * 4 / seconds

    def time(self, call) -> float:
        """Seconds of one call on the device, with a cold cache."""
        self.flush.zero_()
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
    times = {name: [] for name in peaks}
    for _ in range(rounds):
        for name in peaks:
            times[name].append(device.time(lambda name=name: problem.step(name)))
    return [row_of(problem, device, batch, dtype, name, values, peaks[name]) for name, values in times.items()]


def row_of(problem: Problem, device: Device, batch: int, dtype: str, name: str, seconds, peak: float) -> dict:
    """A line of the CSV."""
    p20, median, p80 = (torch.quantile(torch.tensor(seconds), q).item() for q in (0.2, 0.5, 0.8))
    return {
        "contender": name,
        "batch": batch,
        "dtype": dtype,
        "median_ms": round(median * 1e3, 3),
        "p20_ms": round(p20 * 1e3, 3),
        "p80_ms": round(p80 * 1e3, 3),
        "runs": len(seconds),
        "gb_s": round(problem.bytes / median / 1e9, 1),
        "of_copy": round(problem.bytes / median / device.copy_bytes_per_second, 3),
        "peak_mib": peak,
        "device": device.name,
        "copy_gb_s": round(device.copy_bytes_per_second / 1e9, 1),
    }


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
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "loss_gpu.csv")
    arguments = parser.parse_args()
    status = fgd.backends()
    if not torch.cuda.is_available():
        print("loss_gpu: nothing measured, torch.cuda.is_available() is False")
        return
    missing = {"ours": status["cuda"], "triton": status["triton"]}
    for name, why in missing.items():
        if name in arguments.contenders and not why.available:
            print(f"loss_gpu: without {name!r}: {why.reason}")
    contenders = [name for name in arguments.contenders if name not in missing or missing[name].available]
    if not contenders:
        print("loss_gpu: nothing measured, no contender is left")
        return
    device, rows = Device(), []
    for batch in arguments.batches:
        for dtype in arguments.dtypes:
            for row in measure(device, batch, dtype, contenders, arguments.rounds):
                rows.append(row | description())
                print(json.dumps(row), flush=True)
    if not rows:
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.output, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
