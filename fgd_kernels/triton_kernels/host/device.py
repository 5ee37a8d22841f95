"""The device that kernels are launched on."""

import contextlib

import torch
from torch import Tensor


def on_device_of(tensor: Tensor):
    """Triton launches on the current device; in its interpreter tensors are on the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
