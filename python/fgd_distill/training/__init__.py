"""Training a detector with or without a teacher, by PyTorch Lightning."""

from .module import DetectionModule, FGDConfig

__all__ = ["DetectionModule", "FGDConfig"]
