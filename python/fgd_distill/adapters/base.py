"""What the distiller must know of a family of detectors: how a training step goes, and in which frame its boxes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass
class StudentStep:
    """One training step of the student.

    Args:
        losses: the detector's own losses, scalars with gradient, weighted: their sum is what it minimises.
        batch: (N, 3, H, W), the very tensor that the backbone got: resized, normalised and padded.
        boxes: one float tensor (n_i, 4) an image, on the device of ``batch``, xyxy in pixels of ``batch``.
    """

    losses: dict[str, Tensor]
    batch: Tensor
    boxes: list[Tensor]


class DetectorAdapter(Protocol):
    """Implemented once for each family of detectors: one file here, one line in ``FAMILIES``.

    Every adapter takes batches as ``fgd_distill.data`` makes them, whatever the family itself calls for: ``images``, a
    sequence of float tensors (3, H_i, W_i) in 0..1, RGB, and ``targets``, a sequence of dicts with ``boxes`` (n_i, 4),
    xyxy in pixels of the image, and ``labels`` (n_i,), which count as the detector was built to count. So one data
    module serves all detectors. An adapter may take its family's own batch, too (a dict as ``images``, say).
    An adapter holds no model and no state of a step: one object serves student, teacher and copies of both.
    """

    def neck_and_head(self, model: nn.Module) -> Sequence[str]:
        """Names of the submodules that a student may inherit; those that ``model`` lacks are left out."""

    def default_layers(self, model: nn.Module) -> list[str]:
        """Names of the modules whose outputs are distilled if the user names none: the neck's, in order of stride."""

    def check_pair(self, student: nn.Module, teacher: nn.Module) -> None:
        """Raises TypeError or ValueError if the two cannot share one input tensor."""

    def student_step(self, student: nn.Module, images: Any, targets: Any) -> StudentStep:
        """Runs the student, which is in training mode, on a batch as the data loader gives it."""

    def run_backbone(self, model: nn.Module, batch: Tensor) -> Any:
        """Runs ``model`` on a prepared batch (N, 3, H, W), at least backbone and neck.

        The result is not looked at; layers are tapped. The pass is ended from within, by an exception, once every
        tapped layer has run: a family whose neck cannot be called alone may simply call the whole model. So don't
        catch BaseException here.
        """

    def predict(self, model: nn.Module, images: Any) -> list[dict[str, Tensor]]:
        """Detections of a model in eval mode, one dict an image: ``boxes`` (k, 4) xyxy in pixels of the image as it
        came in, ``scores`` (k,) and ``labels`` (k,), which count as those of the targets."""
