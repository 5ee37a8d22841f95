"""``fgd-distill doctor`` and ``fgd-distill --version``: what a bug report needs."""

from __future__ import annotations

import sys

from fgd_kernels import doctor as kernels

PACKAGES = ("torchvision", "pytorch-lightning", "jsonargparse", "pycocotools", "ultralytics", "transformers")


def doctor() -> None:
    """Examines this installation.

    Tells versions, backends and the compiled library, computes a small loss on each backend beside the reference, and
    says what would make it faster. Ends with status 1 if a backend computes a wrong loss.
    """
    text, passed = kernels.report(PACKAGES)
    print(text)
    if not passed:
        sys.exit(1)


def version() -> None:
    """Prints the version, with torch's, the backends that run here and the instruction set."""
    print(kernels.summary())
