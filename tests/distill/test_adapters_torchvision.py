"""torchvision's detectors on random weights: boxes in the frame of the feature maps, and steps that lower the loss."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from adapter_checks import (
    assert_one_box_covers,
    assert_steps_lower_the_loss,
    assert_the_frame_is_the_steps,
    make_distiller,
    two_images,
)
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fgd_distill.adapters import TorchvisionAdapter, adapter_for, probe_channels
from fgd_distill.inheriting import inherit

SIZES = {"min_size": 96, "max_size": 160}


def one_stage_backbone() -> nn.Module:
    return resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )


def two_stage_backbone() -> nn.Module:
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)


def retinanet(**options) -> nn.Module:
    # With torchvision's anchors of 32 pixels and more the small boxes here would match none.
    sizes = tuple((2.0 * s, 3.0 * s, 4.0 * s) for s in (8, 16, 32, 64, 128))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    return detection.RetinaNet(one_stage_backbone(), 5, anchor_generator=anchors, **(SIZES | options))


def fcos(**options) -> nn.Module:
    return detection.FCOS(one_stage_backbone(), 5, **(SIZES | options))


def two_stage_options() -> dict:
    """Few proposals and a small box head, for speed."""
    return SIZES | {
        "rpn_pre_nms_top_n_train": 50,
        "rpn_post_nms_top_n_train": 20,
        "box_batch_size_per_image": 8,
        "box_head": TwoMLPHead(256 * 7 * 7, 32),
        "box_predictor": FastRCNNPredictor(32, 5),
    }


def faster_rcnn(**options) -> nn.Module:
    return detection.FasterRCNN(two_stage_backbone(), **(two_stage_options() | options))


def mask_rcnn(**options) -> nn.Module:
    return detection.MaskRCNN(
        two_stage_backbone(), mask_predictor=MaskRCNNPredictor(256, 32, 5), **(two_stage_options() | options)
    )


def ssdlite(**options) -> nn.Module:
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5, **options)


class Family(NamedTuple):
    """A detector and what its distillation must look like on the two images.

    Args:
        build: makes it with random weights.
        losses: names of its own losses.
        layers: what is tapped if no layer is named.
        where: the frame, the box in it, the size of the first map and the rows and columns that the box covers.
        training: steps, learning rate and the distillation's share of the loss.
    """

    build: Callable[..., nn.Module]
    losses: set[str]
    layers: list[str]
    where: dict
    training: dict


# The first image of 48 x 64 pixels is resized by 2 to 96 x 128, the second of 60 x 48 by 2 to 120 x 96; the batch is
# padded to multiples of 32: 128 x 128. At stride 8 the box covers rows 24/8 to ceil(60/8), columns 16/8 to ceil(100/8);
# two-stage detectors begin at stride 4. SSD resizes both to 320 x 320 and begins at stride 16.
RESIZED = {"frame": (128, 128), "box": [16.0, 24.0, 100.0, 60.0]}
ONE_STAGE = RESIZED | {"map_size": (16, 16), "rows": (3, 8), "columns": (2, 13)}
TWO_STAGE = RESIZED | {"map_size": (32, 32), "rows": (6, 15), "columns": (4, 25)}
SSD = {
    "frame": (320, 320),
    "box": [40.0, 80.0, 250.0, 200.0],
    "map_size": (20, 20),
    "rows": (5, 13),
    "columns": (2, 16),
}
QUICK = {"steps": 5, "lr": 1e-4, "share": 1.0}
SLOW = {"steps": 7, "lr": 3e-4, "share": 3.0}  # batch statistics over maps of one pixel
RPN = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
P2_TO_P5 = [f"backbone.fpn.layer_blocks.{level}" for level in range(4)]  # not the pooled level: as published
FAMILIES = {
    "retinanet": Family(retinanet, {"classification", "bbox_regression"}, ["backbone.fpn"], ONE_STAGE, QUICK),
    "fcos": Family(fcos, {"classification", "bbox_regression", "bbox_ctrness"}, ["backbone.fpn"], ONE_STAGE, QUICK),
    "faster_rcnn": Family(faster_rcnn, RPN, P2_TO_P5, TWO_STAGE, QUICK),
    "mask_rcnn": Family(mask_rcnn, RPN | {"loss_mask"}, P2_TO_P5, TWO_STAGE, QUICK),
    "ssdlite": Family(ssdlite, {"classification", "bbox_regression"}, ["backbone"], SSD, SLOW),
}


@pytest.fixture
def batch():
    """The two images, with masks."""
    images, targets = two_images()
    masks = [
        torch.zeros(len(t["boxes"]), *i.shape[1:], dtype=torch.uint8) for i, t in zip(images, targets, strict=True)
    ]
    masks[0][0, 12:30, 8:50] = 1
    return images, [{**target, "masks": mask} for target, mask in zip(targets, masks, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(name, batch):
    build, losses, layers, where, training = FAMILIES[name]
    torch.manual_seed(0)
    distiller = make_distiller(build(), build(), training["share"], batch)
    assert type(distiller.adapter) is TorchvisionAdapter
    assert distiller.student_layers == distiller.teacher_layers == layers
    assert_one_box_covers(distiller, batch, **where)
    assert_steps_lower_the_loss(distiller, batch, losses, training["steps"], training["lr"])


@pytest.mark.parametrize("name", FAMILIES)
def test_predictions_and_inheriting(name, batch):
    family = FAMILIES[name]
    torch.manual_seed(0)
    student, teacher = family.build(), family.build()
    report = inherit(student, teacher, verbose=False)
    assert not report.mismatched and not report.skipped
    own = [n for n in student.state_dict() if n not in report.loaded]
    assert own and all(n.startswith("backbone.") for n in own)
    assert not any(".fpn." in n for n in own)
    adapter = adapter_for(student)
    predictions = adapter.predict(student.eval(), batch[0])
    assert len(predictions) == 2 and predictions[0].keys() >= {"boxes", "scores", "labels"}


TOLD = {
    "retinanet": ("one_stage_anchor", 0),
    "fcos": ("one_stage_anchor_free", 0),
    "faster_rcnn": ("two_stage", 1),
    "mask_rcnn": ("two_stage", 1),
    "ssdlite": ("one_stage_anchor", 1),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_frame_without_a_step(name, batch):
    adapter, model = TorchvisionAdapter(), FAMILIES[name].build()
    model.transform.min_size = (60, 72, 84)  # drawn from in training
    assert_the_frame_is_the_steps(adapter, model, batch, resized=True)
    assert (adapter.preset(model), adapter.first_label(model)) == TOLD[name]


def test_parts_of_a_detector_are_refused():
    model = fcos()
    with pytest.raises(TypeError, match="model: expected one of torchvision's detectors, got FCOSHead"):
        adapter_for(model.head).default_layers(model.head)


def test_detectors_of_ones_own_that_derive_from_torchvisions():
    class Mine(detection.FCOS):
        pass

    assert type(adapter_for(Mine(one_stage_backbone(), 5))) is TorchvisionAdapter


def test_targets_that_do_not_fit_the_images(pair, batch):
    images, targets = batch
    for wrong, count in ((None, 0), (targets[:1], 1), (targets * 2, 4)):
        with pytest.raises(ValueError, match=f"targets: expected one dict for each of 2 images, got {count}"):
            TorchvisionAdapter().student_step(pair[0], images, wrong)


def test_a_teacher_of_another_family():
    with pytest.raises(TypeError, match="teacher: expected one of torchvision's detectors, got Linear"):
        TorchvisionAdapter().check_pair(fcos(), nn.Linear(1, 1))


def test_ssd300_is_tapped_at_all_of_its_levels():
    """Its last convolutions have no padding: a small blank image would not pass them."""
    model = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=5)
    layers = TorchvisionAdapter().default_layers(model)
    assert probe_channels(model, layers, TorchvisionAdapter()) == [512, 1024, 512, 256, 256, 256]
