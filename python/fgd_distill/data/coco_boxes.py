"""Boxes and masks of a COCO file beside its images: what contradicts them is refused, left out, or told."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from pycocotools import mask as run_lengths

from ..errors import FGDValueError
from .coco_json import shown

log = logging.getLogger("fgd_distill.data")
Entry = dict[str, Any]
# Pixels along a polygon's outline, and the largest coordinate. pycocotools takes about 80 bytes for each pixel; it ends
# the process where it gets no memory, or where five times a coordinate is beyond its integers.
LONGEST_OUTLINE = 10_000_000


def check_boxes(content: dict[str, Any], path: Path) -> None:
    """Leaves out annotations of no listed image and boxes that cover nothing of theirs, and tells of doubtful ones.

    Args:
        content: as ``read_coco_json`` gives it; its annotations change.
        path: of the json, for messages.

    Raises:
        ValueError: no annotation belongs to a listed image, or all boxes are fractions of their images.
    """
    annotations = content["annotations"]
    if not annotations:
        return
    sizes = {image["id"]: (image.get("width", math.inf), image.get("height", math.inf)) for image in content["images"]}
    listed = [annotation for annotation in annotations if annotation["image_id"] in sizes]
    if not listed:
        raise FGDValueError(
            f"{path}: expected annotations of the images that it lists, the image_id of none of {len(annotations)} is "
            f"among their ids, such as {annotations[0]['image_id']}"
        )
    _check_fractions(listed, path)
    kept = [annotation for annotation in listed if _covers(annotation["bbox"], sizes[annotation["image_id"]])]
    content["annotations"] = kept
    if len(listed) < len(annotations):
        log.warning("%s: %d annotations belong to no listed image", path, len(annotations) - len(listed))
    if len(kept) < len(listed):
        ids = {annotation["id"] for annotation in kept}
        useless = [annotation for annotation in listed if annotation["id"] not in ids]
        log.warning("%s: %d boxes are empty or outside their image, left out of training and evaluation: %s",
                    path, len(useless), _where(useless, content))  # fmt: skip
    _tell_of_doubtful(kept, sizes, path, content)


def _check_fractions(annotations: list[Entry], path: Path) -> None:
    boxes = [annotation["bbox"] for annotation in annotations]
    numbers = [number for box in boxes for number in (*box, box[0] + box[2], box[1] + box[3])]
    if max(numbers) <= 1 and min(numbers) >= 0 and any(box[2] * box[3] > 0 for box in boxes):
        raise FGDValueError(
            f"{path}: expected bbox [x, y, width, height] in pixels, got numbers that all lie in 0..1, such as "
            f"{shown(boxes[0])}; multiply x and width by the image's width, y and height by its height"
        )


def _covers(box: list[float], frame: tuple[float, float]) -> bool:
    x, y, width, height = box
    return min(x + width, frame[0]) - max(x, 0) > 0 and min(y + height, frame[1]) - max(y, 0) > 0


def _where(annotations: list[Entry], content: dict[str, Any]) -> str:
    """The first of these annotations, by the files of their images and their places in the list of annotations."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    first = [f"{shown(names[entry['image_id']])} (annotation {entry['id']})" for entry in annotations[:3]]
    return f"{', '.join(first)}{' ...' if len(annotations) > 3 else ''}; annotations are counted from 1"


def _tell_of_doubtful(
    annotations: list[Entry], sizes: dict[int, tuple[float, float]], path: Path, content: dict[str, Any]
) -> None:
    framed = [(annotation, *sizes[annotation["image_id"]]) for annotation in annotations]
    beyond = [a for a, w, h in framed if not _within(_corners(a["bbox"]), w, h)]
    if beyond:
        as_corners = all(_within(a["bbox"], w, h) for a, w, h in framed)
        remedy = "; all would fit as x1, y1, x2, y2, but bbox is x, y, width, height" if as_corners else ""
        log.warning("%s: %d boxes reach out of their image by more than a pixel and are cut at its edge: "
                    "%s%s", path, len(beyond), _where(beyond, content), remedy)  # fmt: skip
    turned = [annotation for annotation in annotations if _rotation(annotation)]
    if turned:
        log.warning("%s: %d boxes have a rotation among their attributes, as CVAT writes it, and are taken without: "
                    "%s; export polygons", path, len(turned), _where(turned, content))  # fmt: skip


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _within(corners: Any, width: float, height: float) -> bool:
    """Whether x1, y1, x2, y2 are in order and reach out of the image by a pixel at most."""
    x1, y1, x2, y2 = corners
    return -1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1


