"""torchvision's detectors: real training steps on random weights, and boxes in the frame of the feature maps."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import fgd_kernels as fgd
from fgd_distill.adapters import TorchvisionAdapter, adapter_for, probe_channels
from fgd_distill.distiller import DetectionDistiller
from fgd_distill.inheriting import inherit
from fgd_kernels import reference
from fgd_kernels.modules import PRESETS

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


@dataclass
class Family:
    """A detector and what its distillation must look like on the two images of ``batch``.

    Args:
        build: makes it with random weights.
        losses: names of its own losses.
        layer: what is tapped if no layer is named.
        frame: height and width of the padded batch, in pixels.
        box: the first image's box in that frame.
        map_size: height and width of the first feature map.
        covered: rows and columns of that map which the box covers, first and last.
        scale: of the loss's weights, so that it is of the size of the detector's own.
    """

    build: Callable[..., nn.Module]
    losses: set[str]
    layer: str
    frame: tuple[int, int]
    box: list[float]
    map_size: tuple[int, int]
    covered: tuple[int, int, int, int]
    scale: float = 0.3  # a random teacher's maps differ far more from the student's than a trained one's


# The first image of 48 x 64 pixels is resized by 2 to 96 x 128, the second of 60 x 48 by 2 to 120 x 96; the batch is
# padded to multiples of 32: 128 x 128. At stride 8 the box covers rows 24/8 to ceil(60/8), columns 16/8 to ceil(100/8);
# two-stage detectors begin at stride 4. SSD resizes both to 320 x 320 and begins at stride 16.
RESIZED = {"frame": (128, 128), "box": [16.0, 24.0, 100.0, 60.0]}
ONE_STAGE = RESIZED | {"layer": "backbone.fpn", "map_size": (16, 16), "covered": (3, 8, 2, 13)}
TWO_STAGE = RESIZED | {"layer": "backbone.fpn", "map_size": (32, 32), "covered": (6, 15, 4, 25)}
RPN_LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
FAMILIES = {
    "retinanet": Family(retinanet, {"classification", "bbox_regression"}, **ONE_STAGE),
    "fcos": Family(fcos, {"classification", "bbox_regression", "bbox_ctrness"}, **ONE_STAGE),
    "faster_rcnn": Family(faster_rcnn, RPN_LOSSES, **TWO_STAGE),
    "mask_rcnn": Family(mask_rcnn, RPN_LOSSES | {"loss_mask"}, **TWO_STAGE),
    "ssdlite": Family(
        ssdlite,
        {"classification", "bbox_regression"},
        layer="backbone",
        frame=(320, 320),
        box=[40.0, 80.0, 250.0, 200.0],
        map_size=(20, 20),
        covered=(5, 13, 2, 16),
        scale=5.0,
    ),
}


@pytest.fixture
def batch():
    """Two images of different size, the first with one box and its mask, the second with none."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 48, 64, generator=generator), torch.rand(3, 60, 48, generator=generator)]
    mask = torch.zeros(1, 48, 64, dtype=torch.uint8)
    mask[:, 12:30, 8:50] = 1
    targets = [
        {"boxes": torch.tensor([[8.0, 12.0, 50.0, 30.0]]), "labels": torch.tensor([2]), "masks": mask},
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 60, 48, dtype=torch.uint8),
        },
    ]
    return images, targets


def make_distiller(family: Family) -> DetectionDistiller:
    torch.manual_seed(0)
    student, teacher = family.build(), family.build()
    layers = TorchvisionAdapter().default_layers(student)
    channels = probe_channels(student, layers, TorchvisionAdapter())
    weights = {name: family.scale * value for name, value in PRESETS["two_stage"].items()}
    criterion = fgd.FGDLoss(channels, channels, **(weights | {"temperature": 2.0}))
    return DetectionDistiller(student, teacher, criterion)


@pytest.mark.parametrize("name", FAMILIES)
def test_boxes_share_the_frame_of_the_feature_maps(name, batch):
    family = FAMILIES[name]
    distiller = make_distiller(family)
    assert type(distiller.adapter) is TorchvisionAdapter
    assert distiller.student_layers == distiller.teacher_layers == [family.layer]
    step, student, teacher, frames = distiller.features(*batch)
    assert frames == [family.frame] * 2 and step.batch.shape == (2, 3, *family.frame)
    assert step.boxes[0].tolist() == [pytest.approx(family.box)] and step.boxes[1].shape == (0, 4)
    assert [s.shape for s in student] == [t.shape for t in teacher]
    assert student[0].shape[-2:] == family.map_size
    packed = fgd.pack_boxes(step.boxes, frames, device="cpu")
    foreground = reference.foreground_mask(packed.values, packed.offsets, packed.sizes, *family.map_size) > 0
    top, bottom, left, right = family.covered
    expected = torch.zeros(2, *family.map_size, dtype=torch.bool)
    expected[0, top : bottom + 1, left : right + 1] = True
    assert torch.equal(foreground, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_steps_lower_the_loss(name, batch):
    family = FAMILIES[name]
    distiller = make_distiller(family)
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-4)
    distiller.check_optimizer(optimizer)
    history = []
    for _ in range(4):
        torch.manual_seed(1)  # two-stage detectors draw samples of their proposals
        losses = distiller(*batch)
        assert losses.keys() == family.losses | set(fgd.LOSS_NAMES)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    silent = [n for n, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    for terms in (family.losses, fgd.LOSS_NAMES):
        first, last = (sum(step[name] for name in terms) for step in (history[0], history[-1]))
        assert last < first, terms  # so neither is nan


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


def test_detectors_of_ones_own_that_derive_from_torchvisions():
    class Mine(detection.FCOS):
        pass

    assert type(adapter_for(Mine(one_stage_backbone(), 5))) is TorchvisionAdapter


def test_a_teacher_of_another_family():
    with pytest.raises(TypeError, match="teacher: expected one of torchvision's detectors, got Linear"):
        TorchvisionAdapter().check_pair(fcos(), nn.Linear(1, 1))


def test_ssd300_is_tapped_at_all_of_its_levels():
    """Its last convolutions have no padding: a small blank image would not pass them."""
    model = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=5)
    layers = TorchvisionAdapter().default_layers(model)
    assert probe_channels(model, layers, TorchvisionAdapter()) == [512, 1024, 512, 256, 256, 256]
