"""The page devtools/ptx/README.md: its examples run and print what it says, its list is the tables'."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from devtools.ptx.instructions import CONTROL, STEPS

ROOT = pathlib.Path(__file__).parents[3]
PAGE = pathlib.Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.S)
NEEDS = {
    "A kernel of CUDA C++": (lambda: shutil.which("nvcc"), "nvcc is not on PATH"),
    "A kernel of Triton": (lambda: importlib.util.find_spec("triton"), "Triton is not installed"),
}


def blocks(section: str, kind: str) -> str:
    """A section's blocks of one kind, one after another."""
    text = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return "".join(content for found, content in BLOCK.findall(text) if found == kind)


def plain(text: str) -> list[str]:
    """Lines without what is another compiler's matter: PTX's lines and registers, fractions and numbers of barriers."""
    return re.sub(r"line \d+|%\w+(?:\+-?\d+)?|\d+\.\d+|\d+ barriers", "…", text).splitlines()


@pytest.mark.parametrize("section", NEEDS)
def test_examples_run_and_print_what_the_page_says(section, tmp_path):
    here, why = NEEDS[section]
    if not here():
        pytest.skip(why)
    program = tmp_path / "example.py"  # Triton reads its kernels' source from a file
    program.write_text(blocks(section, "python"))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, program],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert plain(done.stdout) == plain(blocks(section, "text"))


def test_the_page_lists_what_is_supported():
    listed = set(PAGE.read_text().split("<!-- instructions -->")[1].replace("`", "").split())
    assert listed == (set(STEPS) | set(CONTROL)) - {"goto", "mbarrier_wait"}
