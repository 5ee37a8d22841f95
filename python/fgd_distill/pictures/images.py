"""One image to look at: a file, or one of a COCO folder with its boxes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from ..data.datamodule import CocoFolder
from ..data.image_files import UnreadableImageError, read_image
from ..errors import FGDFileNotFoundError, FGDValueError

Annotated = tuple[Tensor, Tensor, Tensor | None]
"""An image (3, h, w), float in 0..1; boxes (n, 4), xyxy; masks (n, h, w) of its objects where they are asked for."""


def image_file(path: str | Path) -> Annotated:
    """An image file, which has no boxes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not an image.
    """
    if not Path(path).is_file():
        raise FGDFileNotFoundError(f"image: expected a file, found none at {path}")
    try:
        pixels = pil_to_tensor(read_image(path))
    except UnreadableImageError as error:
        raise FGDValueError(f"image: expected an image file, could not read {error}") from error
    return pixels.float() / 255, torch.zeros(0, 4), None


def coco_image(images: str | Path, annotations: str | Path, index: int, with_masks: bool = False) -> Annotated:
    """Image number ``index`` of a COCO split.

    Raises:
        FileNotFoundError: the folder, the json or images are missing.
        ValueError: the json is not a COCO detection file, has fewer images, or this one cannot be read.
    """
    dataset = CocoFolder(images, annotations, with_masks=with_masks)
    if not 0 <= index < len(dataset):
        raise FGDValueError(f"index: expected 0 to {len(dataset) - 1}, as {annotations} has images, got {index}")
    pixels, target = dataset[index]
    if index in dataset.unreadable:  # then this is the next one, which is good for training only
        raise FGDValueError(f"index: expected a readable image, got {index}: {dataset.unreadable[index]}")
    return pixels, target["boxes"], target.get("masks")
