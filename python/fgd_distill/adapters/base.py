"""What the distiller must know of a family of detectors: how a training step goes, and in which frame its boxes are."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fgd_kernels.foreground import Foreground

from .presets import preset_by_name


@dataclass
class StudentStep:
    """One training step of the student.

    Args:
        losses: the detector's own losses, scalars with gradient, weighted: their sum is what it minimises.
        batch: (N, 3, H, W), the very tensor that the backbone got: resized, normalised and padded.
        boxes: one float tensor (n_i, 4) an image, on the device of ``batch``, xyxy in pixels of ``batch``.
        foreground: where boxes say too little, what ``fgd_kernels.fgd_loss`` takes in their place.
    """

    losses: dict[str, Tensor]
    batch: Tensor
    boxes: list[Tensor]
    foreground: Foreground | None = None


class Frame(NamedTuple):
    """What a training step makes of images and boxes before the backbone runs.

    Args:
        batch: as in ``StudentStep``.
        boxes: as in ``StudentStep``.
    """

    batch: Tensor
    boxes: list[Tensor]


class DetectorAdapter(Protocol):
    """All that is known of a family of detectors; nothing else looks into a model. Derive from it.

    Six methods have to be written. The other five have defaults, which serve most families.

    Every adapter takes batches as ``fgd_distill.data`` makes them, whatever the family itself calls for: ``images``, a
    sequence of float tensors (3, H_i, W_i) in 0..1, RGB, and ``targets``, a sequence of dicts with ``boxes`` (n_i, 4),
    xyxy in pixels of the image, and ``labels`` (n_i,), which count as the detector was built to count. So one data
    module serves all detectors. An adapter may take its family's own batch, too (a dict as ``images``, say).
    An adapter holds no model and no state of a step: one object serves student, teacher and copies of both.
    """

    @abstractmethod
    def neck_and_head(self, model: nn.Module) -> Sequence[str]:
        """Names of the submodules that a student may inherit; those that ``model`` lacks are left out."""

    @abstractmethod
    def default_layers(self, model: nn.Module) -> list[str]:
        """Names of the modules whose outputs are distilled if the user names none: the neck's, in order of stride.

        Raises:
            TypeError: a model whose neck is not known.
        """

    @abstractmethod
    def check_pair(self, student: nn.Module, teacher: nn.Module) -> None:
        """Raises TypeError or ValueError if the two cannot share one input tensor."""

    @abstractmethod
    def student_step(self, student: nn.Module, images: Any, targets: Any) -> StudentStep:
        """Runs the student, which is in training mode, on a batch as the data loader gives it."""

    @abstractmethod
    def run_backbone(self, model: nn.Module, batch: Tensor) -> Any:
        """Runs ``model`` on a prepared batch (N, 3, H, W), at least backbone and neck.

        The result is not looked at; layers are tapped. The pass is ended from within, by an exception, once every
        tapped layer has run: a family whose neck cannot be called alone may simply call the whole model. So don't
        catch BaseException here.
        """

    @abstractmethod
    def predict(self, model: nn.Module, images: Any) -> list[dict[str, Tensor]]:
        """Detections of a model in eval mode, one dict an image: ``boxes`` (k, 4) xyxy in pixels of the image as it
        came in, ``scores`` (k,) and ``labels`` (k,), which count as those of the targets."""

    def preset(self, model: nn.Module) -> str | None:
        """The loss's preset for this model, one of ``fgd_kernels.PRESETS``, or None if none was made for its kind.

        By default the class's name tells: ``FCOS``, ``MyFasterRCNN``.
        """
        return preset_by_name(model)

    def first_label(self, model: nn.Module) -> int:
        """The smallest label of an object: 1 where the class 0 is the background, else 0, the default."""
        return 0

    def frame(self, model: nn.Module, images: Any, targets: Any) -> Frame:
        """The batch, and the boxes in it, that a training step would make of images and targets; without gradient.

        The model may be in any mode, and is left as it was, in its random sizes as in a training. By default a copy of
        it takes the step, which an adapter that can prepare a batch by itself saves.
        """
        probe = copy.deepcopy(model).train()
        with torch.no_grad():
            step = self.student_step(probe, images, targets)
        return Frame(step.batch, step.boxes)

    def probe_size(self, model: nn.Module) -> tuple[int, int]:
        """Height and width, in pixels, of a batch that the backbone surely takes: a blank one tells the channels."""
        return 320, 320  # large enough for SSD300, and a multiple of most strides

    def picture(self, model: nn.Module, batch: Tensor) -> Tensor:
        """A prepared batch (N, 3, H, W) as it looks: RGB in 0..1, float32.

        By default values that leave 0..1 are taken for normalised in an unknown way: each image's range becomes 0..1.
        """
        batch = batch.detach().float()
        low, high = batch.amin((1, 2, 3), keepdim=True), batch.amax((1, 2, 3), keepdim=True)
        stretched = (batch - low) / (high - low).clamp(min=1e-12)
        return stretched.where((low < 0) | (high > 1), batch)
