"""``fgd-distill doctor`` and ``--version``."""

import pytest
import torch

import fgd_kernels as fgd
from fgd_distill.commands import doctor
from fgd_distill.commands.main import main


def test_version(capsys):
    main(["--version"])
    told = capsys.readouterr().out
    assert f"fgd_kernels {fgd.__version__}" in told and f"torch {torch.__version__}" in told
    assert "backends: " in told and "library: " in told


def test_doctor_ends_with_1_where_something_is_wrong(capsys, monkeypatch):
    main(["doctor"])
    assert "pytorch-lightning 2." in capsys.readouterr().out
    monkeypatch.setattr(doctor.kernels, "report", lambda packages: ("a wrong loss", False))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1 and "a wrong loss" in capsys.readouterr().out
