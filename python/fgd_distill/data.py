"""COCO folders as a LightningDataModule, through torchvision's dataset and v2 transforms."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

Sample = tuple[Tensor, dict[str, Any]]
Batch = tuple[tuple[Tensor, ...], tuple[dict[str, Any], ...]]


class CocoFolder(Dataset):
    """Images and targets of one COCO split.

    An item is a float32 image (3, H, W) in 0..1 and a dict: ``boxes`` float32 (n, 4) xyxy in pixels, ``labels`` int64
    (n,) equal to the category ids, ``image_id`` int, and with ``with_masks`` also ``masks`` uint8 (n, H, W). Images
    without boxes are kept, with n = 0. Crowd regions are left out of training, as torchvision's recipes do; boxes
    that are cut to nothing by the image's edge or by a transform are dropped.

    Args:
        images: the folder of the images.
        annotations: the COCO detection json.
        transforms: v2 transforms applied to the uint8 image and its target, before the conversion to float.
        with_masks: whether targets carry instance masks, which Mask R-CNN needs.

    Raises:
        FileNotFoundError: the folder, the json, or images that the json lists are missing.
        ValueError: the json is not a COCO detection file.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transforms: list[nn.Module] | None = None,
        with_masks: bool = False,
    ) -> None:
        dataset = _open(Path(images), Path(annotations))
        self.coco = dataset.coco
        self.with_masks = with_masks
        keys = {"boxes", "labels", "image_id", "iscrowd"} | ({"masks"} if with_masks else set())
        self.dataset = wrap_dataset_for_transforms_v2(dataset, target_keys=keys)
        self.transforms = v2.Compose(
            [
                v2.ToImage(),
                *(transforms or []),
                v2.ToDtype(torch.float32, scale=True),
                v2.ClampBoundingBoxes(),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, target = self.dataset[index]
        return self.transforms(image, _without_crowds(target, image.size, self.with_masks))

    def max_label(self) -> int:
        """The largest category id: detectors need num_classes above it."""
        return max(self.coco.getCatIds(), default=0)


class CocoDataModule(pl.LightningDataModule):
    """Training and validation data in COCO format.

    Args:
        root: the folder that the four paths below are relative to.
        train_images, val_images: folders of images.
        train_annotations, val_annotations: COCO detection json files.
        batch_size: images a step and process.
        num_workers: loader processes; 0 loads in the training process.
        train_transforms: v2 transforms of uint8 training images and their targets, for example
            ``torchvision.transforms.v2.RandomHorizontalFlip``.
        with_masks: whether targets carry instance masks (Mask R-CNN).
        seed: of the order of the training images, on its own generator: two runs that build different modules still
            see the same batches.

    Raises:
        ValueError: batch_size or num_workers out of range.
    """

    def __init__(
        self,
        root: str = "data/coco",
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
        batch_size: int = 2,
        num_workers: int = 2,
        train_transforms: list[nn.Module] | None = None,
        with_masks: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"expected batch_size >= 1 and num_workers >= 0, got {batch_size} and {num_workers}")
        base = Path(root)
        self.train_paths = (base / train_images, base / train_annotations)
        self.val_paths = (base / val_images, base / val_annotations)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.train_transforms, self.with_masks, self.seed = train_transforms, with_masks, seed
        self.train_set: CocoFolder | None = None
        self.val_set: CocoFolder | None = None

    def setup(self, stage: str) -> None:
        """Opens what ``stage`` ("fit" or "validate") reads."""
        if stage == "fit" and self.train_set is None:
            self.train_set = CocoFolder(*self.train_paths, self.train_transforms, self.with_masks)
        if self.val_set is None:
            self.val_set = CocoFolder(*self.val_paths)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(self.seed)
        return self._loader(self.train_set, shuffle=True, drop_last=True, generator=generator)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val_set)

    def _loader(self, dataset: CocoFolder | None, **options: Any) -> DataLoader:
        if dataset is None:
            raise RuntimeError("the data module was not set up: call setup('fit') or setup('validate') first")
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            **options,
        )


def collate(samples: list[Sample]) -> Batch:
    """A batch as torchvision's detectors take it: a tuple of images, which may differ in size, and one of targets."""
    images, targets = zip(*samples, strict=True)
    return images, targets


def _without_crowds(target: dict[str, Any], size: tuple[int, int], with_masks: bool) -> dict[str, Any]:
    """The target without crowd regions; an image without annotations gets boxes of shape (0, 4), not no boxes."""
    width, height = size
    if "boxes" not in target:
        target["boxes"] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(height, width))
        target["labels"] = torch.zeros(0, dtype=torch.int64)
        if with_masks:
            target["masks"] = tv_tensors.Mask(torch.zeros(0, height, width, dtype=torch.uint8))
    else:
        keep = torch.tensor(target.pop("iscrowd")) == 0
        for key in {"boxes", "labels", "masks"} & target.keys():
            target[key] = tv_tensors.wrap(target[key][keep], like=target[key]) if key != "labels" else target[key][keep]
        target["boxes"] = tv_tensors.wrap(target["boxes"].float(), like=target["boxes"])
    return target


def _open(images: Path, annotations: Path) -> CocoDetection:
    """torchvision's dataset, after checking that all its files are there."""
    if not images.is_dir():
        raise FileNotFoundError(f"expected a folder of images, found none at {images}")
    if not annotations.is_file():
        raise FileNotFoundError(f"expected a COCO annotation file, found none at {annotations}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            dataset = CocoDetection(str(images), str(annotations))
    except (json.JSONDecodeError, AssertionError) as error:  # the latter is how pycocotools refuses a list
        raise ValueError(f"{annotations}: expected a COCO detection json, could not read it: {error}") from error
    missing = {"images", "annotations", "categories"} - dataset.coco.dataset.keys()
    if missing:
        raise ValueError(f"{annotations}: expected a COCO detection json, missing are the keys {sorted(missing)}")
    _check_images(images, annotations, [image["file_name"] for image in dataset.coco.dataset["images"]])
    return dataset


def _check_images(images: Path, annotations: Path, names: list[str]) -> None:
    # One listing a folder instead of one look-up a file: COCO has 118,000 of them, often on a network disk.
    present = {
        parent: set(os.listdir(images / parent)) if (images / parent).is_dir() else set()
        for parent in {os.path.dirname(name) for name in names}
    }
    missing = [name for name in names if os.path.basename(name) not in present[os.path.dirname(name)]]
    if missing:
        raise FileNotFoundError(
            f"{annotations} lists {len(names)} images, {len(missing)} of them are not in {images}: {missing[:3]} ..."
        )
