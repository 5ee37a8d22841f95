"""MMDetection 3 from configs: training steps, frame, predictions and its own batches.

mmcv's compiled operators are torchvision's, as mmcv_operators.py says.
"""

import pytest
import torch
from adapter_checks import (
    assert_one_box_covers,
    assert_steps_lower_the_loss,
    assert_the_frame_is_the_steps,
    make_distiller,
    two_images,
)
from mmcv_operators import use_mmdet

from fgd_distill.adapters import adapter_for
from fgd_distill.adapters.mmdet import MMDetectionAdapter
from fgd_distill.inheriting import inherit

PREPROCESSOR = {
    "type": "DetDataPreprocessor",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "bgr_to_rgb": True,
    "pad_size_divisor": 32,
}
ASSIGNER = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0, "ignore_iof_thr": -1}
NMS = {"type": "nms", "iou_threshold": 0.5}
TEST = {"nms_pre": 100, "min_bbox_size": 0, "score_thr": 0.0, "nms": NMS, "max_per_img": 50}
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
CODER = {"type": "DeltaXYWHBBoxCoder"}


@pytest.fixture(scope="module", autouse=True)
def mmdet():
    use_mmdet()


def build(config: dict, **changes):
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    model = MODELS.build(ConfigDict(config | changes))
    model.init_weights()
    return model


def parts(channels: int, start_level: int) -> dict:
    return {
        "data_preprocessor": PREPROCESSOR,
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 16, "norm_cfg": {"type": "BN"}},
        "neck": {
            "type": "FPN",
            "in_channels": [16, 32, 64, 128],
            "out_channels": channels,
            "start_level": start_level,
            "add_extra_convs": "on_output",
            "num_outs": 5,
        },
        "test_cfg": TEST,
    }


def retinanet(channels: int = 16) -> dict:
    head = {
        "type": "RetinaHead",
        "num_classes": 4,
        "in_channels": channels,
        "stacked_convs": 1,
        "feat_channels": channels,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 2,
            "scales_per_octave": 3,
            "ratios": [0.5, 1.0, 2.0],
            "strides": [8, 16, 32, 64, 128],
        },
        "bbox_coder": CODER,
        "loss_cls": FOCAL,
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }
    sampling = {"sampler": {"type": "PseudoSampler"}, "allowed_border": -1, "pos_weight": -1, "debug": False}
    return {
        "type": "RetinaNet",
        **parts(channels, start_level=1),
        "bbox_head": head,
        "train_cfg": {"assigner": ASSIGNER, **sampling},
    }


def fcos(channels: int = 16) -> dict:
    head = {
        "type": "FCOSHead",
        "num_classes": 4,
        "in_channels": channels,
        "stacked_convs": 1,
        "feat_channels": channels,
        "strides": [8, 16, 32, 64, 128],
        "norm_cfg": None,
        "loss_cls": FOCAL,
        "loss_bbox": {"type": "IoULoss", "loss_weight": 1.0},
        "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
    }
    return {"type": "FCOS", **parts(channels, start_level=1), "bbox_head": head}


def faster_rcnn(channels: int = 16) -> dict:
    cross_entropy = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}
    rpn = {
        "type": "RPNHead",
        "in_channels": channels,
        "feat_channels": channels,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [4],
            "ratios": [0.5, 1.0, 2.0],
            "strides": [4, 8, 16, 32, 64],
        },
        "bbox_coder": CODER,
        "loss_cls": cross_entropy,
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }
    roi = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": {
            "type": "SingleRoIExtractor",
            "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0, "use_torchvision": True},
            "out_channels": channels,
            "featmap_strides": [4, 8, 16, 32],
        },
        "bbox_head": {
            "type": "Shared2FCBBoxHead",
            "in_channels": channels,
            "fc_out_channels": 32,
            "roi_feat_size": 7,
            "num_classes": 4,
            "bbox_coder": CODER,
            "loss_cls": cross_entropy | {"use_sigmoid": False},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
    }
    sampler = {"type": "RandomSampler", "num": 16, "pos_fraction": 0.5, "neg_pos_ub": -1, "add_gt_as_proposals": True}
    stage = {"assigner": ASSIGNER, "sampler": sampler, "allowed_border": -1, "pos_weight": -1, "debug": False}
    proposals = {"nms_pre": 50, "max_per_img": 20, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}
    return {
        "type": "FasterRCNN",
        **parts(channels, start_level=0),
        "rpn_head": rpn,
        "roi_head": roi,
        "train_cfg": {"rpn": stage, "rpn_proposal": proposals, "rcnn": stage},
        "test_cfg": {"rpn": proposals, "rcnn": {"score_thr": 0.0, "nms": NMS, "max_per_img": 50}},
    }


