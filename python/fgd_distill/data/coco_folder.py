"""Opening a COCO folder: everything that can be wrong with it is found before the first step, or does not end a run."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection, VisionDataset

from ..errors import FGDFileNotFoundError, FGDValueError
from .coco_boxes import check_boxes, check_listed_once, keep_masked
from .coco_json import read_coco_json, shown
from .image_files import MAX_PIXELS, read_image

log = logging.getLogger("fgd_distill.data")


class CocoImages(CocoDetection):
    """torchvision's dataset of a content that was read and checked, whose files ``read_image`` decodes.

    Args:
        images: the folder of the images.
        content: of a COCO detection json, as ``read_coco_json`` gives it.
        max_pixels: of an image; larger files are refused before they are decoded.
    """

    def __init__(self, images: Path, content: dict[str, Any], max_pixels: int = MAX_PIXELS) -> None:
        VisionDataset.__init__(self, str(images))  # CocoDetection's own reads the json once more, unchecked
        self.coco = COCO()
        self.coco.dataset = content
        self.index()
        self.ids = sorted(self.coco.imgs)
        self.max_pixels = max_pixels

    def index(self) -> None:
        """Makes pycocotools' indices anew."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            self.coco.createIndex()

    def path_of(self, image_id: int) -> Path:
        """The file of an image."""
        return Path(self.root) / self.coco.imgs[image_id]["file_name"]

    def size_of(self, image_id: int) -> tuple[int, int] | None:
        """(width, height) in pixels that the json states, or None."""
        image = self.coco.imgs[image_id]
        return (image["width"], image["height"]) if {"width", "height"} <= image.keys() else None

    def _load_image(self, id: int) -> Image.Image:
        return read_image(self.path_of(id), self.size_of(id), self.max_pixels, self.coco.imgs[id]["file_name"])


def open_coco(
    images: Path,
    annotations: Path,
    masks: bool = False,
    skip_missing: bool = False,
    max_pixels: int = MAX_PIXELS,
    annotated: bool = True,
) -> CocoImages:
    """Opens a COCO detection json with its images and checks both.

    Args:
        images: the folder of the images.
        annotations: the json.
        masks: whether instance masks are wanted; annotations without a usable one are then left out, and counted.
        skip_missing: leaves out listed images that are not there, and counts them, instead of refusing.
        max_pixels: of an image; larger files count as unreadable.
        annotated: whether the json must have annotations and categories.

    Raises:
        FileNotFoundError: the folder, the json, or images that the json lists are missing.
        ValueError: the json is not a COCO detection file, lists no images or files outside the folder, or has an entry
            that makes no sense; the message names file and entry.
    """
    if not images.is_dir():
        raise FGDFileNotFoundError(f"expected a folder of images, found none at {images}")
    if not annotations.is_file():
        raise FGDFileNotFoundError(f"expected a COCO annotation file, found none at {annotations}")
    content = read_coco_json(annotations, annotated)
    if not content["images"]:
        raise FGDValueError(f"{annotations}: expected at least one image, it lists none")
    _check_inside(content["images"], annotations)
    check_boxes(content, annotations)
    check_listed_once(content, annotations)
    dataset = CocoImages(images, content, max_pixels)
    _check_images(dataset, images, annotations, skip_missing)
    if masks:
        keep_masked(content, annotations)
        dataset.index()
    return dataset


def _check_inside(listed: list[dict[str, Any]], annotations: Path) -> None:
    """Files outside the folder are none of a data set's business, whoever wrote it."""
    for index, image in enumerate(listed):
        name = image["file_name"]
        for path in (PurePosixPath(name), PureWindowsPath(name)):
            if path.is_absolute() or path.drive or path.root or ".." in path.parts:
                raise FGDValueError(
                    f"{annotations}: expected file_name in images[{index}] to lie in the folder of images, got "
                    f"{shown(name)}"
                    "; write paths relative to that folder, without .."
                )


def _check_images(dataset: CocoImages, images: Path, annotations: Path, skip_missing: bool) -> None:
    listed = dataset.coco.dataset["images"]
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
    told = f"{annotations} lists {len(listed)} images, {len(missing)} of them are not in {images}: "
    told += ", ".join(shown(name) for name in names[:3])
    near = [(name, found) for name in names[:3] if (found := _near(images, name)) is not None]
    if near:
        told += "; but there is " + ", ".join(f"{found!r} for {shown(name)}" for name, found in near)
    if not skip_missing or len(missing) == len(listed):
        raise FGDFileNotFoundError(f"{told} ...; mend the names, or leave such images out by skip_missing")
    log.warning("%s ...; they are left out", told)
    dataset.ids = [image_id for image_id in dataset.ids if image_id not in missing]


def _near(images: Path, name: str) -> str | None:
    """A file that a listed name probably means: other slashes, %20, another form of umlauts, case, folder or ending."""
    plain = unquote(name.replace("\\", "/"))
    folders = {os.path.dirname(plain): None, "": None}
    if PurePosixPath(plain).is_absolute() or ".." in PurePosixPath(plain).parts:
        folders = {"": None}  # what lies outside is not told
    wanted = _folded(os.path.basename(plain))
    for same in (lambda present: present == wanted, lambda present: _stem(present) == _stem(wanted)):
        for folder in folders:
            for present in sorted(os.listdir(images / folder)) if (images / folder).is_dir() else ():
                if same(_folded(present)):
                    return os.path.join(folder, present)
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
