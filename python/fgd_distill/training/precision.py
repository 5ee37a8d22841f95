"""Half precision without mixing: images and weights in 16 bits, boxes in the 32 bits that pixel coordinates need."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.precision import HalfPrecision

from ..errors import FGDValueError


class HalfPrecisionWithFloatBoxes(HalfPrecision):
    """Lightning's plugin, which would convert the targets of a batch, too: bfloat16 has 8 bits for a coordinate."""

    def convert_input(self, data: Any) -> Any:
        images, targets = data
        return super().convert_input(images), targets


def keep_boxes(trainer: pl.Trainer) -> None:
    """Puts the plugin in the place of Lightning's where ``precision`` is ``bf16-true`` or ``16-true``.

    Raises:
        ValueError: ``bf16-true`` on a CPU, where a validation could not run.
    """
    plugin = trainer.precision_plugin
    if type(plugin) is not HalfPrecision:
        return
    if plugin.precision == "bf16-true" and trainer.strategy.root_device.type == "cpu":
        raise FGDValueError(
            "trainer.precision: expected bf16-mixed or 32-true on a CPU, got bf16-true: torchvision's non-maximum "
            "suppression has no bfloat16 kernel there, so no validation could run"
        )
    trainer.strategy.precision_plugin = HalfPrecisionWithFloatBoxes(plugin.precision)
