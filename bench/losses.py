"""Forward + backward of each loss on feature maps beside FGD's, on the CPU: processor time, in turn, and peak memory.

    python -m bench.losses                        # all losses, CSV in runs/losses.csv
    python -m bench.losses --levels 1 --names fgd fgd_non_local fgd_none --rounds 3
    python -m bench.losses --names fgd_maps       # with the foreground as maps in place of boxes

Levels of an 800x1344 batch of 2 (strides 8 to 128), 256 channels, 7 boxes an image, float32, one thread. In each
round every loss runs once; `ratio` is the median over the rounds of its time divided by FGD's in the same round. Memory
is the growth of a fresh process's peak resident set over one step, gradients of features and parameters included.
"""

import argparse
import csv
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch

import fgd_kernels as fgd
from bench.loss_cpu import CHANNELS, FRAME, LEVELS
from bench.machine import description
from fgd_distill.criteria import CRITERIA, criterion_class

BATCH, BOXES = 2, 7
NAMES = ("fgd", "fgd_maps", "fgd_none", "fgd_non_local", *CRITERIA)


class WithMaps(fgd.FGDLoss):
    """FGD, called with boxes, that takes maps in their place."""

    def __init__(self, *args: int, maps: list[torch.Tensor]) -> None:
        super().__init__(*args)
        self.maps = maps

    def forward(self, student, teacher, boxes, sizes):
        return super().forward(student, teacher, foreground=self.maps)


class Problem:
    """One batch of features and boxes."""

    def __init__(self, levels: int) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        shapes = [(BATCH, CHANNELS, h, w) for h, w in LEVELS[:levels]]
        self.student = [torch.randn(shape).requires_grad_() for shape in shapes]
        self.teacher = [torch.randn(shape) for shape in shapes]
        height, width = FRAME
        corner = torch.rand(BATCH, BOXES, 2) * torch.tensor([width * 0.6, height * 0.6])
        size = torch.exp(torch.rand(BATCH, BOXES, 2) * 3 + 3)
        self.boxes = list(torch.cat([corner, corner + size], dim=2))
        packed = fgd.pack_boxes(self.boxes, [FRAME] * BATCH, "cpu")
        self.maps = [fgd.reference.foreground_mask(*packed, *shape[2:]) for shape in shapes]
        self.levels = levels

    def criterion(self, name: str) -> torch.nn.Module:
        """The loss with its own parameters, for as many channels of student and teacher."""
        if name in CRITERIA:
            return criterion_class(name)(CHANNELS, CHANNELS, self.levels)
        if name == "fgd_maps":
            return WithMaps(CHANNELS, CHANNELS, self.levels, maps=self.maps)
        return fgd.FGDLoss(CHANNELS, CHANNELS, self.levels, relation=name.removeprefix("fgd").lstrip("_") or "gc")

    def step(self, criterion: torch.nn.Module) -> float:
        """Processor seconds of one forward + backward: what else the machine does counts less."""
        for tensor in (*self.student, *criterion.parameters()):
            tensor.grad = None
        start = time.process_time()
        losses = criterion(self.student, self.teacher, self.boxes, [FRAME] * BATCH)
        torch.stack(list(losses.values())).sum().backward()
        return time.process_time() - start


def peak_mib(levels: int, name: str) -> float:
    """The growth of a fresh process's peak over one step."""
    code = f"""
from bench.losses import Problem
def peak():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
problem = Problem({levels})
criterion = problem.criterion({name!r})
open('/proc/self/clear_refs', 'w').write('5')   # the peak begins anew, at what is resident now
before = peak()
problem.step(criterion)
print(peak() - before)
"""
    # glibc then maps every large block by itself, and nothing that was freed hides what the step takes.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return int(out.split()[-1]) / 1024


def main() -> None:
    """Measure, print, and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=list(NAMES), choices=NAMES, help="fgd is always among them")
    parser.add_argument("--levels", type=int, default=len(LEVELS), choices=range(1, len(LEVELS) + 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/losses.csv"))
    arguments = parser.parse_args()
    names = list(dict.fromkeys(["fgd", *arguments.names]))
    problem = Problem(arguments.levels)
    criteria = {name: problem.criterion(name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for criterion in criteria.values():
        problem.step(criterion)
    for _ in range(arguments.rounds):
        for name, criterion in criteria.items():
            seconds[name].append(problem.step(criterion))
    rows = []
    for name in names:
        ratios = [own / ours for own, ours in zip(seconds[name], seconds["fgd"], strict=True)]
        row = {
            "loss": name,
            "levels": arguments.levels,
            "median_ms": f"{1e3 * statistics.median(seconds[name]):.1f}",
            "ratio": f"{statistics.median(ratios):.2f}",
            "peak_mib": f"{peak_mib(arguments.levels, name):.0f}",
            "parameters": sum(parameter.numel() for parameter in criteria[name].parameters()),
            "rounds": arguments.rounds,
        }
        print(*row.values(), sep="\t", flush=True)
        rows.append(row | description())
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
