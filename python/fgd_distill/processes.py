"""What the processes of a distributed training must know of each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch.distributed
from torch import Tensor, nn

Key = TypeVar("Key")
Value = TypeVar("Value")


def process_rank() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without torch.distributed."""
    if not _distributed():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def gather(results: dict[Key, Value]) -> dict[Key, Value]:
    """The entries of all processes, equal on each; of two with the same key one is kept."""
    if not _distributed():
        return results
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, results)
    return {key: value for part in parts for key, value in part.items()}


def from_first_process(value: Value) -> Value:
    """The first process's value, on each."""
    if not _distributed():
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held, 0)
    return held[0]


def share_parameters(module: nn.Module) -> None:
    """Gives a module that no DistributedDataParallel holds the first process's parameters and buffers, on each."""
    if _distributed():
        module.load_state_dict(from_first_process({name: value.cpu() for name, value in module.state_dict().items()}))


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The tensor's sum over the processes, on each; itself where there is but one. No gradient."""
    if _distributed():
        torch.distributed.all_reduce(tensor)
    return tensor


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Gradients of parameters that no DistributedDataParallel holds become their means over the processes."""
    if not _distributed():
        return
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return
    together = torch.cat([grad.flatten() for grad in grads])
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    for grad, mean in zip(grads, together.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def leave_processes() -> None:
    """Ends this process's membership of the group, if it is in one.

    Its threads otherwise run until the interpreter has gone, and now and then one ends the process by SIGABRT
    ("terminate called without an active exception"): a finished training that reports failure.
    """
    if _distributed():
        torch.distributed.destroy_process_group()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
