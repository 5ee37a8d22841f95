"""Everything that needs an NVIDIA GPU, in one command: builds the CUDA kernels, then tests, sanitizer and benchmark.

    python -m bench.gpu_all                         all steps, into bench/results/<the device's name>/
    python -m bench.gpu_all tests benchmark         some of them
    python -m bench.gpu_all --output /tmp/results

A step that fails does not stop the others; the exit status says whether one did. Each leaves what it said in a file.

    build       pip install -e . with FGD_FORCE_CUDA=1; TORCH_CUDA_ARCH_LIST is honoured and makes it shorter
    tests       tests marked gpu: CUDA C++ and Triton
    sanitizer   compute-sanitizer's memcheck, racecheck, initcheck and synccheck over tests/kernels/cuda -k sanitizer
    benchmark   bench/loss_gpu.py: loss_gpu.csv and loss_gpu.png

Without a GPU it says so and ends.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import torch

from devtools.offline.kernel_names import KERNELS

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = ("build", "tests", "sanitizer", "benchmark")
PYTEST = [sys.executable, "-m", "pytest", "-m", "gpu"]
# What the tools watch: our kernels. initcheck has to see who wrote what these read, PyTorch's kernels among them.
OURS = [argument for name in KERNELS for argument in ("--kernel-name", f"kernel_substring={name}")]
TOOLS = {"memcheck": OURS, "racecheck": OURS, "synccheck": OURS, "initcheck": []}


def commands(step: str, folder: pathlib.Path) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """(name, command, additions to the environment) of a step."""
    if step == "build":
        install = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
        yield "build", [sys.executable, *install], {"FGD_FORCE_CUDA": "1"}
    elif step == "tests":
        yield "tests", [*PYTEST, f"--junitxml={folder / 'tests.xml'}"], {}
    elif step == "sanitizer":
        for tool, options in TOOLS.items():
            watched = ["compute-sanitizer", "--error-exitcode", "1", "--tool", tool, *options]
            # Without PyTorch's cache of blocks, an access beyond a tensor leaves its allocation.
            yield (
                tool,
                [*watched, *PYTEST, "tests/kernels/cuda", "-k", "sanitizer"],
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
    else:
        yield step, [sys.executable, "-m", "bench.loss_gpu", "--output", str(folder / "loss_gpu.csv")], {}


def run(name: str, command: list[str], environment: dict[str, str], folder: pathlib.Path) -> bool:
    """Whether it worked. What it says goes to the screen and to a file."""
    print(f"gpu_all: {name}: {' '.join(command)}", flush=True)
    if shutil.which(command[0]) is None:
        print(f"gpu_all: {name}: {command[0]} is not on PATH", flush=True)
        return False
    with open(folder / f"{name}.txt", "w") as file:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
        with subprocess.Popen(command, env=os.environ | environment, **options) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
    return process.returncode == 0


def main() -> int:
    """Run the steps; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; default: all")
    parser.add_argument("--output", type=pathlib.Path, help="default: bench/results/<the device's name>")
    arguments = parser.parse_args()
    if unknown := [step for step in arguments.steps if step not in STEPS]:
        parser.error(f"steps: expected some of {', '.join(STEPS)}, got {unknown[0]!r}")
    if not torch.cuda.is_available():
        print("gpu_all: nothing done, needs a GPU, and torch.cuda.is_available() is False")
        return 0
    device = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()).strip("_")
    folder = arguments.output or ROOT / "bench" / "results" / device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "device.txt").write_text(f"{torch.cuda.get_device_properties(0)}\ntorch {torch.__version__}\n")
    failed = [
        name
        for step in STEPS
        if step in (arguments.steps or STEPS)
        for name, command, environment in commands(step, folder.resolve())
        if not run(name, command, environment, folder)
    ]
    print(f"gpu_all: results in {folder}; failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
