"""Run the tests against other versions of what this package builds on, each set in a virtual environment of its own.

    python -m devtools.versions --torch 2.10.0                     the kernels' tests with that torch and its Triton
    python -m devtools.versions --torch 2.14.1 --with pytorch-lightning==2.6.0 --tests tests/distill/test_training.py
    python -m devtools.versions --torch 2.11.0 --native _C.so      with a library that was built before
    python -m devtools.versions --floors                           pyproject.toml's floors, all together
    python -m devtools.versions --matrix                           every row of MATRIX

A set lies in build/versions/<name>: the tracked files, the library built there against that torch, and its tests' log.
The environment takes up to 7 GB and is removed at the end unless --keep says otherwise. Each set adds or replaces its
line in build/versions/table.md; docs/reference/versions.md shows the lines that were committed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "build" / "versions"
# What a version can break: operators and torch.compile, modules, two processes, Triton's interpreter, CUDA's operator
# without a GPU; and what leans on Lightning, jsonargparse and torchvision.
KERNELS = (
    "tests/kernels/test_operator.py",
    "tests/kernels/test_modules.py",
    "tests/kernels/test_reference.py",
    "tests/kernels/test_layout.py",
    "tests/kernels/test_cpu.py",
    "tests/kernels/test_ddp.py",
    "tests/kernels/triton_backend/test_interpreted.py",
    "tests/kernels/triton_backend/test_interpreted_cases.py",
    "tests/kernels/triton_backend/test_interpreted_exact.py",
    "tests/kernels/cuda/test_cuda_operator.py",
)
DISTILL = (
    "tests/distill/test_training.py",
    "tests/distill/test_resume.py",
    "tests/distill/test_cli.py",
    "tests/distill/test_distiller.py",
)
TOOLS = ("pytest", "hypothesis", "setuptools>=77", "cmake", "ninja")
NEEDED_BY_DISTILL = ("scikit-learn", "matplotlib", "pycocotools", "tensorboard", "tqdm")
SHOWN = ("torch", "triton", "numpy", "torchvision", "pytorch-lightning", "jsonargparse")


def floors() -> dict[str, str]:
    """What pyproject.toml requires at least, for the package itself and for the detector side, by name."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project]")[2]
    return dict(re.findall(r'"([\w.\[\]-]+)>=([\d.]+)[^"]*"', text))


@dataclass(frozen=True)
class Versions:
    """A set to try.

    Args:
        torch: its version.
        python: the interpreter that makes the environment.
        others: further requirements.
        tests: what pytest runs.
        label: names the set's folder, in place of what is pinned.
    """

    torch: str
    python: str = sys.executable
    others: tuple[str, ...] = ()
    tests: tuple[str, ...] = field(default=KERNELS)
    label: str = ""

    @property
    def name(self) -> str:
        """Of its folder."""
        pinned = [re.sub(r"[^\w.]+", "-", other) for other in self.others if "==" in other]
        last = [self.label] if self.label else pinned
        return "_".join([f"torch-{self.torch}", pathlib.Path(self.python).name, *last])


FLOORS = Versions(
    f"{floors()['torch']}.0",
    python="python3.10",
    others=tuple(f"{name}=={version}" for name, version in floors().items() if name != "torch"),
    tests=(*KERNELS, *DISTILL),
    label="floors",
)
OLD_NUMPY = ("numpy==2.3.5",)  # Triton 3.6's interpreter fails with 2.4 and later
MATRIX = (
    Versions("2.10.0", others=OLD_NUMPY),
    Versions("2.11.0", others=OLD_NUMPY),
    Versions("2.12.0"),
    Versions("2.13.0"),
    Versions("2.14.1"),
    Versions("2.10.0", python="python3.10", others=("numpy==2.0.0",)),
    Versions("2.15.0", python="python3.13"),
    Versions("2.14.1", python="python3.14"),
    FLOORS,
    Versions(
        "2.14.1",
        others=("torchvision", "pytorch-lightning", "jsonargparse[signatures]", *NEEDED_BY_DISTILL),
        tests=DISTILL,
    ),
)


