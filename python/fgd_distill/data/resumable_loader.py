"""A data loader that shares its batches among processes and continues where a checkpoint was written.

Nothing here keeps a random state. The order of an epoch's images is a function of a seed and the epoch, and the random
numbers that a transform sees are a function of seed, epoch and image. So a training that is resumed, in the middle of
an epoch too, sees what it would have seen; the number of loader workers does not matter; and processes of a
distributed training see together, step by step, the batches of a single process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import FGDError, FGDValueError
from ..processes import process_rank


def derived_seed(*keys: int) -> int:
    """A seed for a random generator that depends on all of the numbers ``keys``: 0 <= seed < 2^63."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 to ``length - 1`` in the order of ``DataLoader(shuffle=True)`` with a generator of that seed.

    Args:
        length: how many.
        seed: of the generator.
        epoch: which pass over the data, counted from 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch):
        _seed_of_workers(generator)
        torch.randperm(length, generator=generator)
    _seed_of_workers(generator)
    return torch.randperm(length, generator=generator).tolist()


def _seed_of_workers(generator: torch.Generator) -> None:
    torch.empty((), dtype=torch.int64).random_(generator=generator)  # a DataLoader draws it before each epoch


class JointBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), of which each process yields its part of the joint batch.

    Args:
        length: number of images.
        batch_size: images a step and process.
        seed: of the order; None keeps the images in their order.
        drop_last: leaves out the images that fill no joint batch. Otherwise the last batch is smaller or, with several
            processes, filled with images from the beginning, because every process must take as many steps.
    """

    def __init__(self, length: int, batch_size: int, seed: int | None = None, drop_last: bool = False) -> None:
        self.length, self.batch_size, self.seed, self.drop_last = length, batch_size, seed, drop_last
        self.epoch = self.start = 0  # set by the loader before it asks for batches

    @property
    def joint_batch_size(self) -> int:
        """Images a step of all processes."""
        return self.batch_size * process_rank()[1]

    def __len__(self) -> int:
        joint = self.joint_batch_size
        return self.length // joint if self.drop_last else -(-self.length // joint)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, (rank, processes) = self.epoch, process_rank()
        order = list(range(self.length)) if self.seed is None else epoch_order(self.length, self.seed, epoch)
        for step in range(self.start, len(self)):
            first = (step * processes + rank) * self.batch_size
            places = range(first, first + self.batch_size)
            if processes == 1:
                places = range(first, min(first + self.batch_size, self.length))
            yield [(epoch, order[place % self.length]) for place in places]


class ResumableLoader(DataLoader):
    """A DataLoader of ``JointBatches`` that tells where it is, and goes on from there.

    Lightning asks for ``state_dict`` when it writes a checkpoint and gives it back when a training is resumed. What
    counts are the batches handed out, not those that workers prepared ahead.

    Args:
        dataset: takes the pairs (epoch, index).
        batches: which ones, and in which order.
        options: further arguments of ``DataLoader``.
    """

    batch_sampler: JointBatches

    def __init__(self, dataset: Dataset, batches: JointBatches, **options: Any) -> None:
        # A generator of its own: the seeds that it draws for its workers would else move the global one.
        super().__init__(dataset, batch_sampler=batches, generator=torch.Generator(), **options)
        self.epoch, self.done = 0, 0
        self._goes_on = True  # the next iteration continues this epoch instead of beginning another
        self.steps_an_epoch: int | None = None
        """Where the training ends an epoch, if that is before the last batch."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, not torch's own iterator
        if not self._goes_on:
            self.epoch, self.done = self.epoch + 1, 0
        self._goes_on = False
        self.batch_sampler.epoch, self.batch_sampler.start = self.epoch, self.done
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except FGDError as error:
                raise _without_traceback(error) from error
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int | None]:
        """The position, and what it must be compared with, in plain numbers."""
        batches = self.batch_sampler
        at_end = self.done >= (self.steps_an_epoch or len(batches))
        return {
            "epoch": self.epoch + at_end,
            "batches": 0 if at_end else self.done,
            "images": batches.length,
            "joint_batch_size": batches.joint_batch_size,
            "seed": batches.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at this position with the next iteration.

        Raises:
            ValueError: it lies within an epoch of other data, of another batch size or of another seed.
        """
        expected = self.state_dict()
        differs = [key for key in ("images", "joint_batch_size", "seed") if state[key] != expected[key]]
        if state["batches"] and differs:
            told = ", ".join(f"{key} {state[key]} (now {expected[key]})" for key in differs)
            raise FGDValueError(
                f"the checkpoint lies within an epoch, after {state['batches']} batches of a training with {told}; "
                "resume with the same data and joint batch size, or from a checkpoint at an epoch's end"
            )
        self.epoch, self.done = state["epoch"], state["batches"]
        self._goes_on = True


def _without_traceback(error: FGDError) -> FGDError:
    """The error as it was raised: torch puts the traceback of a loader process into the message."""
    kind = type(error)
    return kind(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip())
