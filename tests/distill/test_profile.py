"""What a step costs, part by part: the steps are a training's, and the parts are told apart."""

import csv
import time

import pytest
import torch

from fgd_distill.commands import main as cli
from fgd_distill.criterion import FGDConfig
from fgd_distill.detectors.by_name import DetectorConfig
from fgd_distill.training.module import DetectionModule
from fgd_distill.training.step_profile import PARTS, Clock, StepProfile, profile_steps

CPU = torch.device("cpu")


@pytest.fixture
def module(teacher_file):
    torch.manual_seed(0)
    student, teacher = DetectorConfig("digits_student", 11), DetectorConfig("digits_teacher", 11, str(teacher_file))
    return DetectionModule(student, teacher, fgd=FGDConfig(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def profiled(module, batch, **options):
    return profile_steps(module, [batch], lambda batch: batch, CPU, **options)


def test_its_steps_are_those_of_a_training(module, batch):
    """Though the backward pass is taken in two parts."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    profiled(module, batch, steps=1, warmup=0)
    split = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(before)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    sum(module.distiller.train()(*batch).values()).backward()
    optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(split[name], value, rtol=1e-5, atol=1e-7, msg=name)
    moved = [name for name in before if not torch.equal(before[name], split[name])]
    assert any(".criterion." in name for name in moved) and any(".student.backbone" in name for name in moved)


@pytest.mark.parametrize(
    ("part", "owner", "name"),
    [
        ("teacher forward", "distiller", "teacher_features"),
        ("student forward", "adapter", "student_step"),
        ("loss forward", "criterion", "forward"),
    ],
)
def test_a_slow_part_is_told(module, batch, monkeypatch, part, owner, name):
    target = module.distiller if owner == "distiller" else getattr(module.distiller, owner)
    original = getattr(target, name)

    def slow(*args, **kwargs):
        time.sleep(0.3)
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, slow)
    found = profiled(module, batch, steps=1, warmup=1).medians
    assert found[part] >= 0.3 and max(found, key=found.get) == part
    assert module.distiller.teacher_cache is None


def test_slow_data_are_told(module, batch):
    class Slow:
        def __iter__(self):
            time.sleep(0.3)
            yield batch

    found = profile_steps(module, Slow(), lambda batch: batch, CPU, steps=2, warmup=0)
    assert found.medians["data"] >= 0.3
    assert list(found.seconds) == list(PARTS) and all(len(values) == 2 for values in found.seconds.values())


def test_a_student_alone_has_no_parts_of_a_teacher(batch):
    module = DetectionModule(DetectorConfig("digits_student", 11))
    parts = list(profiled(module, batch, steps=1, warmup=0).seconds)
    assert parts == ["data", "student forward", "rest of backward", "optimizer"]


def test_medians_and_shares():
    found = StepProfile({"data": [1.0, 3.0, 2.0], "optimizer": [6.0, 6.0, 9.0]})
    assert found.medians == {"data": 2.0, "optimizer": 6.0}
    assert found.shares == {"data": 0.25, "optimizer": 0.75}
    assert found.step == 9.0


def test_marks_of_one_part_add_up():
    clock = Clock(CPU)
    for part in ("a", "b", "a"):
        time.sleep(0.01)
        clock.mark(part)
    found = clock.seconds()
    assert list(found) == ["a", "b"] and found["a"] >= 0.02 and found["b"] >= 0.01


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_clock():
    """Work that the host only launches is in the part that launched it."""
    device = torch.device("cuda")
    matrix = torch.rand(8192, 8192, device=device)
    torch.cuda.synchronize()
    clock = Clock(device)
    for _ in range(20):
        matrix @ matrix
    clock.mark("work")
    launched = time.perf_counter()
    clock.mark("nothing")
    found = clock.seconds()
    assert found["work"] > 10 * found["nothing"]
    assert time.perf_counter() - launched > 0.5 * found["work"]


def test_the_command(digits, teacher_file, tmp_path, capsys):
    output = tmp_path / "step.csv"
    cli.main(
        [
            "profile",
            "--config=digits_student.yaml",
            "--config=digits_fgd.yaml",
            f"--model.teacher.weights={teacher_file}",
            f"--data.root={digits}",
            "--data.num_workers=0",
            "--data.batch_size=4",
            "--steps=2",
            "--warmup=1",
            f"--output={output}",
        ]
    )
    told = capsys.readouterr().out
    assert told.startswith("2 steps of 4 images, after 1 others, on ")
    rows = {row["part"]: row for row in csv.DictReader(output.open())}
    assert list(rows) == list(PARTS) and all(part in told for part in PARTS)
    assert sum(float(row["share"]) for row in rows.values()) == pytest.approx(1, abs=1e-3)
    assert all(float(row["median_ms"]) > 0 and float(row["step_2_ms"]) > 0 for row in rows.values())


def test_settings_that_cannot_be(module, batch, capsys):
    with pytest.raises(ValueError, match="steps >= 1 and warmup >= 0, got steps=0"):
        profiled(module, batch, steps=0)
    with pytest.raises(ValueError, match="batches: expected at least one"):
        profile_steps(module, [], lambda batch: batch, CPU, steps=1)
    with pytest.raises(SystemExit):
        cli.main(["profile", "--config=digits_student.yaml", "--step=3"])
    assert "step" in capsys.readouterr().err
