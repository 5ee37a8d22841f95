"""Adapters: what the distiller must know of each family of detectors, and what helps to write one."""

from .base import DetectorAdapter, Frame, StudentStep
from .batches import (
    check_images,
    check_targets,
    denormalised,
    detection,
    stack_images,
    stack_normalised,
    to_pixels,
    to_relative,
)
from .probe import backbone_features, probe_channels
from .registry import adapter_for, as_adapter, register_adapter
from .torchvision import TorchvisionAdapter

__all__ = [
    "DetectorAdapter",
    "Frame",
    "StudentStep",
    "TorchvisionAdapter",
    "adapter_for",
    "as_adapter",
    "backbone_features",
    "check_images",
    "check_targets",
    "denormalised",
    "detection",
    "probe_channels",
    "register_adapter",
    "stack_images",
    "stack_normalised",
    "to_pixels",
    "to_relative",
]
