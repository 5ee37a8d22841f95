"""Adapters: what the distiller must know of each family of detectors."""

from .base import DetectorAdapter, StudentStep
from .probe import backbone_features, probe_channels
from .registry import adapter_for
from .torchvision import TorchvisionAdapter

__all__ = ["DetectorAdapter", "StudentStep", "TorchvisionAdapter", "adapter_for", "backbone_features", "probe_channels"]