def mask_rcnn(channels: int = 16) -> dict:
    config = faster_rcnn(channels)
    extractor = config["roi_head"]["bbox_roi_extractor"]
    roi = {
        "mask_roi_extractor": extractor | {"roi_layer": extractor["roi_layer"] | {"output_size": 14}},
        "mask_head": {
            "type": "FCNMaskHead",
            "num_convs": 1,
            "in_channels": channels,
            "conv_out_channels": channels,
            "num_classes": 4,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        },
    }
    train, test = config["train_cfg"], config["test_cfg"]
    return config | {
        "type": "MaskRCNN",
        "roi_head": config["roi_head"] | roi,
        "train_cfg": train | {"rcnn": train["rcnn"] | {"mask_size": 28}},
        "test_cfg": test | {"rcnn": test["rcnn"] | {"mask_thr_binary": 0.5}},
        "data_preprocessor": PREPROCESSOR | {"pad_mask": True},
    }


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return build(retinanet()), build(retinanet(32))


@pytest.mark.parametrize(
    ("config", "own", "stride"),
    [
        (retinanet, {"loss_cls", "loss_bbox"}, 8),
        (fcos, {"loss_cls", "loss_bbox", "loss_centerness"}, 8),
        (faster_rcnn, {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}, 4),
    ],
)
def test_training_steps_lower_the_loss_and_boxes_share_the_maps_frame(config, own, stride):
    torch.manual_seed(0)
    distiller = make_distiller(build(config()), build(config(32)))
    # As published: all maps of a one-stage detector, P2 to P5 of a two-stage one.
    layers = ["neck"] if "roi_head" not in config() else [f"neck.fpn_convs.{level}" for level in range(4)]
    assert isinstance(distiller.adapter, MMDetectionAdapter) and distiller.student_layers == layers
    # Padded to multiples of 32. Rows 12/8 to ceil(30/8), columns 8/8 to ceil(50/8); at stride 4: 12/4, 30/4, 8/4, 50/4.
    size, rows, columns = ((8, 8), (1, 4), (1, 7)) if stride == 8 else ((16, 16), (3, 8), (2, 13))
    assert_one_box_covers(distiller, two_images(), (64, 64), [8.0, 12.0, 50.0, 30.0], size, rows, columns)
    assert_steps_lower_the_loss(distiller, two_images(), own, steps=10)


