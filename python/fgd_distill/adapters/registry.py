"""Which adapter fits a detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import FGDTypeError, FGDValueError
from ..importing import named_object
from .base import DetectorAdapter

# By the package that a model's class, or one that it derives from, is defined in. The adapter's module is imported when
# such a model comes, so a family's package need not be installed.
FAMILIES = {
    "torchvision.models.detection": f"{__package__}.torchvision:TorchvisionAdapter",
    "ultralytics": f"{__package__}.ultralytics:UltralyticsAdapter",
    "transformers": f"{__package__}.huggingface:HuggingFaceAdapter",
    "mmdet": f"{__package__}.mmdet:MMDetectionAdapter",
    "rfdetr": f"{__package__}.rfdetr:RFDETRAdapter",
    "effdet": f"{__package__}.effdet:EffDetAdapter",
}
ENTRY_POINTS = "fgd_distill.adapters"
REQUIRED = sorted(DetectorAdapter.__abstractmethods__)  # type: ignore[attr-defined]
OPTIONAL = ("preset", "first_label", "frame", "probe_size", "picture")
Models = str | type | Callable[[nn.Module], bool]
Adapter = str | type[DetectorAdapter] | DetectorAdapter
_registered: list[tuple[Models, Adapter]] = []


def register_adapter(models: Models, adapter: Adapter) -> None:
    """Lets ``adapter_for``, and so everything of this package, use an adapter for these models.

    It comes before the adapters of this package, and the last registered before earlier ones. A package can do without:
    an entry point of the group ``fgd_distill.adapters``, whose name is the package of the models and whose value is the
    adapter's ``module:Class``, is found by itself.

    Args:
        models: the class of the models; or the name of the package that their class, or one that it derives from, is
            defined in; or a function that takes a model and returns whether it is one.
        adapter: an object; a class that is called without arguments; or either one's name, ``module:Class``, which is
            imported when such a model comes.

    Raises:
        TypeError: ``models`` or ``adapter`` is something else, or the adapter lacks methods of ``DetectorAdapter``.
        ValueError: a name that is not ``module:Class``.
    """
    if not (isinstance(models, str) or callable(models)):
        raise FGDTypeError(f"models: expected a class, a package's name or a function, got {type(models).__name__}")
    if isinstance(adapter, str):
        if not all(adapter.partition(":")):
            raise FGDValueError(f"adapter: expected module:Class, got {adapter!r}")
    else:
        _check_methods(adapter)
    _registered[:] = [entry for entry in _registered if entry[0] != models]
    _registered.insert(0, (models, adapter))


def adapter_for(model: nn.Module) -> DetectorAdapter:
    """The adapter that fits ``model``.

    Raises:
        TypeError: there is none, or the model is wrapped by torch.compile or for several devices.
        ValueError: the one that is registered for it cannot be imported.
    """
    check_plain("model", model)
    for models, adapter in _known():
        if _matches(models, model):
            return _made(adapter)
    known = ", ".join(models if isinstance(models, str) else getattr(models, "__name__", "") for models, _ in _known())
    raise FGDTypeError(
        f"no adapter for {type(model).__name__}: expected a detector of {known}; for others, write an adapter "
        "(docs/guides/your-own-family.md) and name it: fgd_distill.register_adapter(models, adapter) where the "
        "detector is defined, --model.adapter module:Class on the command line, or adapter= in Python"
    )


def as_adapter(adapter: DetectorAdapter | str | None, model: nn.Module) -> DetectorAdapter:
    """The adapter that a user gave, ready for use; for None, the one that fits ``model``.

    Args:
        adapter: an object, or as ``module:Class`` its name or its class's.
        model: the detector.

    Raises:
        TypeError: it lacks methods of ``DetectorAdapter``; or as ``adapter_for``.
        ValueError: it cannot be imported.
    """
    return adapter_for(model) if adapter is None else _made(adapter)


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


def _known() -> Iterator[tuple[Models, Adapter]]:
    yield from _registered
    yield from _from_entry_points()
    yield from FAMILIES.items()


@cache
def _from_entry_points() -> list[tuple[str, str]]:
    return [(entry.name, entry.value) for entry in entry_points(group=ENTRY_POINTS)]


def _matches(models: Models, model: nn.Module) -> bool:
    if isinstance(models, str):
        return any(f"{kind.__module__}.".startswith(f"{models}.") for kind in type(model).__mro__)
    return isinstance(model, models) if isinstance(models, type) else models(model)


def _made(adapter: Adapter) -> DetectorAdapter:
    found: Any = named_object(adapter, "adapter", "Class") if isinstance(adapter, str) else adapter
    _check_methods(found)
    made = found() if isinstance(found, type) else found
    return made if all(hasattr(made, name) for name in OPTIONAL) else _WithDefaults(made)


def _check_methods(adapter: Any) -> None:
    kind = adapter if isinstance(adapter, type) else type(adapter)
    unwritten = getattr(kind, "__abstractmethods__", ())
    missing = [name for name in REQUIRED if name in unwritten or not callable(getattr(adapter, name, None))]
    if missing:
        raise FGDTypeError(
            "adapter: expected the methods of fgd_distill.DetectorAdapter, got "
            f"{kind.__name__} without {', '.join(missing)}"
        )


class _WithDefaults:
    """An adapter that does not derive from ``DetectorAdapter``, with the defaults for what it lacks."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def __getattr__(self, name: str) -> Any:
        own = vars(self).get("own")  # not there yet while a copy is made
        if hasattr(own, name) or name not in OPTIONAL:
            return getattr(own, name)
        return MethodType(getattr(DetectorAdapter, name), self)
