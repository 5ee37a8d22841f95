"""COCO folders as a LightningDataModule, through torchvision's dataset and v2 transforms."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from ..errors import FGDOSError, FGDRuntimeError, FGDValueError
from .coco_folder import open_coco
from .coco_json import category_names, check_same_categories
from .image_files import MAX_PIXELS, UnreadableImageError
from .labels import CategoryLabels
from .resumable_loader import JointBatches, ResumableLoader, derived_seed
from .worker_signals import outlive_signals

log = logging.getLogger(__name__)
UNREADABLE_IN_A_ROW = 20  # more than damaged files: the disk is gone
Sample = tuple[Tensor, dict[str, Any]]
Batch = tuple[tuple[Tensor, ...], tuple[dict[str, Any], ...]]


class CocoFolder(Dataset):
    """Images and targets of one COCO split.

    An item is a float32 image (3, H, W) in 0..1 and a dict: ``boxes`` float32 (n, 4) xyxy in pixels, ``labels`` int64
    (n,) as ``self.labels`` counts the categories, ``image_id`` int, and with ``with_masks`` also ``masks`` uint8
    (n, H, W). Images without boxes are kept, with n = 0. Crowd regions are left out of training, as torchvision's
    recipes do; boxes that are cut to nothing by the image's edge or by a transform are dropped. In the place of an
    image that cannot be read comes the next one that can; it is logged and counted in ``unreadable``.

    An index may be a pair (epoch, index): random transforms then draw from a generator of seed, epoch and index, so
    that an image changes from epoch to epoch, but not with the number of workers or processes.

    Args:
        images: the folder of the images.
        annotations: the COCO detection json.
        transforms: v2 transforms applied to the uint8 image and its target, before the conversion to float.
        with_masks: whether targets carry instance masks, which Mask R-CNN needs.
        skip_missing: leaves out images that the json lists and the folder lacks, instead of refusing.
        seed: of random transforms.
        max_pixels: width x height above which an image counts as unreadable, before it is decoded.
        first_label: labels count from it on; None: they are the category ids (see ``CategoryLabels``).

    Raises:
        FileNotFoundError: the folder, the json, or images that the json lists are missing.
        ValueError: the json is not a COCO detection file, or has annotations that make no sense.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transforms: list[nn.Module] | None = None,
        with_masks: bool = False,
        skip_missing: bool = False,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        first_label: int | None = None,
    ) -> None:
        dataset = open_coco(Path(images), Path(annotations), with_masks, skip_missing, max_pixels)
        self.coco = dataset.coco
        self.labels = CategoryLabels(self.coco.getCatIds(), first_label)
        self.with_masks, self.seed = with_masks, seed
        self.unreadable: dict[int, str] = {}
        """By index, what is wrong with images that could not be read so far, in this process."""
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

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        image, target = self._readable(index)
        target = _without_crowds(target, image.size, self.with_masks)
        target["labels"] = self.labels.of(target["labels"])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, index))
            return self.transforms(image, target)

    def _readable(self, index: int) -> tuple[Any, dict[str, Any]]:
        """The image with this index, or the next that can be read."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected less than {len(self)}, got {index}")
        for candidate in range(index, index + min(len(self), UNREADABLE_IN_A_ROW)):
            candidate %= len(self)
            if candidate not in self.unreadable:
                try:
                    return self.dataset[candidate]
                except UnreadableImageError as error:
                    self.unreadable[candidate] = str(error)
                    log.warning(
                        "unreadable image, the next takes its place (%d so far): %s", len(self.unreadable), error
                    )
        raise FGDOSError(
            f"{UNREADABLE_IN_A_ROW} images in a row, or all, are unreadable, among them {self.unreadable[candidate]}"
        )

    def differs_between_epochs(self, images: int = 16) -> bool:
        """Whether random transforms change one of the first images from one epoch to the next."""
        return any(not torch.equal(self[0, index][0], self[1, index][0]) for index in range(min(images, len(self))))

    def max_label(self) -> int:
        """The largest label: detectors need num_classes above it."""
        return self.labels.largest()

    def uses_label(self, label: int) -> bool:
        """Whether an annotation has this label: exports often list a category 0 that no annotation is of."""
        used = {annotation["category_id"] for annotation in self.coco.dataset["annotations"]}
        return label in self.labels.of(torch.tensor(sorted(used)))


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
        skip_missing: leaves out images that a json lists and the folder lacks, with a warning.
        seed: of the order of the training images and of their random transforms. They have generators of their own:
            two runs that build different modules still see the same batches.
        max_pixels: width x height above which an image counts as unreadable, before it is decoded.
        first_label: labels count on from it in the order of the category ids, without gaps. 0 is right for an official
            80-class YOLO, RT-DETR or MMDetection model on COCO, 1 for a torchvision detector without unused classes.
            Checkpoints keep it, and detections come back as category ids. None: labels are the category ids, as
            torchvision's own weights count them.

    Raises:
        ValueError: batch_size or num_workers out of range, training annotations without an object, or categories that
            differ between training and validation.
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
        skip_missing: bool = False,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        first_label: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise FGDValueError(f"expected batch_size >= 1 and num_workers >= 0, got {batch_size} and {num_workers}")
        if first_label not in (None, 0, 1):
            raise FGDValueError(f"first_label: expected 0, 1 or none, got {first_label}")
        base = Path(root)
        self.train_paths = (base / train_images, base / train_annotations)
        self.val_paths = (base / val_images, base / val_annotations)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.train_transforms, self.with_masks = train_transforms, with_masks
        self.skip_missing, self.seed, self.max_pixels = skip_missing, seed, max_pixels
        self.first_label = first_label
        self.train_set: CocoFolder | None = None
        self.val_set: CocoFolder | None = None

    def setup(self, stage: str) -> None:
        """Opens what ``stage`` ("fit" or "validate") reads."""
        if stage == "fit" and self.train_set is None:
            self.train_set = self._open(self.train_paths, self.train_transforms)
            if not self.train_set.coco.anns:
                raise FGDValueError(f"{self.train_paths[1]}: expected objects to learn from, it has no annotations")
        if self.val_set is None:
            self.val_set = self._open(self.val_paths)
        if self.train_set is not None:
            known = category_names(self.train_set.coco.dataset)
            check_same_categories(known, self.train_paths[1], self.val_set.coco.dataset, self.val_paths[1])
            self.val_set.labels = self.train_set.labels  # the detector's, also where a file lists fewer categories

    def _open(self, paths: tuple[Path, Path], transforms: list[nn.Module] | None = None) -> CocoFolder:
        return CocoFolder(
            *paths, transforms, self.with_masks, self.skip_missing, self.seed, self.max_pixels, self.first_label
        )

    def train_dataloader(self) -> ResumableLoader:
        trainer: Any = self.trainer
        # As Lightning does for its own samplers: the same few batches again and again, so in one order.
        overfit = trainer is not None and trainer.overfit_batches > 0
        loader = self._loader(self.train_set, seed=None if overfit else self.seed, drop_last=True)
        loader.epoch = 0 if trainer is None else trainer.current_epoch  # not 0 where a training asks for loaders anew
        return loader

    def val_dataloader(self) -> ResumableLoader:
        return self._loader(self.val_set)

    def _loader(self, dataset: CocoFolder | None, **order: Any) -> ResumableLoader:
        if dataset is None:
            raise FGDRuntimeError("the data module was not set up: call setup('fit') or setup('validate') first")
        batches = JointBatches(len(dataset), self.batch_size, **order)
        if not len(batches):
            raise FGDValueError(
                f"batch_size: expected at most the {len(dataset)} training images, got {batches.joint_batch_size} "
                "over all processes"
            )
        return ResumableLoader(
            dataset,
            batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            worker_init_fn=outlive_signals,
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
