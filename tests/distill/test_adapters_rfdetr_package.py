"""RF-DETR of the package rfdetr, built without downloads: training steps, frame, predictions, and fit. 40 s."""

import os

import pytest
import torch
from adapter_checks import (
    assert_one_box_covers,
    assert_steps_lower_the_loss,
    assert_the_frame_is_the_steps,
    make_distiller,
    two_images,
)

from fgd_distill.adapters import adapter_for
from fgd_distill.adapters.rfdetr import RFDETRAdapter
from fgd_distill.commands import main as cli
from fgd_distill.inheriting import inherit
from fgd_distill.training.run import run

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("rfdetr", reason="pip install --no-deps -r requirements-adapters.txt")

from rfdetr.config import RFDETRNanoConfig, TrainConfig
from rfdetr.models.lwdetr import build_criterion_from_config, build_model_from_config

# pretrain_weights: with None it would fetch DINOv2's; the file is not opened here.
SMALL = {"resolution": 64, "positional_encoding_size": 4, "num_queries": 20, "group_detr": 2, "hidden_dim": 32}
CONFIG = RFDETRNanoConfig(pretrain_weights="none.pth", num_classes=3, sa_nheads=2, ca_nheads=2, device="cpu", **SMALL)


def build(num_classes: int = 4):
    """``num_classes``: as ``fgd-distill fit`` counts them, one more than RF-DETR does."""
    return build_model_from_config(CONFIG.model_copy(update={"num_classes": num_classes - 1}))


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    return build(), build()


def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(pair):
    """The images, padded to the square of 64 pixels that two windows of patches of 16 divide."""
    distiller = make_distiller(*pair)
    assert isinstance(distiller.adapter, RFDETRAdapter) and distiller.student_layers == ["backbone.0.projector"]
    assert_one_box_covers(distiller, two_images(), (64, 64), [8.0, 12.0, 50.0, 30.0], (4, 4), (0, 2), (0, 3))
    for name, parameter in distiller.student.named_parameters():
        parameter.requires_grad_("mask_token" not in name)  # DINOv2's, which learns from masked images only
    assert_steps_lower_the_loss(distiller, two_images(), {"loss_ce", "loss_bbox", "loss_giou"}, steps=20, lr=3e-3)


def test_losses_are_those_of_its_own_training(pair):
    student, adapter = pair[0].train(), RFDETRAdapter()
    criterion, _ = build_criterion_from_config(CONFIG, TrainConfig(dataset_dir=".", output_dir="."))
    images, targets = two_images()
    step = adapter.student_step(student, images, targets)
    labels = [
        {"labels": torch.tensor([2]), "boxes": torch.tensor([[29 / 64, 21 / 64, 42 / 64, 18 / 64]])},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    theirs = criterion.train()(student(step.batch), labels)
    total = sum(weight * theirs[name] for name, weight in criterion.weight_dict.items())
    torch.testing.assert_close(sum(step.losses.values()), total)
    torch.testing.assert_close(step.boxes[0], targets[0]["boxes"])


def test_the_frame_without_a_step(pair):
    adapter, student = RFDETRAdapter(), pair[0]
    assert_the_frame_is_the_steps(adapter, student, two_images())
    assert (adapter.preset(student), adapter.first_label(student), adapter.probe_size(student)) == (None, 0, (320, 320))


def test_predictions_are_in_pixels_of_the_image(pair):
    student, adapter = pair[0].eval(), RFDETRAdapter()
    images, targets = two_images()
    with torch.no_grad():
        output = student(adapter.frame(student, images, targets).batch)
    scores, best = output["pred_logits"].sigmoid().flatten(1).max(1)
    for index, (found, image) in enumerate(zip(adapter.predict(student, images), images, strict=True)):
        assert len(found["scores"]) == 20 and found["scores"][0] == scores[index]
        assert found["labels"][0] == best[index] % 4
        centre, size = output["pred_boxes"][index, best[index] // 4].view(2, 2) * 64
        corners = torch.cat([centre - size / 2, centre + size / 2])
        limits = torch.tensor([image.shape[2], image.shape[1]] * 2)
        torch.testing.assert_close(found["boxes"][0], corners.clamp(min=0).minimum(limits), rtol=1e-4, atol=1e-3)


def test_neck_and_head_are_inherited(pair):
    report = inherit(build(), pair[1], verbose=False)
    assert not report.mismatched and not report.skipped
    backbone = [name for name in report.loaded if name.startswith("backbone.")]
    assert backbone and all(name.startswith("backbone.0.projector.") for name in backbone)


def test_wrong_input_is_told(pair):
    adapter = adapter_for(pair[0])
    images, targets = two_images()
    with pytest.raises(ValueError, match=r"targets\[0\].*labels from 0 to 3, got 4 to 4"):
        adapter.student_step(pair[0], images, [targets[0] | {"labels": torch.tensor([4])}, targets[1]])
    with pytest.raises(TypeError, match="model: expected rfdetr's LWDETR for boxes, got Joiner"):
        adapter.default_layers(pair[0].backbone)


def test_fit_distils_it_and_validates_and_exports(fit_args, tmp_path):
    torch.manual_seed(0)
    torch.save(build(11).state_dict(), tmp_path / "teacher.pt")
    name = "test_adapters_rfdetr_package:build"
    models = [f"--model.student.name={name}", f"--model.teacher.name={name}"]
    weights = [f"--model.teacher.weights={tmp_path / 'teacher.pt'}", "--model.teacher.num_classes=11"]
    ran = run(fit_args(tmp_path, *models, *weights, "--model.fgd={temperature: 1.0}", steps=2, batch_size=2))
    assert {"train/loss_ce", "train/loss_fgd_fg", "val/AP"} <= ran.trainer.callback_metrics.keys()
    cli.main(["export-student", str(next(tmp_path.rglob("*.ckpt"))), str(tmp_path / "student.pt")])
    build(11).load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True))
