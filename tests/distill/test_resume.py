"""A training that was cut off goes on as if it had not been, bit for bit on a CPU."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from fgd_distill.data.evaluation import METRICS
from fgd_distill.detectors.by_name import build_detector
from fgd_distill.training import resume_checkpoint
from fgd_distill.training.module import DetectionModule
from fgd_distill.training.run import run

AUGMENTED = [
    {"class_path": f"torchvision.transforms.v2.{name}"} for name in ("RandomHorizontalFlip", "RandomPhotometricDistort")
]
# 24 images in batches of 5 are 4 steps an epoch: the checkpoint after 3 steps lies within the first.
STEPS, CUT = 6, 3
REST = dict.fromkeys(METRICS[2:], 1.0)


@pytest.fixture
def overlay(tmp_path):
    """Checkpoints after every third step; augmentation, whose random numbers must go on, too."""
    checkpoint = {"every_n_train_steps": CUT, "save_top_k": -1, "filename": "{step}"}
    callback = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": checkpoint}
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}, "data": {"train_transforms": AUGMENTED}}))
    return path


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def states(ran):
    """Weights, and the optimizer's moments under a name each."""
    weights = {name: value.clone() for name, value in ran.model.state_dict().items()}
    for index, state in ran.trainer.optimizers[0].state_dict()["state"].items():
        weights |= {f"{index}.{name}": value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return weights


def with_dropout(config):
    """The student with something random in its steps, as two-stage detectors have it: they sample their proposals."""
    model = build_detector(config)
    model.backbone.register_forward_hook(lambda _, __, maps: {name: F.dropout(maps[name], 0.3) for name in maps})
    return model


@pytest.mark.parametrize("kind", ["FGD", "alone"])
def test_six_steps_are_three_and_three(fit_args, teacher_file, overlay, tmp_path, monkeypatch, kind):
    """FGD with its ramp; and a student alone that draws random numbers, with accumulated gradients."""
    if kind == "FGD":
        fgd = ["--config=digits_fgd.yaml", "--config=digits_inherit.yaml", "--model.schedule.ramp=5"]
        more = [*fgd, f"--model.teacher.weights={teacher_file}"]
    else:
        monkeypatch.setattr("fgd_distill.training.module.build_detector", with_dropout)
        more = ["--trainer.accumulate_grad_batches=2"]
    more = [f"--config={overlay}", *more, "--trainer.limit_val_batches=0"]
    whole = run(fit_args(tmp_path / "whole", *more, steps=STEPS, batch_size=5))
    checkpoint = next((tmp_path / "whole").rglob(f"step={CUT}.ckpt"))
    before = torch.load(checkpoint, weights_only=True)["state_dict"]
    resumed = run([*fit_args(tmp_path / "resumed", *more, steps=STEPS, batch_size=5), f"--ckpt_path={checkpoint}"])
    assert whole.trainer.global_step == resumed.trainer.global_step == STEPS
    assert_equal(states(whole), states(resumed))
    assert any(not torch.equal(value, before[name]) for name, value in resumed.model.state_dict().items())


def test_the_best_is_remembered(fit_args, tmp_path, monkeypatch):
    """In another folder, too: a worse checkpoint after resuming is not the best."""
    found = iter([30.0, 20.0, 40.0])
    monkeypatch.setattr(
        "fgd_distill.data.evaluation.CocoEvaluator.compute", lambda evaluator: {"AP": next(found), "AP50": 1.0} | REST
    )
    overlay = tmp_path / "best.yaml"
    best = {"monitor": "val/AP", "mode": "max", "filename": "best", "save_last": True}
    callback = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": best}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    more = [f"--config={overlay}", "--trainer.val_check_interval=1", "--model.lr_scheduler.init_args.total_steps=3"]
    first = run(fit_args(tmp_path / "first", *more, "--trainer.max_steps=1"))
    (last,) = (tmp_path / "first").rglob("last.ckpt")
    first_best = first.trainer.checkpoint_callback.best_model_path
    resume = [*more, f"--ckpt_path={last}"]
    second = run(fit_args(tmp_path / "second", *resume, "--trainer.max_steps=2")).trainer.checkpoint_callback
    assert (second.best_model_score, second.best_model_path) == (30.0, first_best)
    assert not list((tmp_path / "second").rglob("best.ckpt"))
    (last,) = (tmp_path / "second").rglob("last.ckpt")
    third = run(fit_args(tmp_path / "third", *more, f"--ckpt_path={last}", "--trainer.max_steps=3"))
    assert third.trainer.checkpoint_callback.best_model_score == 40.0
    assert list((tmp_path / "third").rglob("best.ckpt")) and Path(first_best).exists()


@pytest.mark.parametrize("word", ["last", "best", "hpc"])
def test_words_in_place_of_a_path_do_not_begin_anew(fit_args, tmp_path, word):
    with pytest.raises(FileNotFoundError, match=f"ckpt_path: expected a checkpoint's file, got the word '{word}'"):
        run(fit_args(tmp_path, f"--ckpt_path={word}", steps=1))


def test_a_checkpoint_that_does_not_fit_is_told_in_short(fit_args, teacher_file, tmp_path):
    run(fit_args(tmp_path, steps=1))
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    resume = [f"--ckpt_path={checkpoint}", "--model.lr_scheduler.init_args.total_steps=2", "--trainer.max_steps=2"]
    fgd = ["--config=digits_fgd.yaml", f"--model.teacher.weights={teacher_file}"]
    for more, message in (
        (["--model.student.name=digits_teacher"], "in the checkpoint, .* here|only in the checkpoint"),
        (fgd, "distiller.criterion.*: not in the checkpoint"),
        (["--data.batch_size=3"], r"joint_batch_size 4 \(now 3\)"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            run([*fit_args(tmp_path / "other", *more, steps=2), *resume, *more])
        assert len(str(caught.value)) < 700


def test_a_distilled_checkpoint_is_validated_without_its_teacher(fit_args, teacher_file, digits, tmp_path):
    fgd = ("--config=digits_fgd.yaml", f"--model.teacher.weights={teacher_file}")
    trained = run(fit_args(tmp_path, *fgd, steps=2)).trainer.callback_metrics
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    ran = run(
        [
            "validate",
            "--config=digits_student.yaml",
            f"--data.root={digits}",
            "--data.num_workers=0",
            f"--ckpt_path={checkpoint}",
            "--trainer.logger=false",
            "--verbose=false",
        ]
    )
    for name in ("val/AP", "val/AR"):
        assert ran.trainer.callback_metrics[name] == trained[name] and math.isfinite(trained[name])
    with pytest.raises(ValueError, match="the checkpoint does not fit"):
        run(["validate", "--config=digits_teacher.yaml", f"--data.root={digits}", f"--ckpt_path={checkpoint}"])


class Killed(Exception):
    pass


def test_what_was_killed_before_the_first_validation_goes_on(fit_args, tmp_path, monkeypatch):
    monkeypatch.setattr(resume_checkpoint, "FIRST", 0.0)
    monkeypatch.setattr(resume_checkpoint, "COST", math.inf)
    monkeypatch.setattr(resume_checkpoint, "AGREE_EVERY", 1)
    step = DetectionModule.training_step

    def dies(module, batch, batch_idx):
        if module.global_step == CUT:
            raise Killed
        return step(module, batch, batch_idx)

    more = ["--trainer.limit_val_batches=0", "--trainer.accumulate_grad_batches=2"]
    whole = run(fit_args(tmp_path / "whole", *more, steps=STEPS, batch_size=5))
    assert not list((tmp_path / "whole").rglob("resume.ckpt")), "expected it to go when the training has ended"
    monkeypatch.setattr(DetectionModule, "training_step", dies)
    with pytest.raises(Killed):
        run(fit_args(tmp_path / "killed", *more, steps=STEPS, batch_size=5))
    monkeypatch.setattr(DetectionModule, "training_step", step)
    checkpoint = next((tmp_path / "killed").rglob("resume.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["global_step"] == CUT
    resumed = run([*fit_args(tmp_path / "killed", *more, steps=STEPS, batch_size=5), f"--ckpt_path={checkpoint}"])
    assert_equal(states(whole), states(resumed))


def test_no_checkpoint_is_written_where_a_validation_is_due(fit_args, tmp_path, monkeypatch):
    """Resuming from it would skip that validation."""
    for name, value in {"FIRST": 0.0, "COST": math.inf, "AGREE_EVERY": 1}.items():
        monkeypatch.setattr(resume_checkpoint, name, value)
    steps, path_of = [], resume_checkpoint.checkpoint_path

    def noted(trainer, name):
        steps.append(trainer.global_step)
        return path_of(trainer, name)

    monkeypatch.setattr(resume_checkpoint, "checkpoint_path", noted)
    run(fit_args(tmp_path, "--trainer.val_check_interval=2", steps=5))
    assert steps[:-1] == [1, 3, 5]  # and once more at the end, to remove it
