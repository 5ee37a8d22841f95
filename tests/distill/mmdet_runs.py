"""Short trainings by MMEngine's Runner: tiny COCO files of digits, and the shipped configurations made small."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

SIZE = 64  # pixels, of images
CHANNELS = 16  # of necks and heads
NORM = {"type": "GN", "num_groups": 4, "requires_grad": True}


def write_digits(folder: Path, train: int = 4, val: int = 2) -> Path:
    """COCO files train.json and val.json: in each image two of sklearn's digits, 24 pixels large, as polygons."""
    generator, digits = np.random.default_rng(0), load_digits()
    for name, count in (("train", train), ("val", val)):
        images, annotations = [], []
        (folder / name).mkdir(parents=True)
        for index in range(1, count + 1):
            canvas = generator.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
            for left in (4, 36):
                digit, top = generator.integers(len(digits.images)), int(generator.integers(0, SIZE - 24))
                canvas[top : top + 24, left : left + 24] += (
                    (digits.images[digit] * 12).astype(np.uint8)[:, :, None].repeat(3, 0).repeat(3, 1)
                )
                right, bottom = left + 24, top + 24
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": int(digits.target[digit]) + 1,
                        "bbox": [left, top, 24, 24],
                        "area": 576,
                        "iscrowd": 0,
                        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    }
                )
            Image.fromarray(canvas).save(folder / name / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "width": SIZE, "height": SIZE})
        categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def shrink_model(model, depth: int) -> None:
    """Fewer layers and channels, ten classes, and torchvision's RoI pooling, whose gradient is built.

    Args:
        model: a detector's config.
        depth: of the backbone; 50, ResNeXt's smallest, has four times the channels of 18.
    """
    backbone = model.backbone
    backbone.update(depth=depth, base_channels=CHANNELS, init_cfg=None)
    if backbone.type == "ResNeXt":
        backbone.update(groups=4, base_width=4)
    _shrink(model)
    width = CHANNELS * (4 if depth == 50 else 1)
    model.neck.in_channels = [width * 2**stage for stage in range(4)]
    if model.neck.get("norm_cfg"):
        model.neck.norm_cfg = NORM
    if model.get("bbox_head") and model.bbox_head.type != "RetinaHead":
        model.bbox_head.norm_cfg = NORM


WIDTHS = ("in_channels", "out_channels", "feat_channels", "point_feat_channels", "conv_out_channels", "fc_out_channels")
SMALL = dict.fromkeys(WIDTHS, CHANNELS)
SMALL |= {"num_classes": 10, "stacked_convs": 1, "num_convs": 1, "nms_pre": 100, "max_per_img": 20, "num": 16}
SMALL |= {"score_thr": 0.0}  # untrained detectors are sure of nothing


def _shrink(part) -> None:
    if isinstance(part, list | tuple):
        for inner in part:
            _shrink(inner)
    elif isinstance(part, dict):
        for name, value in part.items():
            if name in SMALL and isinstance(value, int | float):
                part[name] = SMALL[name]
            else:
                _shrink(value)
        if part.get("type") == "RoIAlign":
            part["use_torchvision"] = True


def shrink_data(config, data: Path) -> None:
    """The digits, one small size, no chance in the pipeline, no loader processes."""
    for name in ("train", "val", "test"):
        files = "train" if name == "train" else "val"
        loader = config[f"{name}_dataloader"]
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=str(data),
            ann_file=f"{files}.json",
            data_prefix={"img": f"{files}/"},
            metainfo={"classes": tuple("0123456789")},
        )
        for step in loader.dataset.pipeline:
            if step["type"] in ("Resize", "RandomChoiceResize"):
                step.update({"scale": (SIZE, SIZE)} if step["type"] == "Resize" else {"scales": [(SIZE, SIZE)]})
            if step["type"] == "RandomFlip":
                step["prob"] = 0.0
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = str(data / "val.json")


def shrink_run(config, folder: Path, epochs: int = 1) -> None:
    config.work_dir, config.experiment_name = str(folder / "run"), f"{folder.name}_{epochs}"
    config.train_cfg.max_epochs = epochs
    config.default_hooks.logger.interval = 1
    config.randomness = {"seed": 0}


def small_config(path: str, data: Path, folder: Path, epochs: int = 1):
    """A shipped configuration, made small, with a checkpoint of random weights for the teacher.

    Args:
        path: the configuration.
        data: of ``write_digits``.
        folder: for the checkpoint and the run.
        epochs: of two iterations each.
    """
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.hub import get_config

    config = Config.fromfile(path)
    config.model.teacher = get_config(config.model.teacher).model
    depth = 50 if config.model.teacher.backbone.type == "ResNeXt" else 18
    for model in (config.model, config.model.teacher):
        shrink_model(model, depth)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    teacher = folder / "teacher.pth"
    if not teacher.exists():
        model = MODELS.build(config.model.teacher)
        model.init_weights()
        torch.save({"state_dict": model.state_dict(), "meta": {}}, teacher)
    config.model.teacher_checkpoint = str(teacher)
    shrink_data(config, data)
    shrink_run(config, folder, epochs)
    return config


def plain_model(config):
    """The student's own config, of one that was laid over it."""
    from mmengine.config import ConfigDict

    model = config.model.to_dict()
    own = {"teacher", "teacher_checkpoint", "inherit", "distillation", "student"}
    return ConfigDict({name: value for name, value in model.items() if name not in own}, type=model["student"])
