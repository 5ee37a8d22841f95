"""COCO metrics of boxes and instance masks by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import box_convert

from ..errors import FGDRuntimeError, FGDValueError
from ..processes import gather
from .labels import CategoryLabels

# In the order of COCOeval.stats: average precision over IoU 0.50:0.95, at 0.50, at 0.75, by object area (small below
# 32 x 32 pixels, large above 96 x 96), then average recall with 1, 10 and 100 detections an image and by object area.
METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR",
    "AR_small",
    "AR_medium",
    "AR_large",
)
MASK_METRICS = tuple(f"{name}_mask" for name in METRICS)
MASK_THRESHOLD = 0.5  # of the probability that a pixel belongs to an instance


class CocoEvaluator:
    """Collects predictions of one pass over a data set and computes its COCO metrics, over all processes.

    Args:
        ground_truth: the annotations, as ``CocoFolder.coco`` holds them.
        masks: whether to compute the metrics of instance masks, too; predictions then need ``masks``.
        labels: what the predictions' labels stand for; None: they are category ids.
    """

    def __init__(self, ground_truth: COCO, masks: bool = False, labels: CategoryLabels | None = None) -> None:
        self.ground_truth, self.masks, self.labels = ground_truth, masks, labels
        self.reset()

    category_ap: dict[str, float]
    """After ``compute``: AP of boxes, in percent, by the category's name; nan for one without objects."""

    def reset(self) -> None:
        """Forgets all predictions."""
        self._results: dict[int, list[dict[str, Any]]] = {}
        self.category_ap = {}

    def update(self, predictions: Sequence[Mapping[str, Tensor]], image_ids: Sequence[int]) -> None:
        """Adds the detections of some images.

        Args:
            predictions: one mapping an image: ``boxes`` (k, 4) xyxy in pixels of the image as stored on disk,
                ``scores`` (k,), ``labels`` (k,); with masks also ``masks`` (k, 1, H, W), probabilities.
            image_ids: the images' COCO ids.

        Raises:
            ValueError: the lengths differ, the annotations do not have an image, or masks are missing.
        """
        if len(predictions) != len(image_ids):
            raise FGDValueError(f"expected one image id a prediction, got {len(image_ids)} for {len(predictions)}")
        for prediction, image_id in zip(predictions, image_ids, strict=True):
            if image_id not in self.ground_truth.imgs:
                raise FGDValueError(f"image_id: expected an image of the annotation file, got {image_id}")
            if self.masks and "masks" not in prediction:
                raise FGDValueError(f"predictions: expected masks for the metrics of masks, got {sorted(prediction)}")
            # By id: a distributed sampler repeats images to fill the last batch, which must not count twice.
            self._results[int(image_id)] = coco_results(int(image_id), prediction, self.labels)

    def compute(self) -> dict[str, float]:
        """The metrics named in ``METRICS``, and with masks in ``MASK_METRICS``, over the images seen, in percent.

        Metrics without any object (no large ones, say) are nan.
        """
        results = gather(self._results)
        if not results:
            raise FGDRuntimeError("no image was evaluated: call update() before compute()")
        flat = [detection for detections in results.values() for detection in detections]
        metrics = dict(zip(METRICS, self._evaluate("bbox", flat, sorted(results)), strict=True))
        if self.masks:
            # Without their boxes: pycocotools would sort masks into small, medium and large by the boxes' areas.
            flat = [{key: value for key, value in detection.items() if key != "bbox"} for detection in flat]
            metrics |= dict(zip(MASK_METRICS, self._evaluate("segm", flat, sorted(results)), strict=True))
        return metrics

    def _evaluate(self, kind: str, results: list[dict[str, Any]], image_ids: list[int]) -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and its table
            evaluation = COCOeval(self.ground_truth, _detections(self.ground_truth, results), kind)
            evaluation.params.imgIds = image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        if kind == "bbox":
            self.category_ap = self._by_category(evaluation)
        # COCOeval marks a metric without objects by -1.
        return [float("nan") if value < 0 else 100 * float(value) for value in evaluation.stats]

    def _by_category(self, evaluation: COCOeval) -> dict[str, float]:
        # (IoU thresholds, recall thresholds, categories, areas, detections an image): all areas, most detections
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        names = [self.ground_truth.cats[category]["name"] for category in evaluation.params.catIds]
        if len(set(names)) < len(names):
            names = [f"{name} ({category})" for name, category in zip(names, evaluation.params.catIds, strict=True)]
        return {
            name: 100 * float(values.mean()) if (values := precision[:, :, index]).min() >= 0 else float("nan")
            for index, name in enumerate(names)
        }


def coco_results(
    image_id: int, prediction: Mapping[str, Tensor], labels: CategoryLabels | None = None
) -> list[dict[str, Any]]:
    """One image's detections in COCO's result format: xywh boxes, and the run lengths of masks if there are any.

    Args:
        image_id: the image's COCO id.
        prediction: as for ``CocoEvaluator.update``.
        labels: what labels stand for; None: they are category ids.

    Returns:
        one dict a detection; those whose label stands for no category are left out.
    """
    labels = CategoryLabels([]) if labels is None else labels
    boxes = box_convert(prediction["boxes"].detach().float().cpu(), "xyxy", "xywh").tolist()
    found = [labels.category(int(label)) for label in prediction["labels"].tolist()]
    rows = zip(boxes, prediction["scores"].tolist(), found, strict=True)
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score} for box, score, category in rows
    ]
    if "masks" in prediction:
        for result, mask in zip(results, prediction["masks"], strict=True):
            result["segmentation"] = _encode(mask[0] > MASK_THRESHOLD)
    return [result for result in results if result["category_id"] is not None]


def _encode(mask: Tensor) -> dict[str, Any]:
    encoded = run_lengths.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def _detections(ground_truth: COCO, results: list[dict[str, Any]]) -> COCO:
    if results:
        return ground_truth.loadRes(results)
    nothing = COCO()  # loadRes does not take an empty list; a detector that finds nothing has an AP of 0, not an error
    nothing.dataset = {**ground_truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing
