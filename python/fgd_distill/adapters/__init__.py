"""Adapters: what the distiller must know of each family of detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor, nn

from ..taps import LayerTap
from .base import DetectorAdapter, StudentStep
from .torchvision import TorchvisionAdapter

__all__ = ["DetectorAdapter", "StudentStep", "TorchvisionAdapter", "adapter_for", "backbone_features", "probe_channels"]


def _class_of(package: str) -> Callable[[nn.Module], bool]:
    """Whether a model's class, or one that it derives from, is defined in ``package``; imports nothing."""
    return lambda model: any(f"{kind.__module__}.".startswith(f"{package}.") for kind in type(model).__mro__)


# Which models are a family's, and its adapter as "module:class". The module is imported when such a model comes,
# so a family's package need not be installed.
FAMILIES: list[tuple[Callable[[nn.Module], bool], str]] = [
    (_class_of("torchvision.models.detection"), "torchvision:TorchvisionAdapter"),
    (_class_of("ultralytics"), "ultralytics:UltralyticsAdapter"),
    (_class_of("transformers"), "huggingface:HuggingFaceAdapter"),
    (_class_of("mmdet"), "mmdet:MMDetectionAdapter"),
]


def adapter_for(model: nn.Module) -> DetectorAdapter:
    """The adapter that fits ``model``.

    Raises:
        TypeError: there is none.
    """
    for matches, path in FAMILIES:
        if matches(model):
            module, name = path.split(":")
            return getattr(import_module(f".{module}", __name__), name)()
    known = ", ".join(path.split(":")[0] for _, path in FAMILIES)
    raise TypeError(
        f"no adapter for {type(model).__name__}: expected a detector of {known}; for others, pass adapter=, an object "
        "with the methods of fgd_distill.adapters.DetectorAdapter"
    )


def probe_channels(model: nn.Module, layers: Sequence[str], adapter: DetectorAdapter, size: int = 320) -> list[int]:
    """The channel count of each feature map that ``layers`` give, found by running a blank image.

    Args:
        model: a detector; its mode and its batch statistics are left as they were.
        layers: names of submodules of the backbone or neck.
        adapter: knows how to run it.
        size: height and width of the blank image in pixels; the default is large enough for SSD300.
    """
    parameter = next(model.parameters())
    blank = torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)
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
