"""The source distribution: complete, and enough to build from, far from the checkout.

What this shows: the archive builds on this machine with what this environment has (no build isolation: nothing is
fetched), and the wheel runs where nothing but torch and numpy can be imported. torch itself is the one installed here.
"""

import re

import building
import pytest
from building import ROOT, lacking

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())


def test_it_is_complete(unpacked):
    """Every tracked file but those of git, CI and editors, and nothing that was left over."""
    content = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    expected = {name for name in building.tracked() if not name.startswith(".") and (ROOT / name).is_file()}
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
import importlib.metadata, importlib.util, re
for line in importlib.metadata.requires("fgd_kernels"):
    assert "extra ==" in line or importlib.metadata.version(re.match("[a-z]+", line)[0])
assert set(losses) == set(fgd.LOSS_NAMES) and all(value.isfinite() for value in losses.values())
assert all(s.grad.abs().sum() > 0 and t.grad is None for s, t in zip(student, teacher, strict=True))
assert "environment" in fgd.__file__, fgd.__file__
for absent in ("pytest", "torchvision", "pytorch_lightning", "pycocotools", "cmake"):
    assert importlib.util.find_spec(absent) is None, absent
print("cpu", fgd.backends()["cpu"].available)
"""
