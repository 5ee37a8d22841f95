"""Every setting of ``fgd_distill.digits.equal_time`` gets the same time, and is what its name says."""

import pytest

from fgd_distill.digits.equal_time import KEPT, SETTINGS, _stepper, equal_steps, overlay_of
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
