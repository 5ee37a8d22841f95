"""The start of torchvision's FCOS, which without weights may never learn boxes."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.detection.fcos import FCOS

START = 1.0  # in anchor sizes; objects of a level are 4 to 8 of them from the middle to the edge


def start_with_boxes(model: nn.Module) -> None:
    """Gives the boxes of an untrained FCOS a size; changes its bias in place, and no other detector.

    The head's distances to a box's four edges end in a ReLU, and torchvision's bias of 0 starts them at about 0: half
    of them, by chance, at exactly 0. Where two opposite ones are, the box is empty, its GIoU loss 1 and without
    gradient; after a few steps this can hold for all pixels, and then for ever.
    """
    if isinstance(model, FCOS):
        with torch.no_grad():
            model.head.regression_head.bbox_reg.bias.fill_(START)
