"""What each part of a training step costs, on the CPU's or the GPU's own time line."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.datamodule import Batch
from ..distiller import DetectionDistiller, TeacherCache
from ..errors import FGDValueError
from .module import DetectionModule

DATA, STUDENT, TEACHER = "data", "student forward", "teacher forward"
LOSS, LOSS_BACKWARD = "loss forward", "loss backward"
BACKWARD, OPTIMIZER = "rest of backward", "optimizer"
PARTS = (DATA, STUDENT, TEACHER, LOSS, LOSS_BACKWARD, BACKWARD, OPTIMIZER)


@dataclass(frozen=True)
class StepProfile:
    """Seconds of each part of the measured steps.

    Args:
        seconds: by part, in the order of a step; one number a step.
    """

    seconds: dict[str, list[float]]

    @property
    def medians(self) -> dict[str, float]:
        """Seconds by part."""
        return {part: statistics.median(values) for part, values in self.seconds.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Each part's share of the sum of all medians, 0..1."""
        total = sum(self.medians.values())
        return {part: median / total for part, median in self.medians.items()}

    @property
    def step(self) -> float:
        """Median seconds of a whole step."""
        return statistics.median(map(sum, zip(*self.seconds.values(), strict=True)))


class Clock:
    """Splits the time since ``start`` into parts.

    On CUDA it records events and waits for none of them before ``seconds``: the device works on as it does in a
    training, and a part has the time in which the device worked on it or waited for its launches. On the CPU it reads
    the time; another accelerator is waited for first.

    Args:
        device: where the step runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Begins the first part."""
        self.marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """Ends ``part``, which lasted since the last mark, and begins the next."""
        self.marks.append((part, self._now()))

    def _now(self) -> Any:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """By part; several marks of one part add up."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: dict[str, float] = {}
        for (_, begin), (part, end) in zip(self.marks, self.marks[1:], strict=False):
            lasted = begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
            found[part] = found.get(part, 0.0) + lasted
        return found


class _TimedTeacher:
    """Stands where the distiller asks for the teacher's maps, and tells the clock."""

    def __init__(self, clock: Clock, cache: TeacherCache | None) -> None:
        self.clock, self.cache = clock, cache

    def features(self, batch: Tensor, targets: Any, compute: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        self.clock.mark(STUDENT)
        maps = compute(batch) if self.cache is None else self.cache.features(batch, targets, compute)
        self.clock.mark(TEACHER)
        return maps


def profile_steps(
    module: DetectionModule,
    batches: Iterable[Batch],
    to_device: Callable[[Batch], Batch],
    device: torch.device,
    steps: int = 20,
    warmup: int = 3,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    clip: float | None = None,
) -> StepProfile:
    """Takes training steps and times their parts; the parameters change as in a training.

    The time of the data is what the step waits for: loading that goes on in other processes beside the step is free.
    Without a teacher there are no parts of it and of the loss. The loss counts in every step, whatever the schedule.

    Args:
        module: in its place on ``device``.
        batches: the training loader; it begins again at its end.
        to_device: moves a batch.
        device: where the steps run.
        steps: how many are measured.
        warmup: steps before these, which are not.
        context: of the forward passes, such as autocast.
        clip: the largest norm of the gradient; None does not clip.

    Raises:
        ValueError: ``steps`` or ``warmup`` out of range, or no batch.
    """
    if steps < 1 or warmup < 0:
        raise FGDValueError(f"expected steps >= 1 and warmup >= 0, got steps={steps} and warmup={warmup}")
    module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = module.make_optimizer(parameters)
    found: list[dict[str, float]] = []
    endless = _again_and_again(batches)
    for _ in range(warmup + steps):
        begin = time.perf_counter()
        batch = to_device(next(endless))
        _wait(device)
        waited = time.perf_counter() - begin
        clock = Clock(device)
        _forward_and_backward(module, batch, clock, context)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark(OPTIMIZER)
        found.append({DATA: waited} | clock.seconds())
    kept = found[warmup:]
    return StepProfile({part: [step[part] for step in kept] for part in PARTS if part in kept[0]})


def _forward_and_backward(
    module: DetectionModule, batch: Batch, clock: Clock, context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    images, targets = batch
    if module.distiller is None:
        with context():
            losses = module.adapter.student_step(module.student, images, targets).losses
        clock.mark(STUDENT)
        _total(losses).backward()
    else:
        with context(), _timed_teacher(module.distiller, clock):
            features = module.distiller.features(images, targets)
            clock.mark(TEACHER)
            # The loss from leaves of its own: its backward pass then ends at them, and can be timed by itself.
            leaves = [feature.detach().requires_grad_() for feature in features.student]
            terms = features.judged_by(module.distiller.criterion, leaves)
            clock.mark(LOSS)
        _total(terms).backward()
        clock.mark(LOSS_BACKWARD)
        grads = [leaf.grad for leaf in leaves]
        torch.autograd.backward([_total(features.step.losses), *features.student], [None, *grads])
    clock.mark(BACKWARD)


@contextlib.contextmanager
def _timed_teacher(distiller: DetectionDistiller, clock: Clock) -> Iterator[None]:
    cache = distiller.teacher_cache
    distiller.teacher_cache = _TimedTeacher(clock, cache)
    try:
        yield
    finally:
        distiller.teacher_cache = cache


def _again_and_again(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise FGDValueError("batches: expected at least one, got none")


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
