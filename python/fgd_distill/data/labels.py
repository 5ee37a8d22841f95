"""Category ids of a COCO file and the labels that a detector counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class CategoryLabels:
    """Which label stands for which category, in both directions.

    Args:
        categories: the category ids.
        first_label: labels then count on from it in the order of the ids, without gaps: 0 for detectors that count from
            0 (YOLO, RT-DETR, MMDetection's), 1 for torchvision's, whose class 0 is the background. None: labels are the
            category ids themselves.
    """

    def __init__(self, categories: Iterable[int], first_label: int | None = None) -> None:
        self.categories, self.first_label = sorted(categories), first_label
        first = first_label or 0
        self._label = {
            category: category if first_label is None else first + rank for rank, category in enumerate(self.categories)
        }
        self._category = {label: category for category, label in self._label.items()}

    def largest(self) -> int:
        """The largest label: detectors need num_classes above it."""
        return max(self._category, default=0)

    def of(self, categories: Tensor) -> Tensor:
        """Labels (n,) int64 of category ids (n,)."""
        return torch.tensor([self._label[int(category)] for category in categories], dtype=torch.int64)

    def category(self, label: int) -> int | None:
        """The category id of a label; None for one that stands for none, such as the background's."""
        return label if self.first_label is None else self._category.get(label)

    def state(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint."""
        return {"categories": self.categories, "first_label": self.first_label}

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> CategoryLabels:
        """From a checkpoint; from one that has none, labels are category ids."""
        return cls(**state) if state else cls([])
