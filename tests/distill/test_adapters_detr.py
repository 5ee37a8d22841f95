"""Hugging Face's DETR and its Conditional, DAB and Deformable relatives from a config, offline. 25 s."""

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

from fgd_distill.adapters.huggingface import HuggingFaceAdapter
from fgd_distill.commands import main as cli
from fgd_distill.inheriting import inherit
from fgd_distill.training.run import run

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="pip install --no-deps -r requirements-adapters.txt")

HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 20, "dropout": 0.0}
LAYERS = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
ONE = ["model.input_projection"]
FOUR = [f"model.input_proj.{level}" for level in range(4)]
# Layers, and of the first map the size and the rows and columns that the box covers.
FAMILIES = {
    "Detr": (ONE, (2, 2), (0, 1), (0, 1)),
    "ConditionalDetr": (ONE, (2, 2), (0, 1), (0, 1)),
    "DabDetr": (ONE, (2, 2), (0, 1), (0, 1)),
    "DeformableDetr": (FOUR, (8, 8), (1, 4), (1, 7)),
}


def build(num_classes: int = 4, family: str = "Detr", width: int = 16):
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=width // 2,
        hidden_sizes=[width // 2, width, width * 3 // 2, width * 2],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"] if family == "DeformableDetr" else ["stage4"],
    )
    size = {"hidden_size" if family == "DabDetr" else "d_model": 32}
    config = getattr(transformers, f"{family}Config")(
        backbone_config=backbone, use_timm_backbone=False, num_labels=num_classes, **size, **HEADS, **LAYERS
    )
    return getattr(transformers, f"{family}ForObjectDetection")(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(family):
    torch.manual_seed(0)
    distiller = make_distiller(build(family=family), build(family=family, width=32))
    layers, *covered = FAMILIES[family]
    assert isinstance(distiller.adapter, HuggingFaceAdapter) and distiller.student_layers == layers
    assert_one_box_covers(distiller, two_images(), (64, 64), [8.0, 12.0, 50.0, 30.0], *covered)
    losses = {"loss_ce", "loss_bbox", "loss_giou"}
    assert_steps_lower_the_loss(distiller, two_images(), losses, steps=12, lr=3e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_frame_and_picture(family):
    """The losses' sum is what transformers minimises, on the batch that its image processor makes."""
    torch.manual_seed(0)
    student, adapter = build(family=family).train(), HuggingFaceAdapter()
    images, targets = two_images()
    assert_the_frame_is_the_steps(adapter, student, (images, targets))
    images = [torch.nn.functional.pad(image, (0, 64 - image.shape[2], 0, 64 - image.shape[1])) for image in images]
    processor = transformers.DetrImageProcessor(do_resize=False, do_rescale=False)
    batch = processor(images, return_tensors="pt")["pixel_values"]
    labels = [
        {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[29 / 64, 21 / 64, 42 / 64, 18 / 64]])},
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    theirs = student(pixel_values=batch, labels=labels)
    ours = adapter.student_step(student, images, targets)
    torch.testing.assert_close(ours.batch, batch)
    torch.testing.assert_close(sum(ours.losses.values()), theirs.loss)
    own_batch = adapter.student_step(student, {"pixel_values": batch, "labels": labels}, None)
    torch.testing.assert_close(own_batch.losses, ours.losses)
    assert (adapter.preset(student), adapter.first_label(student)) == (None, 0)


def test_a_processors_mask_of_padding_is_the_detectors():
    torch.manual_seed(0)
    student = build().train()
    images, _ = two_images()
    note = {"image_id": 0, "annotations": [{"bbox": [32, 48, 168, 72], "category_id": 2, "area": 9, "iscrowd": 0}]}
    processor = transformers.DetrImageProcessor(do_resize=False, do_rescale=False)
    large = [torch.nn.functional.interpolate(image[None], scale_factor=4)[0] for image in images]
    batch = dict(processor(large, [note, note | {"image_id": 1}], return_tensors="pt"))
    assert not batch["pixel_mask"].all()
    step = HuggingFaceAdapter().student_step(student, batch, None)
    torch.testing.assert_close(sum(step.losses.values()), student(**batch).loss)
    bare = HuggingFaceAdapter().student_step(student, batch | {"pixel_mask": None}, None)
    assert sum(bare.losses.values()) != sum(step.losses.values())
    for boxes, right in zip(step.boxes, (200.0, 192.0), strict=True):  # cut at the second image's edge
        torch.testing.assert_close(boxes, torch.tensor([[32.0, 48.0, right, 120.0]]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_the_image_processor(family):
    torch.manual_seed(0)
    student, adapter = build(family=family).eval(), HuggingFaceAdapter()
    image = two_images()[0][0].repeat(1, 2, 2)
    batch, _ = adapter.frame(student, [image], two_images()[1][1:])
    with torch.no_grad():
        output = student(pixel_values=batch)
    name = "Detr" if family == "Detr" else "DeformableDetr"
    options = {} if family == "Detr" else {"top_k": 20}
    processor = getattr(transformers, f"{name}ImageProcessor")()
    (theirs,) = processor.post_process_object_detection(output, 0.0, [tuple(batch.shape[2:])], **options)
    (ours,) = adapter.predict(student, [image])
    assert len(ours["scores"]) == 20
    torch.testing.assert_close(ours["scores"], theirs["scores"])
    assert torch.equal(ours["labels"], theirs["labels"])
    torch.testing.assert_close(ours["boxes"][:, 0::2], theirs["boxes"][:, 0::2].clamp(0, 128))
    torch.testing.assert_close(ours["boxes"][:, 1::2], theirs["boxes"][:, 1::2].clamp(0, 96))


def test_neck_and_head_are_inherited():
    report = inherit(build(), build(), verbose=False)
    assert not report.mismatched and not report.skipped
    assert any(name.startswith("bbox_predictor.") for name in report.loaded)
    assert not any(name.startswith("model.backbone.") for name in report.loaded)


def test_fit_distils_it_and_validates_and_exports(fit_args, tmp_path):
    torch.manual_seed(0)
    torch.save(build(11, width=32).state_dict(), tmp_path / "teacher.pt")
    name = "test_adapters_detr:build"
    models = [f"--model.student.name={name}", f"--model.teacher.name={name}", "--model.teacher.options={width: 32}"]
    weights = [f"--model.teacher.weights={tmp_path / 'teacher.pt'}", "--model.teacher.num_classes=11"]
    ran = run(fit_args(tmp_path, *models, *weights, "--model.fgd={temperature: 1.0}", steps=2, batch_size=2))
    assert {"train/loss_ce", "train/loss_fgd_fg", "val/AP"} <= ran.trainer.callback_metrics.keys()
    cli.main(["export-student", str(next(tmp_path.rglob("*.ckpt"))), str(tmp_path / "student.pt")])
    build(11).load_state_dict(torch.load(tmp_path / "student.pt", weights_only=True))
