"""What every benchmark writes beside its figures: the machine, the versions, the settings."""

import os
import pathlib
import platform

import torch

import fgd_kernels as fgd


def processor() -> str:
    """The CPU's model name."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def description() -> dict[str, str]:
    """Columns that go into each row of a results file."""
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "fgd_kernels": fgd.__version__,
    }
