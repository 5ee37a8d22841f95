"""Modules of the first version under their old names."""

import importlib
import subprocess
import sys

import pytest

from fgd_distill._moved import MOVED

# What the first version's pages import.
DOCUMENTED = [
    ("models", "digits_student"),
    ("models", "build_detector"),
    ("models", "DetectorConfig"),
    ("models", "load_weights"),
    ("export", "student_state_dict"),
    ("cli", "main"),
    ("cli", "run"),
    ("loading", "process_rank"),
    ("profiling", "measure_step"),
]


@pytest.mark.parametrize(("module", "name"), DOCUMENTED)
def test_the_old_name_works_and_tells_the_new(module, name):
    sys.modules.pop(f"fgd_distill.{module}", None)
    with pytest.warns(DeprecationWarning, match=f"fgd_distill.{module} is now fgd_distill.{MOVED[module][0]}"):
        old = importlib.import_module(f"fgd_distill.{module}")
    homes = [importlib.import_module(f"fgd_distill.{home}") for home in MOVED[module]]
    assert any(getattr(old, name) is getattr(home, name, None) for home in homes)


@pytest.mark.parametrize("package", ["data", "training"])
def test_old_modules_that_are_packages_now(package):
    names = {"data": ["CocoDataModule", "CocoFolder"], "training": ["DetectionModule", "FGDConfig"]}[package]
    module = importlib.import_module(f"fgd_distill.{package}")
    assert all(hasattr(module, name) for name in names)


def test_every_successor_exists():
    for homes in MOVED.values():
        assert all(importlib.util.find_spec(f"fgd_distill.{home}") for home in homes)


@pytest.mark.parametrize("module", ["cli", "demo"])
def test_old_names_run(module):
    done = subprocess.run([sys.executable, "-m", f"fgd_distill.{module}", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: ")


def test_a_name_that_never_was():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fgd_distill.no_such_module")
