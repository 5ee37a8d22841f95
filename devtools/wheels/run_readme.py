"""Run the README's ten lines on what is installed, far from the source tree, and check what comes out.

    python devtools/wheels/run_readme.py [--native] [README.md]

--native: without the compiled kernels it fails. It imports nothing of this repository but the installed package, and is
what the tests of releases run in an environment that holds nothing but torch and a wheel (tests/install,
.github/workflows/wheels.yml).
"""

import argparse
import importlib.metadata
import importlib.util
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readme", nargs="?", type=pathlib.Path, default=ROOT / "README.md")
    parser.add_argument("--native", action="store_true")
    arguments = parser.parse_args()
    blocks = re.findall(r"```python\n(.*?)```", arguments.readme.read_text(encoding="utf-8"), re.S)
    told: dict = {}
    exec(next(block for block in blocks if "fgd.FGDLoss" in block), told)
    fgd, losses = told["fgd"], told["losses"]
    found = pathlib.Path(fgd.__file__).resolve().parent
    assert found != ROOT / "fgd_kernels", f"the source tree's, not what is installed: {found}"
    for line in importlib.metadata.requires("fgd_kernels") or []:
        assert "extra ==" in line or importlib.metadata.version(re.match(r"[\w-]+", line)[0]), line
    assert set(losses) == set(fgd.LOSS_NAMES) and all(value.isfinite() for value in losses.values()), losses
    assert all(student.grad.abs().sum() > 0 for student in told["student"])
    assert all(teacher.grad is None for teacher in told["teacher"])
    cpu = fgd.backends()["cpu"]
    if arguments.native and not cpu.available:
        sys.exit(f"no compiled kernels: {cpu.reason}")
    version = importlib.metadata.version("fgd_kernels")
    assert version.partition("+")[0] == fgd.__version__, (version, fgd.__version__)
    torch = told["torch"]
    print(f"fgd_kernels {version}, torch {torch.__version__}: loss {sum(losses.values()).item():.6g}", end="; ")
    print(f"cpu {'available' if cpu.available else cpu.reason}; cuda: {fgd.backends()['cuda'].reason or 'available'}")


if __name__ == "__main__":
    main()
