"""MMDetection 3 (package ``mmdet``, or its maintained fork ``onedl-mmdetection``)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FGDTypeError, FGDValueError
from .base import DetectorAdapter, Frame, StudentStep
from .batches import check_images, check_same_normalisation, check_targets, detection
from .presets import preset_by_name


class MMDetectionAdapter(DetectorAdapter):
    """Detectors of ``mmdet.models``, built by ``MODELS.build(config.model)``.

    Their ``data_preprocessor`` normalises and pads, and may resize; what leaves it is the frame. Images are handed to
    it as MMDetection's loader does: BGR, in 0..255, not yet padded. Labels count from 0. A detector with masks needs
    ``masks`` (n_i, H_i, W_i) in the targets, too, and predicts them. ``images`` may also be what MMDetection's own data
    loader yields (a dict with ``inputs`` and ``data_samples``), with ``targets`` None.
    """

    def neck_and_head(self, model: Any) -> Sequence[str]:
        return [name for name, _ in model.named_children() if name not in ("data_preprocessor", "backbone")]

    def default_layers(self, model: Any) -> list[str]:
        """The neck: of one-stage detectors all levels, of two-stage ones with an FPN, as published, those that are not
        pooled from another. Without a neck, the backbone."""
        _check("model", model)
        if not model.with_neck:
            return ["backbone"]
        if getattr(model, "with_roi_head", False) and hasattr(model.neck, "fpn_convs"):
            return [f"neck.fpn_convs.{level}" for level in range(len(model.neck.lateral_convs))]
        return ["neck"]

    def check_pair(self, student: Any, teacher: Any) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            _check(role, model)
        check_same_normalisation("data_preprocessor", _normalisation(student), _normalisation(teacher))

    def student_step(self, student: Any, images: Any, targets: Any) -> StudentStep:
        if isinstance(images, Mapping):
            data = dict(images)
        else:
            data = _pack(student, images, targets)
            _check_masks(student, targets)
        return self.prepared_step(_preprocessor(student)(data, training=True), student.loss)

    def prepared_step(self, data: Mapping[str, Any], losses: Callable[[Tensor, Any], Mapping[str, Any]]) -> StudentStep:
        """A step on what left the preprocessor, ``inputs`` and ``data_samples``; ``losses`` gives their losses."""
        batch, boxes = _frame(data)
        return StudentStep(_scalars(losses(batch, data["data_samples"])), batch, boxes)

    def run_backbone(self, model: Any, batch: Tensor) -> Any:
        return model.extract_feat(batch)

    @torch.no_grad()
    def predict(self, model: Any, images: Any) -> list[dict[str, Tensor]]:
        """With the thresholds of the model's ``test_cfg``."""
        data = _preprocessor(model)(_pack(model, images, None), training=False)
        samples = model.predict(data["inputs"], data["data_samples"])
        return [_detection(sample.pred_instances, image) for sample, image in zip(samples, images, strict=True)]

    def preset(self, model: Any) -> str | None:
        if getattr(model, "with_roi_head", False):
            return "two_stage"
        priors = getattr(getattr(model, "bbox_head", None), "prior_generator", None)
        return {"AnchorGenerator": "one_stage_anchor", "MlvlPointGenerator": "one_stage_anchor_free"}.get(
            type(priors).__name__, preset_by_name(model)
        )

    def frame(self, model: Any, images: Any, targets: Any) -> Frame:
        # By a copy: some count their calls, to change size after every so many.
        preprocessor = copy.deepcopy(_preprocessor(model))
        return _frame(preprocessor(_pack(model, images, targets), training=True))

    def picture(self, model: Any, batch: Tensor) -> Tensor:
        told, batch = _normalisation(model), batch.detach().float()
        if told["mean"] is not None:
            mean, std = (batch.new_tensor(told[name]).view(-1, 1, 1) for name in ("mean", "std"))
            batch = batch * std + mean
        return (batch if told["swaps_channels"] else batch.flip(1)).div(255).clamp(0, 1)


