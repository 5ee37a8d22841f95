"""Running a detector on a batch only to see its feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..taps import LayerTap
from .base import DetectorAdapter
from .registry import as_adapter


def probe_channels(
    model: nn.Module, layers: Sequence[str], adapter: DetectorAdapter, size: int | None = None
) -> list[int]:
    """The channel count of each feature map that ``layers`` give, found by running a blank image.

    Args:
        model: a detector; its mode and its batch statistics are left as they were.
        layers: names of submodules of the backbone or neck.
        adapter: knows how to run it.
        size: height and width of the blank image in pixels; None takes what the adapter says.
    """
    parameter = next(model.parameters())
    height, width = as_adapter(adapter, model).probe_size(model) if size is None else (size, size)
    blank = torch.zeros(1, 3, height, width, dtype=parameter.dtype, device=parameter.device)
    return [feature.shape[1] for feature in backbone_features(model, layers, blank, adapter)]


def backbone_features(model: nn.Module, layers: Sequence[str], batch: Tensor, adapter: DetectorAdapter) -> list[Tensor]:
    """The feature maps that ``layers`` give for a prepared batch (N, 3, H, W), in eval mode and without gradient.

    The model's mode and its batch statistics are left as they were.
    """
    # Each module by itself: a detector may keep a part in eval mode while the rest trains.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), LayerTap(model, layers, stop=True) as tap:
            adapter.run_backbone(model, batch)
        return tap.features()
    finally:
        for module, mode in modes:
            module.training = mode
