"""The source distribution: complete, and enough to build from, far from the checkout.

What this shows: the archive builds on this machine with what this environment has (no build isolation: nothing is
fetched), and the wheel runs where nothing but torch and numpy can be imported. torch itself is the one installed here.
"""

import re
import shutil
import subprocess
import sys
import tarfile

import building
import pytest
from building import ROOT, lacking

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())
BUILD_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def tracked() -> list[str]:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The source distribution of a copy of all tracked files and of some that an editor, a build or a run left."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    for name in tracked():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for left in ("fgd_kernels/_C.so", "fgd_kernels/_C.missing.txt", "build/x.o", "runs/last.ckpt", "csrc/.x.swp"):
        (tree / left).parent.mkdir(exist_ok=True)
        (tree / left).write_text("left over")
    done = building.run([sys.executable, "-c", BUILD_SDIST, folder], cwd=tree, env=building.build_environment())
    assert done.returncode == 0, done.stdout
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        archive.extractall(folder / "elsewhere", filter="data")
    (found,) = (folder / "elsewhere").iterdir()
    return found


def test_it_is_complete(unpacked):
    """Every tracked file but those of git, CI and editors, and nothing that was left over."""
    content = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    expected = {name for name in tracked() if not name.startswith(".") and (ROOT / name).is_file()}
    assert not expected - content
    made = {name for name in content - expected if not re.match(r"PKG-INFO|setup\.cfg|(python/)?\w+\.egg-info/", name)}
    assert not made


def test_it_builds_and_its_wheel_runs_the_readme_where_there_is_torch_alone(unpacked, tmp_path):
    wheel = building.only_wheel(unpacked, building.pip_wheel(unpacked, FGD_REQUIRE_NATIVE="1", **building.QUICK))
    executable = building.environment_with(tmp_path / "environment", "torch", "numpy")
    done = building.install(executable, wheel)
    assert done.returncode == 0, done.stdout
    readme = (unpacked / "README.md").read_text()
    lines = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "fgd.FGDLoss" in block)
    said = building.python(executable, tmp_path, f"{lines}\n{CHECKS}")
    assert said.split() == ["cpu", "True"]


CHECKS = """
import importlib.util
assert set(losses) == set(fgd.LOSS_NAMES) and all(value.isfinite() for value in losses.values())
assert all(s.grad.abs().sum() > 0 and t.grad is None for s, t in zip(student, teacher, strict=True))
assert "environment" in fgd.__file__, fgd.__file__
for absent in ("pytest", "torchvision", "pytorch_lightning", "pycocotools", "cmake"):
    assert importlib.util.find_spec(absent) is None, absent
print("cpu", fgd.backends()["cpu"].available)
"""
