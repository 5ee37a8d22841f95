"""Autocast switched off, on every device."""

import contextlib

import torch


def without_autocast(device: str) -> contextlib.AbstractContextManager:
    """For sums, which leave float16's range: a context in which autocast does nothing on devices of this type."""
    # Meta tensors know no autocast; is_autocast_available would say so, but torch 2.10 does not trace it.
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
