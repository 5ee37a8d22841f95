"""A student that cannot learn boxes: shipped ones never start so, and a training that stands still says so."""

from types import SimpleNamespace

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn

from fgd_distill.data.datamodule import CocoFolder
from fgd_distill.detectors.by_name import DetectorConfig, build_detector
from fgd_distill.detectors.fcos_start import start_with_boxes
from fgd_distill.training import standstill
from fgd_distill.training.run import run

SHIPPED = ["digits_student", "digits_teacher", "fcos_resnet18_fpn"]


def empty_boxes(model, images):
    """The share of an untrained FCOS's boxes that have no width or no height, so that no gradient reaches them."""
    seen = []
    model.head.regression_head.bbox_reg.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model.eval()(images)
    left, top, right, bottom = torch.cat([output.flatten(2) for output in seen], dim=2).relu().unbind(dim=1)
    return float(((left + right == 0) | (top + bottom == 0)).float().mean())


@pytest.mark.parametrize("name", SHIPPED)
def test_every_seed_starts_with_boxes_that_have_a_gradient(name, digits):
    data = CocoFolder(digits / "images/val", digits / "annotations/val.json")
    for seed in range(10):  # torchvision alone: 0.4
        torch.manual_seed(seed)
        model = build_detector(DetectorConfig(name, num_classes=11, options={"min_size": 128, "max_size": 128}))
        assert empty_boxes(model, [data[0][0], data[1][0]]) < 0.01, f"seed {seed}"


def test_torchvisions_own_start_has_empty_boxes():
    """What the bias is for; when this fails, torchvision has changed and it may go."""
    torch.manual_seed(0)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, min_size=64, max_size=64)
    assert empty_boxes(model, [torch.rand(3, 64, 64)]) > 0.2
    start_with_boxes(model)
    assert empty_boxes(model, [torch.rand(3, 64, 64)]) < 0.01


def dead(model):
    with torch.no_grad():
        model.head.regression_head.bbox_reg.bias.fill_(-1.0)


def test_a_training_that_stands_still_says_so(fit_args, tmp_path, monkeypatch):
    monkeypatch.setattr(standstill, "STEPS", 6)
    monkeypatch.setattr(standstill, "LOOK_EVERY", 2)
    monkeypatch.setattr("fgd_distill.digits.detectors.start_with_boxes", dead)
    args = fit_args(tmp_path, "--trainer.limit_val_batches=0", "--data.batch_size=2", steps=7)
    with pytest.warns() as found:
        run(args)
    told = [str(warning.message) for warning in found if "learn" in str(warning.message)]
    assert len(told) == 2, told
    assert "bbox_regression was 1.0000 in 6 steps in a row" in told[0]
    assert "parameters was exactly 0 over 6 steps, of head.regression_head.bbox_reg.weight" in told[1]


def test_a_training_that_learns_says_nothing(fit_args, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(standstill, "STEPS", 3)
    monkeypatch.setattr(standstill, "LOOK_EVERY", 1)
    run(fit_args(tmp_path, "--trainer.limit_val_batches=0", "--data.batch_size=2", steps=7))
    assert not [warning for warning in recwarn if "learn" in str(warning.message)]


def test_steps_are_counted_not_their_batches():
    """Four batches a step: what is equal in two steps was so in one since the first, and in seven batches."""
    trainer = SimpleNamespace(global_rank=0, global_step=1, is_last_batch=False, accumulate_grad_batches=4)
    module = SimpleNamespace(own_losses={"classification": torch.ones(())})
    callback = standstill.StandstillWarning()
    for batch in range(8):
        callback.on_train_batch_end(trainer, module, None, None, batch)
    assert callback.same.tolist() == [1]
