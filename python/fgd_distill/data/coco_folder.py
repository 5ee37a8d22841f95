"""Opening a COCO folder: everything that can be wrong with it is found before the first step, or does not end a run."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import CocoDetection

log = logging.getLogger("fgd_distill.data")


class UnreadableImageError(Exception):
    """An image file that cannot be decoded."""


class CocoImages(CocoDetection):
    """torchvision's dataset, which tells an image that cannot be read from every other error."""

    def _load_image(self, id: int) -> Image.Image:
        try:
            return super()._load_image(id)
        except Exception as error:  # PIL raises a dozen types for files that are cut or damaged
            name = self.coco.imgs[id]["file_name"]
            raise UnreadableImageError(f"{name}: {type(error).__name__}: {error}") from error


def open_coco(images: Path, annotations: Path, masks: bool = False, skip_missing: bool = False) -> CocoImages:
    """Opens a COCO detection json with its images and checks both.

    Args:
        images: the folder of the images.
        annotations: the json.
        masks: whether instance masks are wanted; annotations without a usable one are then left out, and counted.
        skip_missing: leaves out listed images that are not there, and counts them, instead of refusing.

    Raises:
        FileNotFoundError: the folder, the json, or images that the json lists are missing.
        ValueError: the json is not a COCO detection file, lists no images, or has an annotation without four finite
            box numbers or of an unknown category.
    """
    if not images.is_dir():
        raise FileNotFoundError(f"expected a folder of images, found none at {images}")
    if not annotations.is_file():
        raise FileNotFoundError(f"expected a COCO annotation file, found none at {annotations}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            dataset = CocoImages(str(images), str(annotations))
    # An AssertionError is how pycocotools refuses a list, a KeyError how it meets an image without an id.
    except (json.JSONDecodeError, UnicodeDecodeError, AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{annotations}: expected a COCO detection json, could not read it: {error!r}") from error
    content = dataset.coco.dataset
    missing = {"images", "annotations", "categories"} - content.keys()
    if missing:
        raise ValueError(f"{annotations}: expected a COCO detection json, missing are the keys {sorted(missing)}")
    _check_images(dataset, images, annotations, skip_missing)
    _check_annotations(content, annotations)
    if masks:
        _keep_masked(dataset, annotations)
    return dataset


def _check_images(dataset: CocoImages, images: Path, annotations: Path, skip_missing: bool) -> None:
    listed = dataset.coco.dataset["images"]
    if not listed:
        raise ValueError(f"{annotations}: expected at least one image, it lists none")
    unnamed = [image for image in listed if "file_name" not in image]
    if unnamed:
        raise ValueError(f"{annotations}: expected a file_name of every image, got {unnamed[0]}")
    # One listing a folder instead of one look-up a file: COCO has 118,000 of them, often on a network disk.
    present = {
        parent: set(os.listdir(images / parent)) if (images / parent).is_dir() else set()
        for parent in {os.path.dirname(image["file_name"]) for image in listed}
    }
    missing = {
        image["id"]: image["file_name"]
        for image in listed
        if os.path.basename(image["file_name"]) not in present[os.path.dirname(image["file_name"])]
    }
    if not missing:
        return
    names = list(missing.values())
    told = f"{annotations} lists {len(listed)} images, {len(missing)} of them are not in {images}: {names[:3]}"
    if not skip_missing or len(missing) == len(listed):
        raise FileNotFoundError(f"{told} ...; skip_missing leaves such images out")
    log.warning("%s ...; they are left out", told)
    dataset.ids = [image_id for image_id in dataset.ids if image_id not in missing]


def _check_annotations(content: dict[str, Any], path: Path) -> None:
    """Checks boxes and categories, fills in what other tools leave out, and tells of boxes that cannot be learnt."""
    sizes = {image["id"]: (image.get("width", math.inf), image.get("height", math.inf)) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    useless, homeless = [], 0
    for annotation in content["annotations"]:
        box = annotation.get("bbox")
        if not _is_box(box):
            raise ValueError(
                f"{path}: expected bbox [x, y, width, height] of finite numbers in annotation {annotation.get('id')}, "
                f"got {box}"
            )
        if annotation.get("category_id") not in categories:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has category_id {annotation.get('category_id')}, which is "
                "not among the categories"
            )
        x, y, width, height = box
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", width * height)
        frame = sizes.get(annotation["image_id"])
        if frame is None:
            homeless += 1
        elif min(x + width, frame[0]) - max(x, 0) <= 0 or min(y + height, frame[1]) - max(y, 0) <= 0:
            useless.append(annotation.get("id"))
    if useless:
        log.warning("%s: %d boxes are empty or outside their image, left out of training: annotations %s ...",
                    path, len(useless), useless[:3])  # fmt: skip
    if homeless:
        log.warning("%s: %d annotations belong to no listed image", path, homeless)


def _is_box(box: object) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) and math.isfinite(value) for value in box)
    )


def _keep_masked(dataset: CocoImages, path: Path) -> None:
    content = dataset.coco.dataset
    kept = [annotation for annotation in content["annotations"] if _is_mask(annotation.get("segmentation"))]
    left_out = len(content["annotations"]) - len(kept)
    if not left_out:
        return
    if not kept:
        raise ValueError(f"{path}: expected instance masks, none of {left_out} annotations has a usable segmentation")
    log.warning("%s: %d annotations have no usable segmentation and are left out", path, left_out)
    content["annotations"] = kept
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.coco.createIndex()


def _is_mask(segmentation: object) -> bool:
    """Run lengths, or polygons of three corners or more each."""
    if isinstance(segmentation, dict):
        return {"counts", "size"} <= segmentation.keys()
    return (
        isinstance(segmentation, list)
        and bool(segmentation)
        and all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation)
    )