def copy_tracked_files(tree: pathlib.Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def attempt(versions: Versions, keep: bool, native: pathlib.Path | None = None) -> bool:
    """Install, build (or take a library that was built before), test; whether all of it passed."""
    folder = FOLDER / versions.name
    tree, environment, log = folder / "tree", folder / "environment", folder / "log.txt"
    copy_tracked_files(tree)
    python = environment / "bin" / "python"
    shell = os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "FGD_REQUIRE_NATIVE": "1"}
    shell["PYTHONPATH"] = os.pathsep.join([str(tree), str(tree / "python")])  # for processes that tests start
    shell.setdefault("FGD_NO_CUDA", "1")  # the tests compile the CUDA kernels that they run by themselves
    wanted = [f"torch=={versions.torch}", *versions.others, *TOOLS]
    if not any(other.startswith("numpy") for other in versions.others):
        wanted.append("numpy")
    steps = {
        "environment": [versions.python, "-m", "venv", environment],
        "install": [python, "-m", "pip", "install", "--disable-pip-version-check", *wanted],
        "build": [python, "setup.py", "build_ext", "--inplace"],
        "tests": [python, "-m", "pytest", *versions.tests, "-q", "-p", "no:cacheprovider"],
    }
    if native:
        del steps["build"]
        shutil.copyfile(native, tree / "fgd_kernels" / "_C.so")
    if versions.tests == KERNELS:
        steps["spills"] = [python, "-m", "devtools.offline.triton_spills"]
    print(f"{versions.name}: the log is {log}", flush=True)
    failed, installed = "", dict.fromkeys(SHOWN, "")
    with log.open("w") as out:
        for step, command in steps.items():
            print(f"+ {shlex.join(map(str, command))}", file=out, flush=True)
            done = subprocess.run([str(c) for c in command], cwd=tree, env=shell, stdout=out, stderr=out, check=False)
            if step == "install" and done.returncode == 0:
                installed = versions_in(python)
            if done.returncode:
                failed = step
                break
    result = f"{failed} fails" if failed else ""
    summary = re.findall(r"^[ =]*((?:\d+ \w+,? ?)+) in [\d.]+s", log.read_text(), re.M)
    told = ", ".join(filter(None, [result if failed != "tests" else "", summary[-1].strip() if summary else ""]))
    record(versions, versions_of_python(python), installed, told or result)
    if not keep:
        shutil.rmtree(environment, ignore_errors=True)
    return not failed


def versions_in(python: pathlib.Path) -> dict[str, str]:
    code = f"""
from importlib.metadata import PackageNotFoundError, version
for name in {SHOWN!r}:
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "")
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return {name: found for name, _, found in (line.partition(" ") for line in done.stdout.splitlines())}


def versions_of_python(python: pathlib.Path) -> str:
    if not python.exists():
        return ""
    code = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def record(versions: Versions, python: str, installed: dict[str, str], result: str) -> None:
    """The set's line in the table."""
    table = FOLDER / "table.md"
    head = f"| Python | {' | '.join(SHOWN)} | tests | result |\n|{'---|' * (len(SHOWN) + 3)}\n"
    lines = table.read_text().splitlines(keepends=True)[2:] if table.exists() else []
    found = [f"{name or '–'}" for name in (installed[name] for name in SHOWN)]
    begin = f"| {python} | {' | '.join(found)} | {' '.join(versions.tests)} |"
    lines = [line for line in lines if not line.startswith(begin)]
    table.write_text(head + "".join(sorted([*lines, f"{begin} {result} |\n"])))
    print(f"{begin} {result} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--torch", metavar="VERSION")
    what.add_argument("--floors", action="store_true")
    what.add_argument("--matrix", action="store_true")
    parser.add_argument("--python", default=sys.executable, help="the interpreter")
    parser.add_argument("--with", dest="others", nargs="+", default=[], metavar="REQUIREMENT")
    parser.add_argument("--tests", nargs="+", help="what pytest runs (default: the set's own, or the kernels' tests)")
    parser.add_argument("--native", type=pathlib.Path, metavar="_C.so", help="a built library; without it one is built")
    parser.add_argument("--keep", action="store_true", help="keep the environment")
    asked = parser.parse_args()
    sets = MATRIX
    if asked.torch:
        others = tuple(asked.others) or next((v.others for v in MATRIX if v.torch == asked.torch), ())
        sets = (Versions(asked.torch, asked.python, others),)
    elif asked.floors:
        sets = (FLOORS,)
    if asked.tests:
        sets = tuple(replace(versions, tests=tuple(asked.tests)) for versions in sets)
    absent = [versions.python for versions in sets if not shutil.which(versions.python)]
    for python in sorted(set(absent)):
        print(f"{python} is not on PATH: its sets are left out", file=sys.stderr)
    # A list, not a generator: every set runs, whether or not one before it failed.
    passed = [attempt(versions, asked.keep, asked.native) for versions in sets if versions.python not in absent]
    sys.exit(not passed or not all(passed))


if __name__ == "__main__":
    main()
