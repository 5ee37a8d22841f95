"""Images and boxes: the COCO data module, loading that can be resumed, evaluation by COCO metrics."""

from typing import TYPE_CHECKING

from .._lazy import names_from

if TYPE_CHECKING:
    from .datamodule import Batch, CocoDataModule, CocoFolder

__all__ = ["Batch", "CocoDataModule", "CocoFolder"]
__getattr__ = names_from(__name__, {"datamodule": __all__})
