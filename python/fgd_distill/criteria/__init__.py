"""Other losses on feature maps, with the interface of ``fgd_kernels.FGDLoss``: one file each, in plain PyTorch."""

from .by_name import CRITERIA, CriterionConfig, criterion_class

__all__ = ["CRITERIA", "CriterionConfig", "criterion_class"]
