"""Reading what modules inside a network return, by their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from .errors import FGDRuntimeError, FGDTypeError, FGDValueError


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule called ``name``.

    Raises:
        ValueError: there is none; the message lists names that come close.
    """
    modules = dict(model.named_modules())
    if name not in modules or name == "":
        names = [candidate for candidate in modules if candidate]
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:5]
        raise FGDValueError(f"layer: {type(model).__name__} has no module {name!r}; close names are {close}")
    return modules[name]


def layer_names(layers: str | Sequence[str]) -> list[str]:
    """One name or several as a list."""
    return [layers] if isinstance(layers, str) else list(layers)


def feature_list(output: Any, name: str) -> list[Tensor]:
    """The feature maps in a module's output: a tensor (N, C, H, W), or a dict, list or tuple of them.

    Raises:
        TypeError, ValueError: the output of layer ``name`` is something else.
    """
    values = list(output.values()) if isinstance(output, Mapping) else output
    values = [values] if isinstance(values, Tensor) else values
    if not isinstance(values, Sequence) or not all(isinstance(value, Tensor) for value in values):
        raise FGDTypeError(
            f"layer {name!r}: expected a tensor, or a dict, list or tuple of tensors, got {type(output)}"
        )
    wrong = [tuple(value.shape) for value in values if value.ndim != 4]
    if wrong or not values:
        raise FGDValueError(f"layer {name!r}: expected feature maps (N, C, H, W), got {wrong or 'no tensor'}")
    return list(values)


def _versions(output: Any) -> list[int]:
    """The version counters of the tensors in a module's output; every change in place raises one."""
    values = list(output.values()) if isinstance(output, Mapping) else output
    values = values if isinstance(values, list | tuple) else [values]
    return [value._version for value in values if isinstance(value, Tensor) and not value.is_inference()]


class _PassEnded(BaseException):
    """Leaves a forward pass; no Exception, so that a detector's own handlers let it through."""

    def __init__(self, tap: LayerTap) -> None:
        super().__init__("a LayerTap ended this forward pass")
        self.tap = tap


class LayerTap:
    """Records the outputs of some layers while the ``with`` block runs.

    Its hooks live only that long: a copy of the model, such as a moving average, never carries one, and neither does
    a pickle.

    Args:
        model: the network.
        layers: names of submodules, in the order in which outputs are wanted.
        stop: leave the ``with`` block as soon as every layer has run, so that what comes behind them never runs.

    Raises:
        ValueError: a layer does not exist.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], stop: bool = False) -> None:
        self.layers, self.stop = list(layers), stop
        self._modules = {name: find_layer(model, name) for name in self.layers}
        self._outputs: dict[str, list[tuple[Any, list[int]]]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._recorder(name)))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return isinstance(error, _PassEnded) and error.tap is self

    def _recorder(self, name: str):
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            self._outputs.setdefault(name, []).append((output, _versions(output)))
            if self.stop and len(self._outputs) == len(self._modules):
                raise _PassEnded(self)

        return record

    def output(self, name: str) -> Any:
        """What layer ``name`` returned.

        Raises:
            RuntimeError: it did not run, or ran several times, so that which output is meant is not clear, or the
                output was changed in place behind it.
        """
        runs = self._outputs.get(name, [])
        if not runs:
            raise FGDRuntimeError(f"layer {name!r} did not run in this forward pass, so it has no output to distil")
        if len(runs) > 1:
            raise FGDRuntimeError(f"layer {name!r} ran {len(runs)} times in this forward pass; tap one that runs once")
        output, versions = runs[0]
        if versions != _versions(output):
            # Else a pass that ended at once and one that went on would record different things.
            raise FGDRuntimeError(
                f"layer {name!r}: a later layer changed its output in place (an activation with inplace=True, say); "
                "tap that layer instead"
            )
        return output

    def features(self) -> list[Tensor]:
        """The feature maps of all layers, one after the other.

        Raises:
            RuntimeError: as ``output``.
            TypeError, ValueError: as ``feature_list``.
        """
        return [tensor for name in self.layers for tensor in feature_list(self.output(name), name)]
