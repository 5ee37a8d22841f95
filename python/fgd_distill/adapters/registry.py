"""Which adapter fits a detector."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import FGDTypeError
from .base import DetectorAdapter


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


def check_plain(role: str, model: nn.Module) -> None:
    """Raises TypeError, with the remedy, for a detector that something took the place of.

    Args:
        role: what the message calls it.
        model: the detector.
    """
    if isinstance(model, DistributedDataParallel | DataParallel):
        raise FGDTypeError(
            f"{role}: expected the plain detector, got it in {type(model).__name__}; wrap the distiller instead, "
            "so that the criterion's parameters are synchronised, too"
        )
    if hasattr(model, "_orig_mod"):  # without the import of torch._dynamo, which takes seconds
        raise FGDTypeError(f"{role}: expected the plain detector, got torch.compile's; compile it by {role}.compile()")


def adapter_for(model: nn.Module) -> DetectorAdapter:
    """The adapter that fits ``model``.

    Raises:
        TypeError: there is none, or the model is wrapped by torch.compile or for several devices.
    """
    check_plain("model", model)
    for matches, path in FAMILIES:
        if matches(model):
            module, name = path.split(":")
            return getattr(import_module(f".{module}", __package__), name)()
    known = ", ".join(path.split(":")[0] for _, path in FAMILIES)
    raise FGDTypeError(
        f"no adapter for {type(model).__name__}: expected a detector of {known}; for others, pass adapter=, an object "
        "with the methods of fgd_distill.adapters.DetectorAdapter"
    )
