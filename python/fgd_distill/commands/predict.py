"""Detections of a folder of images, as a COCO results file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ..adapters import DetectorAdapter, as_adapter
from ..data.coco_folder import open_coco
from ..data.evaluation import coco_results
from ..data.image_files import UnreadableImageError, read_image
from ..data.labels import CategoryLabels
from ..detectors.by_name import DetectorConfig, build_detector
from ..detectors.checkpoint import read_checkpoint
from ..errors import FGDFileNotFoundError, FGDOSError, FGDValueError
from ..files import check_writable, write_text

log = logging.getLogger(__name__)
SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass
class NamedImage:
    """One image to look at.

    Args:
        image_id: in the results.
        path: of its file.
        size: (width, height) that the annotations state; None where they state none.
        pixels: float32 (3, H, W) in 0..1; None before it is read, and if it cannot be.
    """

    image_id: int
    path: Path
    size: tuple[int, int] | None = None
    pixels: Tensor | None = None


class _Images(Dataset):
    def __init__(self, images: list[NamedImage]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> NamedImage:
        image = self.images[index]
        try:
            pixels = F.to_dtype(F.pil_to_tensor(read_image(image.path, image.size)), torch.float32, scale=True)
        except UnreadableImageError as error:
            log.warning("unreadable image, left out: %s", error)
            pixels = None
        return NamedImage(image.image_id, image.path, image.size, pixels)


def predict(
    images: str,
    output: str,
    checkpoint: str | None = None,
    detector: DetectorConfig | None = None,
    annotations: str | None = None,
    score_threshold: float = 0.05,
    batch_size: int = 1,
    num_workers: int = 2,
    device: str = "auto",
    adapter: str | None = None,
) -> Path:
    """Detects objects on a folder of images and writes them as a COCO results json.

    Args:
        images: the folder of the images.
        output: the json to write: a list of {image_id, category_id, bbox [x, y, width, height], score}, and with
            Mask R-CNN segmentation; without annotations also file_name.
        checkpoint: of fgd-distill fit; its student detects.
        detector: instead of a checkpoint: a detector's name, num_classes and weights; category_id is then its label.
        annotations: a COCO json whose images, with their ids, are taken. Without it all images of the folder are; their
            ids are the numbers that they are named by, or else 1, 2, ... in the order of the names.
        score_threshold: detections below are left out.
        batch_size: images at a time. Images of different sizes are padded to the largest, which moves scores a little.
        num_workers: processes that load images; 0 loads them in this one.
        device: cpu, cuda, or auto: cuda where there is one.
        adapter: of a detector of your own family, module:Class; by default the checkpoint's, or by the detector's
            class.

    Returns:
        the path of the json.

    Raises:
        FileNotFoundError: the folder, checkpoint or annotations are missing.
        OSError: no image can be read, or the json cannot be written.
        ValueError: there are no images, or not one of checkpoint and detector with weights.
    """
    model, labels, stored = _detector(checkpoint, detector)
    runs = as_adapter(adapter or stored, model)
    listed = _listed(Path(images), annotations)
    check_writable(output)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = DataLoader(_Images(listed), batch_size, num_workers=num_workers, collate_fn=list)
    results, unread = [], 0
    for image, prediction in _predictions(runs, model.to(device).eval(), tqdm(loader, desc="predict"), device):
        if prediction is None:
            unread += 1
            continue
        kept = prediction["scores"] >= score_threshold
        found = coco_results(image.image_id, {name: value[kept] for name, value in prediction.items()}, labels)
        results += found if annotations else [{**result, "file_name": image.path.name} for result in found]
    if unread == len(listed):
        raise FGDOSError(f"images: expected images that can be read in {images}, got {unread} of which none can")
    write_text(output, json.dumps(results))
    skipped = f"; {unread} images could not be read" if unread else ""
    print(f"wrote {len(results)} detections on {len(listed) - unread} images to {output}{skipped}")
    return Path(output)


@torch.no_grad()
def _predictions(
    adapter: DetectorAdapter, model: nn.Module, batches: Any, device: str
) -> Iterator[tuple[NamedImage, dict[str, Tensor] | None]]:
    for batch in batches:
        readable = [image for image in batch if image.pixels is not None]
        found = adapter.predict(model, [image.pixels.to(device) for image in readable]) if readable else []
        yield from zip(readable, ({name: value.cpu() for name, value in one.items()} for one in found), strict=True)
        yield from ((image, None) for image in batch if image.pixels is None)


def _detector(
    checkpoint: str | None, detector: DetectorConfig | None
) -> tuple[nn.Module, CategoryLabels | None, str | None]:
    """The model, what its labels stand for, and the adapter that its checkpoint names."""
    if (checkpoint is None) == (detector is None):
        got = "neither" if checkpoint is None else "both"
        raise FGDValueError(f"checkpoint: expected either it or a detector with weights, got {got}")
    if detector is not None:
        if detector.weights is None:
            raise FGDValueError("detector.weights: expected a file with trained weights, got None: it would see noise")
        return build_detector(detector), None, None
    stored = read_checkpoint(str(checkpoint))
    model = build_detector(stored.config)
    model.load_state_dict(stored.state)
    return model, stored.labels, stored.adapter


def _listed(folder: Path, annotations: str | None) -> list[NamedImage]:
    if annotations is not None:
        dataset = open_coco(folder, Path(annotations), annotated=False)
        return [NamedImage(image_id, dataset.path_of(image_id), dataset.size_of(image_id)) for image_id in dataset.ids]
    if not folder.is_dir():
        raise FGDFileNotFoundError(f"images: expected a folder, found none at {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FGDValueError(
            f"images: expected a folder with images ({', '.join(sorted(SUFFIXES))}), found none in {folder}"
        )
    numbers = [int(path.stem) for path in paths if path.stem.isdecimal()]
    if len(set(numbers)) < len(paths):
        numbers = list(range(1, len(paths) + 1))
    return [NamedImage(number, path) for number, path in zip(numbers, paths, strict=True)]