def _rotation(annotation: Entry) -> object:
    attributes = annotation.get("attributes")
    return attributes.get("rotation") if isinstance(attributes, dict) else None


def check_listed_once(content: dict[str, Any], path: Path) -> None:
    """Raises ValueError where entries of one file have different boxes: each would teach the other's to be background.

    Entries with the same boxes are fine: some list an image several times so that it counts more. Where one category's
    name stands for several ids in use, it is told.
    """
    entries = defaultdict(list)
    for image in content["images"]:
        entries[os.path.normpath(image["file_name"])].append(image["id"])
    several = {name: ids for name, ids in entries.items() if len(ids) > 1}
    if several:
        boxes: dict[int, Counter[Any]] = defaultdict(Counter)
        for annotation in content["annotations"]:
            boxes[annotation["image_id"]][(annotation["category_id"], *annotation["bbox"])] += 1
        for name, ids in several.items():
            if any(boxes[image_id] != boxes[ids[0]] for image_id in ids):
                raise FGDValueError(
                    f"{path}: expected one entry for each file, or several with the same boxes, got the images "
                    f"{ids[:3]} of {shown(name)} with different boxes; merge them into one image"
                )
    used = {annotation["category_id"] for annotation in content["annotations"]}
    names = Counter(category.get("name") for category in content["categories"] if category["id"] in used)
    twice = [name for name, count in names.items() if count > 1 and name is not None]
    if twice:
        log.warning("%s: categories of one name have several ids and are learnt as several: %s", path, twice[:3])


def keep_masked(content: dict[str, Any], path: Path) -> None:
    """Leaves out annotations without a usable mask.

    Raises:
        ValueError: there is none with one, or an image whose size is not stated.
    """
    for index, image in enumerate(content["images"]):
        if not {"width", "height"} <= image.keys():
            raise FGDValueError(
                f"{path}: expected width and height of every image, as masks need them, got none in images[{index}] "
                f"({shown(image['file_name'])})"
            )
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    kept = [a for a in content["annotations"] if _is_mask(a.get("segmentation"), sizes[a["image_id"]])]
    left_out = len(content["annotations"]) - len(kept)
    if left_out and not kept:
        raise FGDValueError(
            f"{path}: expected instance masks, none of {left_out} annotations has a usable segmentation, such as "
            f"{shown(content['annotations'][0].get('segmentation'))}; write polygons or run lengths, or train without "
            "masks"
        )
    if left_out:
        log.warning("%s: %d annotations have no usable segmentation and are left out", path, left_out)
    content["annotations"] = kept


def _is_mask(segmentation: object, size: list[int]) -> bool:
    """Run lengths of an image of (height, width), or polygons of three corners or more each."""
    if isinstance(segmentation, dict):
        return segmentation.get("size") == size and _are_run_lengths(segmentation, size)
    return (
        isinstance(segmentation, list) and bool(segmentation) and all(_is_polygon(polygon) for polygon in segmentation)
    )


def _are_run_lengths(segmentation: Entry, size: list[int]) -> bool:
    counts = segmentation.get("counts")
    if isinstance(counts, list):  # pycocotools writes past its memory where they are too many or too few
        return all(type(count) is int and count >= 0 for count in counts) and sum(counts) == size[0] * size[1]
    try:
        return isinstance(counts, str) and run_lengths.decode({"size": size, "counts": counts}).shape == tuple(size)
    except ValueError:
        return False


def _is_polygon(polygon: object) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(number, int | float) and abs(number) < LONGEST_OUTLINE for number in polygon)
        and _outline(polygon) <= LONGEST_OUTLINE
    )


def _outline(polygon: list[float]) -> float:
    """How many pixels a closed polygon's outline goes through."""
    corners = list(zip(polygon[0::2], polygon[1::2], strict=True))
    return sum(
        max(abs(x1 - x2), abs(y1 - y2)) for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True)
    )
