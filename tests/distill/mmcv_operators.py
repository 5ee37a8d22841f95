"""mmcv's compiled operators, by torchvision's; to build them for the tests takes longer than all of these.

In their place stands a module whose every function raises, with the operator's name, but for those that the tests'
detectors need: non-maximum suppression, RoI pooling and, for RepPoints and the teachers with deformable backbones,
deformable convolution.
"""

import sys
import types
from importlib.machinery import ModuleSpec
from typing import ClassVar

import pytest
import torch
from torchvision import ops


class Operators(types.ModuleType):
    """Stands for mmcv's compiled extension. Results are written into arguments, as there. ``asked`` has the names of
    the operators that were looked up, all of them when mmcv is imported, and then one a call."""

    asked: ClassVar[set[str]] = set()

    def __getattribute__(self, name):
        if not name.startswith("_") and name != "asked":
            Operators.asked.add(name)
        return super().__getattribute__(name)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **options):
            raise RuntimeError(f"mmcv's compiled operator {name} is not built for the tests")

        return missing

    @staticmethod
    def nms(boxes, scores, iou_threshold, offset):
        assert offset == 0
        return ops.nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(maps, rois, output, *_, spatial_scale, sampling_ratio, aligned, **size):
        output.copy_(ops.roi_align(maps, rois, output.shape[2:], spatial_scale, sampling_ratio, aligned))

    @staticmethod
    def deform_conv_forward(maps, weight, offset, output, *_, **options):
        output.copy_(deformed(maps, offset, weight, options))

    @staticmethod
    def deform_conv_backward_input(maps, offset, upstream, into_maps, into_offset, weight, *_, **options):
        found = gradients((maps, offset, weight), upstream, options)
        into_maps.copy_(found[0])
        into_offset.copy_(found[1])

    @staticmethod
    def deform_conv_backward_parameters(maps, offset, upstream, into_weight, *_, scale, **options):
        weight = torch.zeros_like(into_weight)  # the convolution is linear in it
        into_weight.add_(gradients((maps, offset, weight), upstream, options)[2], alpha=scale)


def deformed(maps, offset, weight, options):
    """Groups are told by the weight's shape, deformable groups by the offset's."""
    pairs = (("dH", "dW"), ("padH", "padW"), ("dilationH", "dilationW"))
    stride, padding, dilation = (tuple(options[name] for name in pair) for pair in pairs)
    return ops.deform_conv2d(maps, offset, weight, None, stride, padding, dilation)


def gradients(inputs, upstream, options):
    with torch.enable_grad():
        maps, offset, weight = (x.detach().requires_grad_() for x in inputs)
        return torch.autograd.grad(deformed(maps, offset, weight, options), (maps, offset, weight), upstream)


def use_mmdet(runner: bool = False) -> None:
    """Imports MMDetection, with these operators where mmcv has none of its own; skips the test without it.

    Args:
        runner: whether its Runner, data sets or ``init_detector`` are needed, which import more packages.
    """
    for name in ("imgaug", "terminaltables", "yapf") if runner else ():
        pytest.importorskip(name, reason="pip install --no-deps -r requirements-adapters.txt")
    pytest.importorskip("mmdet", reason="pip install --no-deps -r requirements-adapters.txt")
    try:
        import mmcv._ext  # noqa: F401
    except ImportError:
        operators = Operators("mmcv._ext")
        operators.__spec__ = ModuleSpec("mmcv._ext", None)  # which MMDetection looks for
        sys.modules["mmcv._ext"] = operators
    import mmdet.models  # noqa: F401
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
