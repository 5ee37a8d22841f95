"""Every setting of ``fgd_distill.digits.equal_time`` gets the same time, and is what its name says."""

import re

import pytest

from fgd_distill.digits.equal_time import KEPT, SETTINGS, _stepper, equal_steps, overlay_of, table
from fgd_distill.training.run import DistillCLI

COSTS = {setting: 0.2 + 0.03 * number for number, setting in enumerate(SETTINGS)} | {"FGD": 0.35, KEPT: 0.21}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("alone_steps", [100, 800])
def test_all_settings_take_the_same_time(setting, alone_steps):
    epoch = 300
    steps = equal_steps(setting, COSTS, alone_steps, epoch)
    with_teacher = min(steps, epoch) if setting == KEPT else 0
    spent = with_teacher * COSTS["FGD"] + (steps - with_teacher) * COSTS[setting]
    assert spent == pytest.approx(alone_steps * COSTS["alone"], abs=0.2)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_are_what_they_are_called(setting, tmp_path):
    model = DistillCLI(["--config=digits_student.yaml", *overlay_of(setting, tmp_path)]).config.model
    assert (model.fgd is None) == (setting == "alone")
    assert (model.teacher_cache is None) == (setting != KEPT)
    assert (model.teacher is not None and model.teacher.dtype == "bfloat16") == ("bfloat16" in setting)


def test_a_step_with_kept_maps_is_timed_with_kept_maps(digits, tmp_path):
    step = _stepper(digits, [*overlay_of(KEPT, tmp_path), "--data.batch_size=2"])
    step(0)
    assert list(tmp_path.iterdir())


def test_the_table_has_gains_seed_by_seed():
    found = [("alone", "0", 10.0), ("alone", "1", 20.0), ("FGD", "1", 23.0), ("FGD", "0", 12.0), (KEPT, "0", 15.0)]
    lines = [{"setting": s, "seed": n, "steps": "8", "AP": f"{ap}", "step_ms": "9.5"} for s, n, ap in found]
    _, alone, fgd, kept = (re.split(r"\s{2,}", line.strip()) for line in table(lines))
    assert alone == ["alone", "9.5", "8", "2", "15.0", "10.0 to 20.0"]
    assert fgd == ["FGD", "9.5", "8", "2", "17.5", "12.0 to 23.0", "+2.5"]
    assert kept[-1] == "+5.0"
