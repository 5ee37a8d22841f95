"""csrc/cuda/operator.cpp, run: its checks, its addresses and strides, what it returns, and the launches that it makes,
on CPU tensors whose memory the interpreter takes for a GPU's. See operator_shim.cpp."""

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil

import pytest
import torch
from cases import BALANCED, PYRAMID, Case, assert_as_reference, evaluate, make_inputs

import fgd_kernels as fgd
from devtools.offline.cuda_build import CUDA, OFFLINE, cached
from devtools.offline.cuda_device import kernel
from devtools.offline.host_memory import HostGPU
from fgd_kernels import ops, reference
from fgd_kernels.autograd import Inputs, Outputs

LAUNCHER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)


def toolkit() -> pathlib.Path | None:
    """The folder of cuda_runtime_api.h."""
    nvcc = pathlib.Path(shutil.which("nvcc") or "").resolve()
    return next(nvcc.parents[1].glob("**/include/cuda_runtime_api.h"), None)


def hash_of(paths) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()[:16]


@pytest.fixture(scope="module")
def library():
    header = toolkit()
    if header is None:
        pytest.skip("cuda_runtime_api.h was not found beside nvcc")
    torch_folder = pathlib.Path(torch.__file__).parent
    sources = (OFFLINE / "operator_shim.cpp", CUDA / "plan.cpp")
    folders = (torch_folder / "include", header.parent, CUDA.parent, CUDA.parent / "include", CUDA)
    linked = ("-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,-Bsymbolic")  # the last: its own cudaSetDevice, not torch's
    flags = ("-shared", "-fPIC", "-std=c++17", "-O1", "-DTORCH_TARGET_VERSION=0x020a000000000000", *linked)
    also = (CUDA / "operator.cpp", CUDA.parent / "arguments.h", CUDA.parent / "schema.h")
    seen = f"-DFGD_SEEN={hash_of(also)}"  # what the shim includes counts in the cache's key
    command = (os.environ.get("CXX", "c++"), *flags, seen, *(f"-I{f}" for f in folders), f"-L{torch_folder / 'lib'}")
    path = cached("operator.so", sources, command)
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


@pytest.fixture
def launches(library, monkeypatch):
    """Within a test the backend "shim" is this operator; yields the names of its launches."""
    gpu, names, errors = HostGPU(), [], []

    def launch(name, blocks, threads, params, size):
        try:
            names.append(name.decode())
            gpu.launch(kernel(names[-1]), blocks, threads, [ctypes.string_at(params, size)])
        except BaseException as error:  # ctypes would only print it
            errors.append(error)

    callback = LAUNCHER(launch)
    library.shim_set_launcher(callback)
    choose, find = ops.choose_backend, ops._operator
    monkeypatch.setattr(ops, "choose_backend", lambda name, *rest: name if name == "shim" else choose(name, *rest))
    monkeypatch.setitem(ops._NAMES, "shim", "shim")
    monkeypatch.setattr(ops, "_operator", lambda name: differentiable if name == "shim" else find(name))
    yield names
    library.shim_set_launcher(LAUNCHER(0))
    if errors:
        raise errors[0]


