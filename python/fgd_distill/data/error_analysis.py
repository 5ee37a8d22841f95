"""What keeps a detector from precision 1: COCO's analysis of errors, after Hoiem et al. (the paper's figure 6).

Seven precision-recall curves, each more forgiving than the one before it (CocoEval.analyze of the COCO API):

    C75   detections count at an IoU of 0.75
    C50   at 0.5
    Loc   at 0.1: errors of localisation are forgiven
    Sim   and those on objects of another category of the same supercategory
    Oth   and those on objects of any other category
    BG    1 as far as Oth has any precision: false positives on the background are forgiven, too
    FN    1: everything is found

A forgiven detection is left out: it matched an object that is ignored, which serves one detection, as any other. The
area under a curve minus the one before it is what that kind of error costs.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

KINDS = ("C75", "C50", "Loc", "Sim", "Oth", "BG", "FN")
SIZES = ("all", "small", "medium", "large")
LOOSE = 0.1  # the IoU from which on a detection is on an object at all
Array = np.ndarray


@dataclass(frozen=True)
class ErrorCurves:
    """The curves of one set of detections.

    Args:
        recall: (R,), the recalls at which precision is taken, 0 to 1.
        precision: (7, R, K, 4), by ``KINDS``, recall, category and ``SIZES``; nan where a category has no object of
            that size. (COCO's own script counts these as 0 in its means; AP leaves them out, and so do we.)
        categories: K names.
        supercategories: K names, '' for categories without one.
    """

    recall: Array
    precision: Array
    categories: Sequence[str]
    supercategories: Sequence[str]

    def groups(self) -> dict[tuple[str, str], list[int]]:
        """The categories' indices by kind and name of group: 'all', then each supercategory, then each category."""
        found: dict[tuple[str, str], list[int]] = {("all", "all"): list(range(len(self.categories)))}
        for index, name in enumerate(self.supercategories):
            if name:
                found.setdefault(("supercategory", name), []).append(index)
        return found | {("category", name): [index] for index, name in enumerate(self.categories)}

    def curves(self, members: Sequence[int]) -> Array:
        """(7, R, 4): the mean curves of some categories; nan where none has objects."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            return np.nanmean(self.precision[:, :, members], axis=2)

    def areas(self, members: Sequence[int]) -> Array:
        """(7, 4): the areas under them, 0 to 1."""
        return self.curves(members).mean(axis=1)


def error_curves(ground_truth: COCO, detections: COCO) -> ErrorCurves:
    """The analysis of boxes, 100 an image, over all images of the annotations.

    Args:
        ground_truth: the annotations.
        detections: as ``ground_truth.loadRes`` gives them.
    """
    categories = [ground_truth.cats[category] for category in sorted(ground_truth.getCatIds())]
    strict = _evaluated(COCOeval(ground_truth, detections, "bbox"), [0.75, 0.5, LOOSE])
    precision = np.zeros((len(KINDS), *strict.shape[1:]))
    precision[:3] = strict
    for index, category in enumerate(categories):
        own = category["id"]
        related = {other["id"] for other in categories if _supercategory(other) == _supercategory(category)}
        related = related if _supercategory(category) else {own}
        for row, others in ((3, related), (4, {other["id"] for other in categories})):
            precision[row, :, index] = _evaluated(_Forgiving(ground_truth, detections, own, others), [LOOSE])[0, :, 0]
    precision[5] = precision[4] > 0
    precision[6] = 1.0
    precision[:, :, (strict < 0).any(axis=(0, 1))] = np.nan
    names = _names(categories)
    return ErrorCurves(np.linspace(0, 1, 101), precision, names, [_supercategory(category) for category in categories])


def _evaluated(evaluation: COCOeval, thresholds: Sequence[float]) -> Array:
    """(T, R, K, 4): precision by IoU threshold, recall, category and size; -1 without objects."""
    evaluation.params.iouThrs, evaluation.params.maxDets = np.array(thresholds), [100]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]


class _Forgiving(COCOeval):
    """Detections of one category against objects of several; others are ignored, and so is what they match.

    COCOeval's own ``useCats = 0`` would do, but it forgets which objects are to be ignored.
    """

    def __init__(self, ground_truth: COCO, detections: COCO, category: int, others: Collection[int]) -> None:
        super().__init__(ground_truth, detections, "bbox")
        self.category, self.others = category, others
        seen = {annotation["image_id"] for annotation in self._annotations(detections, [category])}
        seen |= {annotation["image_id"] for annotation in self._annotations(ground_truth, [category])}
        # In all other images there is nothing to find and nothing was found.
        self.params.imgIds, self.params.catIds = sorted(seen), [category]

    @staticmethod
    def _annotations(source: COCO, categories: Collection[int], images: Sequence[int] = ()) -> list[dict[str, Any]]:
        return source.loadAnns(source.getAnnIds(imgIds=list(images), catIds=list(categories)))

    def _prepare(self) -> None:
        super()._prepare()
        self._gts.clear()
        if not self.params.imgIds:  # which pycocotools takes for all of them
            return
        for annotation in self._annotations(self.cocoGt, self.others, self.params.imgIds):
            ignored = bool(annotation.get("iscrowd")) or annotation["category_id"] != self.category
            self._gts[annotation["image_id"], self.category].append({**annotation, "ignore": ignored})


def _supercategory(category: Mapping[str, Any]) -> str:
    return str(category.get("supercategory") or "")


def _names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [str(category.get("name", category["id"])) for category in categories]
    repeated = {name for name in names if names.count(name) > 1}
    return [
        f"{name} ({category['id']})" if name in repeated else name
        for name, category in zip(names, categories, strict=True)
    ]
