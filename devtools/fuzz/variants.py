"""The backends of a campaign, each in a process of its own: what it computes with is decided when it is imported."""

import contextlib
import importlib.util
import multiprocessing
import os
from typing import NamedTuple

import torch

from devtools.accuracy.case import evaluate, make_inputs
from devtools.offline import cuda_build
from fgd_kernels import native, ops

from . import generator


class Variant(NamedTuple):
    """A backend and what its process needs: the variables of the environment, and sizes of cases that it can run."""

    name: str
    backend: str
    environment: dict[str, str]
    sizes: tuple[str, ...]

    def runs(self, index: int) -> bool:
        """Whether it takes part in that case."""
        return generator.size_of(index) in self.sizes

    def missing(self) -> str:
        """Why it cannot run here; "" where it can."""
        if self.backend == "triton":
            return "" if importlib.util.find_spec("triton") else "Triton is not installed"
        if self.backend == "ptx":
            return cuda_build.missing()
        info = native.build_info()
        if info is None:
            return native.load() or "the library was built by an older checkout"
        wanted = self.environment["FGD_CPU_ISA"]
        best = max(map(_ISAS.index, (info.instruction_set, wanted)))
        return "" if _ISAS[best] == info.instruction_set else f"this machine has {info.instruction_set}"


_ISAS = ("baseline", "avx2", "avx512")
_ALL = ("large", "medium", "small", "tiny")
VARIANTS = {
    **{f"cpu, {isa}": Variant(f"cpu, {isa}", "cpu", {"FGD_CPU_ISA": isa}, _ALL) for isa in _ISAS},
    "triton": Variant("triton", "triton", {"TRITON_INTERPRET": "1"}, ("small", "tiny")),
    "cuda (PTX)": Variant("cuda (PTX)", "ptx", {}, ("tiny",)),
}


class Worker:
    """A variant's process. It computes between `send` and `receive`, while the caller does something else."""

    def __init__(self, variant: Variant):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        with _environment(variant.environment):
            self._process = context.Process(target=_serve, args=(there, variant.backend), daemon=True)
            self._process.start()
        there.close()

    def send(self, seed: int, index: int) -> None:
        """Have a case computed."""
        self._pipe.send((seed, index))

    def receive(self) -> dict[str, torch.Tensor]:
        """What devtools.accuracy.case.evaluate gives of the case that was sent. RuntimeError with the process's own
        words where it failed."""
        found = self._pipe.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(None)
        self._process.join(timeout=10)


@contextlib.contextmanager
def _environment(variables: dict[str, str]):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def inputs_of(seed: int, index: int) -> tuple:
    """A case's inputs, the same in every process."""
    torch.manual_seed(generator.torch_seed(seed, index))
    return make_inputs(generator.make_case(seed, index))


def _add_backend(name: str, operator) -> None:
    """A backend of that name for this process: what FGDLoss calls with it. `operator` gets a list for its runs."""
    choose, find = ops.choose_backend, ops._operator
    ops._NAMES[name] = name
    ops.choose_backend = lambda asked, *rest: asked if asked == name else choose(asked, *rest)
    ops._operator = lambda asked: operator([]) if asked == name else find(asked)


def _received(pipe):
    """What is asked for next; None at the end, also where the campaign's process is gone."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def _serve(pipe, backend: str) -> None:
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        import devtools.offline.triton_interpreter  # noqa: F401
    if backend == "ptx":
        from devtools.offline import cuda_device  # only here: it compiles

        _add_backend(backend, cuda_device.operator)
    while (asked := _received(pipe)) is not None:
        case = generator.make_case(*asked)
        try:
            found = evaluate(inputs_of(*asked), backend, None, case.fixed_student)
            pipe.send({name: value.numpy() for name, value in found.items()})
        except Exception as failure:  # the campaign reports it and goes on
            pipe.send(f"{type(failure).__name__}: {failure}")
