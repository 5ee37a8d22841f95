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
    command = [executable, unpacked / "devtools" / "wheels" / "run_readme.py", "--native"]
    done = building.run(command, cwd=tmp_path, env=building.build_environment())
    assert done.returncode == 0, done.stdout
    assert building.python(executable, tmp_path, ABSENT) == "torch alone\n"


ABSENT = """
import importlib.util, fgd_kernels
assert "environment" in fgd_kernels.__file__, fgd_kernels.__file__
for absent in ("pytest", "torchvision", "pytorch_lightning", "pycocotools", "cmake"):
    assert importlib.util.find_spec(absent) is None, absent
print("torch alone")
"""
