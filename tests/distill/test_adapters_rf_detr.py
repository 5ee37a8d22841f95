"""Hugging Face's RF-DETR and LW-DETR from a config, offline: training steps, frame and predictions. 20 s."""

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

from fgd_distill.adapters import probe_channels
from fgd_distill.adapters.huggingface import HuggingFaceAdapter
from fgd_distill.commands import main as cli
from fgd_distill.inheriting import inherit
from fgd_distill.training.run import run

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="pip install --no-deps -r requirements-adapters.txt")

HEADS = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "num_queries": 20, "group_detr": 2}
DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "dropout": 0.0, "c2f_num_blocks": 1}
TRANSFORMER = {"num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 64, "patch_size": 8}


def rf_detr(num_classes: int = 4, width: int = 32):
    backbone = transformers.RfDetrDinov2Config(hidden_size=width, num_windows=2, out_indices=[2, 4], **TRANSFORMER)
    config = transformers.RfDetrConfig(backbone_config=backbone, num_labels=num_classes, **DECODER, **HEADS)
    return transformers.RfDetrForObjectDetection(config)


def lw_detr(num_classes: int = 4, width: int = 32):
    windows = {"pretrain_image_size": 64, "num_windows": 4, "window_block_indices": [0, 2], "out_indices": [2, 4]}
    backbone = transformers.LwDetrViTConfig(hidden_size=width, **windows, **TRANSFORMER)
    levels = {"projector_scale_factors": [2.0, 0.5]}
    config = transformers.LwDetrConfig(backbone_config=backbone, num_labels=num_classes, **levels, **DECODER, **HEADS)
    return transformers.LwDetrForObjectDetection(config)


# The size of the first map, and its rows and columns that the box covers.
FAMILIES = {rf_detr: ((8, 8), (1, 4), (1, 7)), lw_detr: ((16, 16), (3, 8), (2, 13))}


@pytest.mark.parametrize("build", FAMILIES)
def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(build):
    """The images, padded to the square of 64 pixels that the windows divide."""
    torch.manual_seed(0)
    distiller = make_distiller(build(), build(width=64))
    assert isinstance(distiller.adapter, HuggingFaceAdapter)
    assert distiller.student_layers == ["model.backbone.projector"]
    assert_one_box_covers(distiller, two_images(), (64, 64), [8.0, 12.0, 50.0, 30.0], *FAMILIES[build])
    for name, parameter in distiller.student.named_parameters():
        parameter.requires_grad_("mask_token" not in name)  # DINOv2's, which learns from masked images only
    losses = {"loss_ce", "loss_bbox", "loss_giou"}
    assert_steps_lower_the_loss(distiller, two_images(), losses, steps=40, lr=3e-3)


@pytest.mark.parametrize("build", FAMILIES)
def test_losses_are_the_models_own(build):
    """Their sum is what transformers minimises, on the batch that its image processor makes, with boxes and without."""
    torch.manual_seed(0)
    student = build().train()
    images, targets = two_images()
    images = [torch.nn.functional.pad(image, (0, 64 - image.shape[2], 0, 64 - image.shape[1])) for image in images]
    processor = transformers.RfDetrImageProcessor(do_resize=False, do_rescale=False)
    batch = processor(images, return_tensors="pt", do_rescale=False)["pixel_values"]
    relative = torch.tensor([[29 / 64, 21 / 64, 42 / 64, 18 / 64]])
    for first in (slice(0, 1), slice(0, 0)):
        labels = [
            {"class_labels": torch.tensor([2])[first], "boxes": relative[first]},
            {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
        ]
        targets[0] = {name: value[first] for name, value in targets[0].items()}
        theirs = student(pixel_values=batch, labels=labels)
        ours = HuggingFaceAdapter().student_step(student, images, targets)
        torch.testing.assert_close(ours.batch, batch)
        torch.testing.assert_close(sum(ours.losses.values()), theirs.loss)
        own_batch = HuggingFaceAdapter().student_step(student, {"pixel_values": batch, "labels": labels}, None)
        torch.testing.assert_close(own_batch.losses, ours.losses)
        torch.testing.assert_close(own_batch.boxes, ours.boxes)


@pytest.mark.parametrize("build", FAMILIES)
def test_the_frame_and_the_picture(build):
    adapter, student = HuggingFaceAdapter(), build()
    assert_the_frame_is_the_steps(adapter, student, two_images())
    batch = adapter.frame(student, *two_images()).batch
    assert (batch[0, :, 48:] == 0).all() and (batch[1, :, :, 48:] == 0).all()
    assert (adapter.preset(student), adapter.first_label(student)) == (None, 0)
    assert probe_channels(student, adapter.default_layers(student), adapter) == [32] * (1 if build is rf_detr else 2)


@pytest.mark.parametrize("build", FAMILIES)
def test_predictions_are_those_of_the_image_processor(build):
    torch.manual_seed(0)
    student, adapter = build().eval(), HuggingFaceAdapter()
    image = two_images()[0][0]
    with torch.no_grad():
        output = student(pixel_values=adapter.frame(student, [image], two_images()[1][1:]).batch)
    processor = transformers.RfDetrImageProcessor()
    (theirs,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(64, 64)])
    (ours,) = adapter.predict(student, [image])
    torch.testing.assert_close(ours["scores"], theirs["scores"])
    assert torch.equal(ours["labels"], theirs["labels"])
    torch.testing.assert_close(ours["boxes"][:, 0::2], theirs["boxes"][:, 0::2].clamp(0, 64))
    torch.testing.assert_close(ours["boxes"][:, 1::2], theirs["boxes"][:, 1::2].clamp(0, 48))


def test_neck_and_head_are_inherited():
    student, teacher = lw_detr(), lw_detr()
    report = inherit(student, teacher, verbose=False)
    assert not report.mismatched and not report.skipped
    backbone = [name for name in report.loaded if name.startswith("model.backbone.")]
    assert backbone and all(name.startswith("model.backbone.projector.") for name in backbone)


def test_fit_distils_it_and_validates_and_exports(fit_args, tmp_path):
    torch.manual_seed(0)
    torch.save(rf_detr(11, 64).state_dict(), tmp_path / "teacher.pt")
    name = "test_adapters_rf_detr:rf_detr"
    models = [f"--model.student.name={name}", f"--model.teacher.name={name}", "--model.teacher.options={width: 64}"]
    weights = [f"--model.teacher.weights={tmp_path / 'teacher.pt'}", "--model.teacher.num_classes=11"]
    ran = run(fit_args(tmp_path, *models, *weights, "--model.fgd={temperature: 1.0}", steps=2, batch_size=2))
    assert {"train/loss_ce", "train/loss_fgd_fg", "val/AP"} <= ran.trainer.callback_metrics.keys()
    cli.main(["export-student", str(next(tmp_path.rglob("*.ckpt"))), str(tmp_path / "student.pt")])
    rf_detr(11).load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True))


def test_pairs_that_cannot_share_a_batch():
    with pytest.raises(ValueError, match="a student whose batch is normalised and a teacher whose is in 0..1"):
        backbone = transformers.RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"])
        config = transformers.RTDetrConfig(backbone_config=backbone, encoder_layers=1, decoder_layers=1)
        with torch.device("meta"):
            HuggingFaceAdapter().check_pair(rf_detr(), transformers.RTDetrForObjectDetection(config))
    teacher = lw_detr()
    teacher.config.backbone_config.patch_size = 16
    with pytest.raises(ValueError, match="teacher: its largest window, 32, must divide the student's, 16"):
        HuggingFaceAdapter().check_pair(lw_detr(), teacher)
