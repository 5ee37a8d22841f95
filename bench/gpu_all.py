"""All that needs an NVIDIA GPU, in one command: builds the CUDA kernels, tests them, watches them, measures them.

    python3 bench/gpu_all.py                                  every part, into bench/results/<the device's name>/
    python3 bench/gpu_all.py build tests-cuda --minutes 9     some parts; none is begun that would end later
    python3 bench/gpu_all.py --archive gpu.tar.gz             the results in one file as well, after each part
    python3 bench/gpu_all.py --rehearse                       without a GPU: up to the first call of the device

It takes the Python that runs it as it is, with torch and its triton, pytest, hypothesis, numpy, matplotlib, cmake,
ninja and an nvcc; no network, no virtual environment, nothing of the detector side. Parts, and the minutes that each
may take:

{parts}

A part that fails or runs out of time does not stop the others; the exit status says whether one did. What a part prints
is in <part>.txt, how all ended in summary.md; both are written as they come, so that a machine that goes away has lost
one part at most. Without a GPU, and without --rehearse, it says so and ends.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__" and not __package__:  # as a file: again as a module, which finds devtools and fgd_kernels
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "bench.gpu_all", *sys.argv[1:]])

from devtools.offline.kernel_names import KERNELS  # noqa: E402

GPU_TESTS = "tests/kernels/cuda/test_gpu.py"
PYTEST = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", GPU_TESTS]
# What the tools watch: our kernels. initcheck has to see who wrote what these read, PyTorch's kernels among them.
OURS = [argument for name in KERNELS for argument in ("--kernel-name", f"kernel_substring={name}")]
BIG_KERNELS = "fgd_(forward|backward)_(nchw|nhwc|generic)"
PEERS = ["ours", "published", "reference", "compiled"]
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "SchedulerStats", "LaunchStats", "Occupancy")


@dataclass(frozen=True)
class Part:
    """One command.

    Args:
        about: a line for the help.
        arguments: of Python; ``{folder}`` in them is the folder of the results.
        minutes: after which it is ended.
        under: a program that runs Python, with its options.
        environment: added to the environment.
        rehearsed: arguments that take the part as far as it goes without a GPU.
    """

    about: str
    arguments: list[str]
    minutes: float
    under: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    rehearsed: list[str] = field(default_factory=list)


def _tests(about: str, chosen: str, minutes: float, **options) -> Part:
    arguments = [*PYTEST, "-k", chosen]
    return Part(about, arguments, minutes, rehearsed=[*arguments, "--collect-only", "-q"], **options)


def _sanitizer(tool: str, options: list[str]) -> Part:
    # Without PyTorch's cache of blocks, an access beyond a tensor leaves its allocation.
    return _tests(
        f"compute-sanitizer's {tool} over every kernel of both backends",
        "test_sanitizer",
        8.5,
        under=["compute-sanitizer", "--error-exitcode", "1", "--tool", tool, *options],
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def _benchmark(about: str, name: str, contenders: list[str], *options: str) -> Part:
    command = ["-m", "bench.loss_gpu", "--contenders", *contenders, *options]
    output = ["--output", f"{{folder}}/{name}.csv"]
    return Part(about, [*command, *output], 8.5, rehearsed=[*command, *output])


PARTS = {
    "build": Part(
        "the CUDA kernels, in place, for this device's architecture (TORCH_CUDA_ARCH_LIST for others)",
        ["setup.py", "build_ext", "--inplace"],
        8.5,
        environment={"FGD_FORCE_CUDA": "1"},
        rehearsed=["setup.py", "--version"],
    ),
    "tests-cuda": _tests("tests marked gpu, of the CUDA C++ kernels", "not triton and not test_sanitizer", 8.5),
    "tests-triton": _tests("the same of the Triton kernels", "triton and not test_sanitizer", 8.5),
    "benchmark-ours": _benchmark("ms, bandwidth, memory of both backends", "loss_gpu", ["ours", "triton"]),
    "benchmark-peers": _benchmark("beside other people's code", "loss_gpu_peers", PEERS, "--batches", "2", "8"),
    "profile": Part(
        "Nsight Compute over one step of ours, bfloat16, 8 images: both big kernels' memory and stalls",
        ["-m", "bench.loss_gpu", "--steps", "1", "--batches", "8", "--dtypes", "bfloat16", "--contenders", "ours"],
        6,
        under=[
            *[
                "ncu",
                "--target-processes",
                "all",
                "--kernel-name",
                "regex:fgd_(forward|backward)",
                "--launch-count",
                "4",
            ],
            *(argument for section in SECTIONS for argument in ("--section", section)),
        ],
        rehearsed=["-m", "bench.loss_gpu", "--steps", "1"],
    ),
    "sanitizer-memcheck": _sanitizer("memcheck", OURS),
    "sanitizer-racecheck": _sanitizer("racecheck", OURS),
    "sanitizer-synccheck": _sanitizer("synccheck", OURS),
    "sanitizer-initcheck": _sanitizer("initcheck", []),
}


@dataclass
class Outcome:
    """How a part ended."""

    part: str
    status: str
    seconds: float
    last_line: str

    @property
    def good(self) -> bool:
        return self.status == "ok"

    @property
    def row(self) -> str:
        """Of the table in summary.md."""
        return f"| {self.part} | {self.status} | {self.seconds:.0f} | {self.last_line.replace('|', '/')[:160]} |"


def run(name: str, folder: pathlib.Path, seconds: float, rehearse: bool) -> Outcome:
    """Runs a part for so many seconds at most. What it prints goes to the screen and to a file, line by line."""
    part = PARTS[name]
    python = [argument.format(folder=folder) for argument in (part.rehearsed if rehearse else part.arguments)]
    command = [*([] if rehearse else part.under), sys.executable, *python]
    print(f"gpu_all: {name}: {' '.join(command)}", flush=True)
    if shutil.which(command[0]) is None:
        return Outcome(name, f"{command[0]} is not on PATH", 0.0, "")
    started, last, late = time.monotonic(), "", threading.Event()
    with open(folder / f"{name}.txt", "w") as file:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | part.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that what it starts ends with it
        )

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        watch = threading.Timer(seconds, end)
        watch.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
            last = line.strip() or last
        process.wait()
        watch.cancel()
    status = "ok" if process.returncode == 0 else f"exit status {process.returncode}"
    return Outcome(name, f"ended after {seconds:.0f} s" if late.is_set() else status, time.monotonic() - started, last)


def write_summary(folder: pathlib.Path, outcomes: list[Outcome], archive: pathlib.Path | None) -> None:
    """The table of all parts that ran in this folder, in this call and in earlier ones; and the archive."""
    path = folder / "summary.md"
    head = ["| part | outcome | seconds | its last line |", "|---|---|---|---|"]
    kept = path.read_text().splitlines()[len(head) :] if path.exists() else []
    now = {
        o.part: f"| {o.part} | {o.status} | {o.seconds:.0f} | {o.last_line.replace('|', '/')[:160]} |" for o in outcomes
    }
    lines = [line for line in kept if line.split("|")[1].strip() not in now]
    path.write_text("\n".join([*head, *lines, *now.values()]) + "\n")
    if archive is not None:
        fresh = archive.with_name(archive.name + ".new")
        with tarfile.open(fresh, "w:gz") as packed:
            packed.add(folder, folder.name)
        fresh.replace(archive)


def device_name(rehearse: bool) -> str | None:
    """Of the GPU, fit for a folder; None if there is none."""
    import torch

    if torch.cuda.is_available():
        return re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()).strip("_")
    return "rehearsal" if rehearse else None


def build_for_this_gpu() -> None:
    """Has every part compile for this GPU alone, unless TORCH_CUDA_ARCH_LIST says otherwise."""
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(0)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")


def device_lines() -> str:
    import torch

    properties = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else "no GPU"
    return f"{properties}\ntorch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    width = max(map(len, PARTS))
    listed = "\n".join(f"    {name:<{width}}  {part.minutes:>3} min  {part.about}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="gpu_all.py",
        description=str(__doc__).format(parts=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="part", help="default: all, in the order above")
    parser.add_argument("--minutes", type=float, help="of this call; parts that would not fit are named at its end")
    parser.add_argument("--output", type=pathlib.Path, help="folder; default: bench/results/<the device's name>")
    parser.add_argument("--archive", type=pathlib.Path, help="the folder as a .tar.gz file, written after each part")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: what each part can do without one")
    parsed = parser.parse_args(arguments)
    if unknown := [part for part in parsed.parts if part not in PARTS]:
        parser.error(f"parts: expected some of {', '.join(PARTS)}, got {unknown[0]!r}")
    return parsed


def main() -> int:
    """Run the parts; 1 if one failed."""
    arguments = parse()
    device = device_name(arguments.rehearse)
    if device is None:
        print("gpu_all: nothing done, needs a GPU, and torch.cuda.is_available() is False")
        return 0
    build_for_this_gpu()
    folder = (arguments.output or ROOT / "bench" / "results" / device).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    archive = arguments.archive.resolve() if arguments.archive else None
    (folder / "device.txt").write_text(device_lines())
    end = time.monotonic() + 60 * (arguments.minutes or float("inf"))
    outcomes: list[Outcome] = []
    left = [name for name in PARTS if name in (arguments.parts or PARTS)]
    while left:
        limit = min(60 * PARTS[left[0]].minutes, end - time.monotonic())
        # A part that took its whole time is worth having cut short; one with a minute left is not begun.
        if limit < 60:
            break
        outcomes.append(run(left.pop(0), folder, limit, arguments.rehearse))
        write_summary(folder, outcomes, archive)
        print(f"gpu_all: {outcomes[-1].part}: {outcomes[-1].status}, {outcomes[-1].seconds:.0f} s", flush=True)
    failed = [outcome.part for outcome in outcomes if not outcome.good]
    print(f"gpu_all: results in {folder}; failed: {', '.join(failed) or 'nothing'}")
    if left:
        print(f"gpu_all: no time was left for: {' '.join(left)}")
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