def _check(role: str, model: Any) -> None:
    if not hasattr(model, "extract_feat") or not hasattr(model, "data_preprocessor"):
        raise FGDTypeError(f"{role}: expected a detector of mmdet.models, got {type(model).__name__}")


def _frame(data: Mapping[str, Any]) -> Frame:
    """Of what leaves the preprocessor, and not before: it may have scaled the boxes with the images."""
    return Frame(data["inputs"], [_plain(sample.gt_instances.bboxes) for sample in data["data_samples"]])


def _normalisation(model: Any) -> dict[str, Any]:
    """What the preprocessor does to a pixel; without mean and std it leaves the values alone."""
    own = model.data_preprocessor
    values = {name: getattr(own, name, None) for name in ("mean", "std")}
    return {
        **{name: None if value is None else value.flatten().tolist() for name, value in values.items()},
        "swaps_channels": bool(getattr(own, "_channel_conversion", False)),
    }


def _preprocessor(model: Any) -> Any:
    """The model's preprocessor, told where the model is: moved as part of a larger module, it does not notice."""
    device = next(model.parameters()).device
    return model.data_preprocessor.to(device)


def _pack(model: Any, images: Any, targets: Any) -> dict[str, list[Any]]:
    """Images and targets as MMDetection's data loader yields them; without targets, as for a test."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    inputs, samples = [], []
    for image in check_images(images):
        size = tuple(image.shape[-2:])
        inputs.append(image.flip(0) * 255)
        meta = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}
        samples.append(DetDataSample(metainfo=meta))
    if targets is not None:
        boxes, labels = check_targets(targets, inputs, _classes(model))
        for sample, box, label, target in zip(samples, boxes, labels, targets, strict=True):
            # A copy: the preprocessor scales boxes in place.
            sample.gt_instances = InstanceData(bboxes=box.clone(), labels=label)
            if "masks" in target:
                masks = torch.as_tensor(target["masks"]).to("cpu", torch.uint8).numpy()
                sample.gt_instances.masks = BitmapMasks(masks, *sample.img_shape)
    return {"inputs": inputs, "data_samples": samples}


def _check_masks(model: Any, targets: Any) -> None:
    if getattr(model, "with_mask", False):
        for index, target in enumerate(targets or ()):
            if "masks" not in target:
                raise FGDValueError(
                    f"targets[{index}]: expected masks for {type(model).__name__}, got {sorted(target)}; "
                    "data.with_masks: true reads them"
                )


def _detection(found: Any, image: Tensor) -> dict[str, Tensor]:
    told = detection(found.bboxes, found.scores, found.labels, image)
    return told | {"masks": found.masks[:, None].float()} if "masks" in found else told


def _classes(model: Any) -> int:
    box_head: Any = getattr(model.roi_head if getattr(model, "with_roi_head", False) else model, "bbox_head", None)
    if box_head is None:
        raise FGDTypeError(
            f"model: expected a box head, which {type(model).__name__} has not; give it MMDetection's own batch, a "
            "dict with inputs and data_samples, with targets None"
        )
    # Cascades have a list of heads, all for the same classes.
    first: Any = box_head[0] if isinstance(box_head, nn.ModuleList) else box_head
    return first.num_classes


def _plain(boxes: Any) -> Tensor:
    """(n, 4) xyxy; MMDetection may keep them in a box type of its own."""
    return boxes if isinstance(boxes, Tensor) else boxes.convert_to("hbox").tensor


def _scalars(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """One scalar a loss, as MMEngine's ``parse_losses`` makes them; what is no loss (accuracies) is left out."""
    return {
        name: value.mean() if isinstance(value, Tensor) else torch.stack([part.mean() for part in value]).sum()
        for name, value in losses.items()
        if "loss" in name
    }
