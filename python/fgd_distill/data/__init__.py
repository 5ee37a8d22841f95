"""Images and boxes: the COCO data module, loading that can be resumed, evaluation by COCO metrics."""

from .datamodule import Batch, CocoDataModule, CocoFolder

__all__ = ["Batch", "CocoDataModule", "CocoFolder"]
