"""The source distribution, unpacked: tests of releases start from it."""

import shutil
import sys
import tarfile

import building
import pytest
from building import ROOT


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory):
    """The source distribution of a copy of all tracked files and of some that an editor, a build or a run left."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    for name in building.tracked():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for left in ("fgd_kernels/_C.so", "fgd_kernels/_C.missing.txt", "build/x.o", "runs/last.ckpt", "csrc/.x.swp"):
        (tree / left).parent.mkdir(exist_ok=True)
        (tree / left).write_text("left over")
    done = building.run([sys.executable, "-c", building.SDIST, folder], cwd=tree, env=building.build_environment())
    assert done.returncode == 0, done.stdout
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        archive.extractall(folder / "elsewhere", filter="data")
    (found,) = (folder / "elsewhere").iterdir()
    return found