@pytest.mark.parametrize("config", [retinanet, fcos])  # the one returns lists of losses, the other tensors
def test_the_batch_is_what_its_own_loader_would_give(config):
    """MMDetection loads BGR in 0..255; losses and batch are the same, given so or as this package's data."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    student, adapter = build(config()).train(), MMDetectionAdapter()
    pixels = [
        torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8),
        torch.randint(0, 256, (3, 60, 48), dtype=torch.uint8),
    ]
    _, targets = two_images()
    ours = adapter.student_step(student, [image / 255 for image in pixels], targets)
    samples = []
    for image, target in zip(pixels, targets, strict=True):
        size = tuple(image.shape[1:])
        sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=target["boxes"], labels=target["labels"])
        samples.append(sample)
    loaded = {"inputs": [image.flip(0) for image in pixels], "data_samples": samples}
    theirs = adapter.student_step(student, loaded, None)
    torch.testing.assert_close(ours.batch, theirs.batch)
    torch.testing.assert_close(ours.losses, theirs.losses)
    torch.testing.assert_close(ours.boxes, theirs.boxes)
    data = student.data_preprocessor(loaded, training=True)
    total, _ = student.parse_losses(student(**data, mode="loss"))
    torch.testing.assert_close(sum(ours.losses.values()), total)


def test_boxes_follow_a_batch_that_is_resized_inside():
    """YOLOX resizes the whole batch in its preprocessor; the targets that came in stay as they are."""
    from mmengine.logging import MessageHub

    augment = {"type": "BatchSyncRandomResize", "random_size_range": (96, 128), "interval": 1000}
    config = retinanet() | {"data_preprocessor": PREPROCESSOR | {"batch_augments": [augment]}}
    student = build(config).train()
    student.data_preprocessor.batch_augments[0]._input_size = (96, 128)  # as it draws in the course of training
    MessageHub.get_current_instance().update_info("iter", 0)
    images, targets = two_images()
    step = MMDetectionAdapter().student_step(student, images, targets)
    assert step.batch.shape == (2, 3, 96, 128)
    assert step.boxes[0].tolist() == [[16.0, 18.0, 100.0, 45.0]]
    assert targets[0]["boxes"].tolist() == [[8.0, 12.0, 50.0, 30.0]]


@pytest.mark.parametrize("config", [retinanet, faster_rcnn])
def test_predictions_are_those_of_its_own_test_step(config):
    torch.manual_seed(0)
    student = build(config()).eval()
    pixels = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    (ours,) = MMDetectionAdapter().predict(student, [pixels / 255])
    from mmdet.structures import DetDataSample

    size = {"img_shape": (48, 64), "ori_shape": (48, 64), "scale_factor": (1.0, 1.0)}
    with torch.no_grad():
        (theirs,) = student.test_step({"inputs": [pixels.flip(0)], "data_samples": [DetDataSample(metainfo=size)]})
    found = theirs.pred_instances
    assert len(found) > 10
    expected = {"boxes": found.bboxes, "scores": found.scores, "labels": found.labels}
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_neck_and_head_are_inherited():
    torch.manual_seed(0)
    student, teacher = build(faster_rcnn()), build(faster_rcnn())
    report = inherit(student, teacher)
    assert not report.mismatched and not report.skipped
    assert {name.split(".")[0] for name in report.loaded} == {"neck", "rpn_head", "roi_head"}


FAMILIES = [(retinanet, "one_stage_anchor"), (fcos, "one_stage_anchor_free"), (faster_rcnn, "two_stage")]


@pytest.mark.parametrize(("config", "preset"), FAMILIES)
def test_the_frame_without_a_step(config, preset):
    adapter, model = MMDetectionAdapter(), build(config())
    for made in (model, build(config(), data_preprocessor=PREPROCESSOR | {"bgr_to_rgb": False})):
        assert_the_frame_is_the_steps(adapter, made, two_images())
    assert (adapter.preset(model), adapter.first_label(model)) == (preset, 0)


def test_the_frame_without_a_step_where_the_preprocessor_counts_and_resizes():
    from mmengine.logging import MessageHub

    augment = {"type": "BatchSyncRandomResize", "random_size_range": (96, 128), "interval": 1}
    plain = {"bgr_to_rgb": False, "batch_augments": [augment]}
    model = build(retinanet() | {"data_preprocessor": PREPROCESSOR | plain})
    MessageHub.get_current_instance().update_info("iter", 0)
    assert_the_frame_is_the_steps(MMDetectionAdapter(), model, two_images(), resized=True)


def test_models_without_a_box_head_are_refused():
    model = build(retinanet())
    model.bbox_head, model.mask_head = None, model.bbox_head
    images, targets = two_images()
    with pytest.raises(TypeError, match="model: expected a box head, which RetinaNet has not.*own batch"):
        MMDetectionAdapter().student_step(model, images, targets)
    with pytest.raises(TypeError, match="model: expected a detector of mmdet.models, got ResNet"):
        MMDetectionAdapter().default_layers(model.backbone)


def test_masks_come_with_images_and_targets():
    """A detector with a mask head learns and predicts masks; without masks the message says where they come from."""
    torch.manual_seed(0)
    student, teacher = build(mask_rcnn()), build(mask_rcnn())
    images, targets = two_images()
    masks = [
        torch.zeros(len(t["boxes"]), *i.shape[1:], dtype=torch.uint8) for i, t in zip(images, targets, strict=True)
    ]
    masks[0][0, 12:30, 8:50] = 1
    batch = images, [target | {"masks": mask} for target, mask in zip(targets, masks, strict=True)]
    distiller = make_distiller(student, teacher, batch=batch)
    own = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    assert_steps_lower_the_loss(distiller, batch, own, steps=10, since=2)
    assert_the_frame_is_the_steps(distiller.adapter, student, batch)
    for found, image in zip(distiller.adapter.predict(student.eval(), images), images, strict=True):
        assert found["masks"].shape == (len(found["scores"]), 1, *image.shape[1:]) and len(found["scores"]) > 0
        assert found["masks"].unique().tolist() in ([0.0, 1.0], [0.0], [1.0])
    with pytest.raises(ValueError, match=r"targets\[0\]: expected masks for MaskRCNN, got .*with_masks"):
        distiller.train()(images, targets)
    assert len(distiller.adapter.frame(student, images, targets).boxes) == 2, "a frame needs none"


def test_wrong_input_is_told(pair):
    student, teacher = pair
    adapter = adapter_for(student)
    images, targets = two_images()
    with pytest.raises(ValueError, match=r"targets\[0\].*labels from 0 to 3, got 4 to 4"):
        adapter.student_step(student, images, [targets[0] | {"labels": torch.tensor([4])}, targets[1]])
    with pytest.raises(TypeError, match="teacher: expected a detector of mmdet.models, got ResNet"):
        adapter.check_pair(student, teacher.backbone)
    with pytest.raises(ValueError, match="data_preprocessor.*'swaps_channels': True.*'swaps_channels': False"):
        adapter.check_pair(student, build(retinanet(), data_preprocessor=PREPROCESSOR | {"bgr_to_rgb": False}))