class _Loss(torch.autograd.Function):
    """The two operators, one the other's derivative; as in fgd_kernels.autograd."""

    @staticmethod
    def forward(ctx, levels, settings, *flat):
        out = Outputs(*torch.ops.fgd_cuda_on_cpu.forward(*Inputs.of(list(flat), levels), *settings))
        ctx.levels, ctx.settings = levels, settings
        ctx.mark_non_differentiable(*out[4:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*flat, out.maps, out.stats)
        return tuple(out)

    @staticmethod
    def backward(ctx, *grads):
        *flat, maps, stats = ctx.saved_tensors
        inputs, need = Inputs.of(flat, ctx.levels), Inputs.of(list(ctx.needs_input_grad[2:]), ctx.levels)
        need_student, need_gc = any(need.student), any(need.gc_block)
        given = torch.stack([stats.new_zeros(()) if g is None else g for g in grads[:4]])
        student, gc_block = torch.ops.fgd_cuda_on_cpu.backward(
            given, *inputs, *ctx.settings, maps, stats, need_student, need_gc
        )
        assert len(student) == need_student * ctx.levels and len(gc_block) == need_gc * len(inputs.gc_block)
        nothing = [None] * ctx.levels
        gc_block = gc_block or [None] * len(inputs.gc_block)
        return None, None, *Inputs(student or nothing, nothing, None, None, None, gc_block).flat()


def differentiable(student, teacher, boxes, offsets, sizes, gc_block, *settings):
    return _Loss.apply(len(student), settings, *Inputs(student, teacher, boxes, offsets, sizes, gc_block).flat())


CASES = [
    Case("float32", PYRAMID, (3, 0), loss=BALANCED),
    Case("bfloat16, channels_last", PYRAMID, (3, 0), *[torch.bfloat16] * 2, True, loss=BALANCED),
    Case("types that differ", PYRAMID, (2,), torch.float16, torch.float32, loss=BALANCED),
    Case("float64", PYRAMID[2:], (2,), *[torch.float64] * 2, loss=BALANCED),
    Case("frozen GcBlocks", PYRAMID[2:], (2, 1), frozen=True, loss=BALANCED),
    Case("fixed student", PYRAMID[2:], (2, 1), fixed_student=True, loss=BALANCED),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_reference(case, launches):
    assert_as_reference(case, "shim")
    assert {name.split("_")[1] for name in launches} >= {"forward", "merge", "finish", "gc", "backward"}


def test_maps_in_place_of_boxes(launches):
    """Their weights as one flat tensor, level after level, change no bit."""
    student, teacher, boxes, sizes, _ = make_inputs(Case("maps", PYRAMID, (3, 0)))
    packed, none = fgd.pack_boxes(boxes, sizes, "cpu"), fgd.pack_boxes([torch.zeros(0, 4)] * 2, sizes, "cpu")
    maps = torch.cat([reference.foreground_mask(*packed, *s.shape[2:]).flatten() for s in student])
    call = functools.partial(torch.ops.fgd_cuda_on_cpu.forward, student, teacher)
    settings = [], [1.0] * 4 * len(student), 0.5, 0.5
    for a, b in zip(call(*packed, *settings), call(*none, *settings, maps), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="foreground: expected a contiguous float32 tensor"):
        call(*none, *settings, maps[1:])


@pytest.mark.parametrize("channels_last", [False, True])
def test_sizes_of_one(channels_last, launches):
    """Where a dimension has one element its stride says nothing. Addresses are at stake here, not roundings."""
    case = Case(
        "ones", ((1, 1, 1), (1, 3, 5), (5, 1, 4), (5, 4, 1)), (1, 2), channels_last=channels_last, loss=BALANCED
    )
    inputs = make_inputs(case)
    ours, truth = evaluate(inputs, "shim"), evaluate(inputs, "reference", torch.float64)
    for name, value in truth.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_slices(layout, launches):
    """Channel and batch slices are read where they lie; their gradients are dense."""
    base = [torch.randn(5, 40, 8, 8).contiguous(memory_format=layout) for _ in range(2)]
    student, teacher = base[0][1:4, 3:27], base[1][::2, 8:32]
    found = [gradients(s, t) for s, t in ((student, teacher), (student.contiguous(), teacher.contiguous()))]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_one_column_of_a_map(launches):
    """Pixels lie a row apart: the stride of the width, which is one, counts for nothing."""
    student, teacher = (
        torch.randn(3, 24, 6, 5).contiguous(memory_format=torch.channels_last)[..., 1:2] for _ in range(2)
    )
    found = [gradients(s, t) for s, t in ((student, teacher), (student.contiguous(), teacher.contiguous()))]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def gradients(student, teacher):
    torch.manual_seed(3)
    criterion = fgd.FGDLoss(24, 24, 1)
    criterion.backend = "shim"
    leaf = student.detach().requires_grad_()
    loss = sum(criterion([leaf], [teacher], [torch.tensor([[0.0, 0.0, 30.0, 40.0]])] * 3, [(64, 64)] * 3).values())
    return [loss.detach(), *torch.autograd.grad(loss, [leaf, *criterion.parameters()])]


def test_empty_batch(launches):
    """No launch, zeros."""
    student, teacher, boxes, sizes, criterion = make_inputs(Case("empty", PYRAMID, (), loss=BALANCED))
    criterion.backend = "shim"
    leaves = [s.requires_grad_() for s in student]
    loss = sum(criterion(leaves, teacher, boxes, sizes).values())
    loss.backward()
    assert loss == 0 and not launches
    assert all((p.grad == 0).all() for p in criterion.parameters())
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


def test_a_refused_launch_raises(library):
    library.shim_set_launcher(LAUNCHER(0))
    one = [torch.ones(1, 2, 3, 3)]
    packed = fgd.pack_boxes([torch.zeros(0, 4)], [(3, 3)], "cpu")
    with pytest.raises(RuntimeError, match="a refused launch"):
        torch.ops.fgd_cuda_on_cpu.forward(one, one, *packed, [], [1.0] * 4, 0.5, 0.5)


def test_wrong_arguments_raise(library):
    one, packed = [torch.ones(1, 2, 3, 3)], fgd.pack_boxes([torch.zeros(0, 4)], [(3, 3)], "cpu")
    mixed = [torch.ones(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)]
    call = torch.ops.fgd_cuda_on_cpu.forward
    with pytest.raises(RuntimeError, match="both contiguous or both channels_last"):
        call(one, mixed, *packed, [], [1.0] * 4, 0.5, 0.5)
    with pytest.raises(RuntimeError, match="weights: expected 4"):
        call(one, one, *packed, [], [1.0] * 3, 0.5, 0.5)
    saved = torch.zeros(4 * 9), torch.zeros(6 * 2)
    with pytest.raises(RuntimeError, match="grads: expected 4 numbers"):
        torch.ops.fgd_cuda_on_cpu.backward(
            torch.ones(3), one, one, *packed, [], [1.0] * 4, 0.5, 0.5, *saved, True, False
        )
    with pytest.raises(RuntimeError, match="what forward saved"):
        torch.ops.fgd_cuda_on_cpu.backward(
            torch.ones(4), one, one, *packed, [], [1.0] * 4, 0.5, 0.5, saved[0][1:], saved[1], True, False
        )
