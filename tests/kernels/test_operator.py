"""The operator as PyTorch sees it: opcheck, compile, autocast, derivatives, bad input, odd batches."""

import math
import pathlib
import random
import shutil
import subprocess
import sys

import pytest
import torch
from cases import BALANCED, PYRAMID, Case, evaluate, make_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

import fgd_kernels as fgd
from fgd_kernels.backend import choose_backend
from fgd_kernels.errors import FGDError

HERE = [name for name in ("cpu", "reference") if fgd.backends()[name].available]
OPERATORS = {"cpu": "", "reference": "_reference"}
each_backend = pytest.mark.parametrize("backend", HERE)


S = torch.randn(2, 6, 5, 7)
BOXES, SIZES = [torch.zeros(0, 4)] * 2, [(40, 56)] * 2


def operator_arguments(dtype=torch.float32, requires_grad=True, levels=((6, 5, 7), (6, 2, 3))):
    student, teacher, boxes, sizes, criterion = make_inputs(Case("op", levels, (2, 0), dtype, dtype))
    criterion = criterion.to(dtype if dtype == torch.float64 else torch.float32)
    packed = fgd.pack_boxes(boxes, sizes, "cpu")
    gc_block = [p.detach().requires_grad_(requires_grad) for level in criterion.levels for p in level.gc_block()]
    student = [s.requires_grad_(requires_grad) for s in student]
    return student, teacher, *packed, gc_block, [0.1, 0.2, 0.3, 0.4] * len(levels), 0.5, 0.7


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(backend, dtype):
    forward = getattr(torch.ops.fgd_kernels, "forward" + OPERATORS[backend]).default
    torch.library.opcheck(forward, operator_arguments(dtype))
    if backend == "reference":
        return  # autograd's alone
    arguments = operator_arguments(dtype, requires_grad=False)
    maps, stats = forward(*arguments)[5:]
    backward = torch.ops.fgd_kernels.backward.default
    grads = torch.rand(4, dtype=dtype)
    for need in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(backward, (grads, *arguments, maps, stats, *need))


@each_backend
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradcheck(backend, channels_last):
    case = Case("gradcheck", ((4, 3, 5), (5, 2, 2)), (2, 0), torch.float64, torch.float64, channels_last)
    student, teacher, boxes, sizes, criterion = make_inputs(case)
    criterion = criterion.double()
    parameters = [p for level in criterion.levels for p in level.gc_block()]

    def loss(*tensors):
        losses = fgd.fgd_loss(
            list(tensors[:2]), teacher, boxes, sizes, gc_block=tensors[2:], backend=backend, temperature=0.9, **BALANCED
        )
        return tuple(losses.values())

    inputs = [t.detach().requires_grad_() for t in (*student, *parameters)]
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-6)


@pytest.mark.skipif("cpu" not in HERE, reason="no compiled library")
def test_second_derivatives_raise():
    student = torch.randn(1, 3, 4, 4, requires_grad=True)
    losses = fgd.fgd_loss(student, torch.randn(1, 3, 4, 4), [torch.zeros(0, 4)], [(8, 8)], backend="cpu")
    (grad,) = torch.autograd.grad(sum(losses.values()), student, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


def small_loss(student, **settings):
    arguments = {"teacher": S, "boxes": BOXES, "image_sizes": SIZES} | settings
    return sum(fgd.fgd_loss(student, **arguments).values())


@pytest.mark.skipif("cpu" not in HERE, reason="no compiled library")
def test_forward_mode_is_refused():
    """Without a word the tangent would be lost: a derivative of zero."""
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode AD"):
        small_loss(forward_ad.make_dual(S, torch.ones_like(S)))
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(small_loss)(S)


def test_the_reference_is_plain_pytorch():
    """No kernel hides it: reverse, forward and second derivatives, by torch.autograd and by torch.func."""
    torch.manual_seed(5)
    student, teacher, boxes, sizes, criterion = make_inputs(
        Case("plain", ((3, 2, 3),), (2, 0), torch.float64, torch.float64)
    )
    gc_block = [p.detach().double() for p in criterion.levels[0].gc_block()]

    def loss(s):
        settings = {"gc_block": gc_block, "backend": "reference", **BALANCED}
        return sum(fgd.fgd_loss(s, teacher[0], boxes, sizes, **settings).values())

    leaf = student[0].requires_grad_()
    assert torch.autograd.gradgradcheck(loss, leaf, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(student[0].detach()), gradient)
    direction = torch.randn_like(leaf)
    _, tangent = torch.func.jvp(loss, (student[0].detach(),), (direction,))
    torch.testing.assert_close(tangent, (gradient * direction).sum())


@each_backend
def test_grad_modes(backend):
    student = (S + 1).requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not small_loss(student, backend=backend).requires_grad
    with torch.inference_mode():
        teacher = S.clone()
    with pytest.raises(RuntimeError, match=r"teacher: .*inference_mode.*use torch.no_grad\(\)"):
        small_loss(student, teacher=teacher, backend=backend)


def test_backward_twice_adds_up():
    student = (S + 1).requires_grad_()
    loss = small_loss(student)
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    loss.expand(3).sum().backward()
    torch.testing.assert_close(student.grad, 4 * once)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_meta_tensors_give_shapes(backend):
    meta = S.to("meta")
    assert small_loss(meta, teacher=meta, boxes=[box.to("meta") for box in BOXES], backend=backend).is_meta


@each_backend
def test_compile_without_graph_breaks(backend):
    case = Case("compile", PYRAMID[:3], (3, 0), student_channels=11, loss=BALANCED | {"backend": backend})
    student, teacher, boxes, sizes, criterion = make_inputs(case)
    # The reference is part of the graph, and inductor would spend minutes on its C++: traced and run is enough here.
    compiled = torch.compile(criterion, fullgraph=True, backend="inductor" if backend == "cpu" else "aot_eager")
    results = []
    for call in (criterion, compiled):
        leaves = [s.detach().requires_grad_() for s in student]
        losses = call(leaves, teacher, boxes, sizes)
        parameters = list(criterion.parameters())
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves + parameters)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    # Another number of boxes.
    torch.testing.assert_close(
        compiled(student, teacher, boxes[::-1], sizes), criterion(student, teacher, boxes[::-1], sizes)
    )


def test_one_graph_for_all_numbers_of_boxes():
    """Boxes that are packed outside the graph: their number changes at will."""
    torch._dynamo.reset()  # graphs of other tests
    criterion = fgd.FGDLoss(8, 8, num_levels=1)
    compiled = torch.compile(criterion, fullgraph=True)
    counts = random.Random(0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(20):
            student, teacher = torch.randn(4, 8, 5, 7, requires_grad=True), torch.randn(4, 8, 5, 7)
            boxes = [torch.rand(n, 2).repeat(1, 2) * 20 for n in counts.choices([0, 1, 2, 3, 5, 9, 20], k=4)]
            packed = fgd.pack_boxes(boxes, [(40, 56)] * 4, "cpu")
            losses = compiled([student], [teacher], packed)
            torch.testing.assert_close(losses, criterion([student], [teacher], packed))
            sum(losses.values()).backward()


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(backend, dtype):
    """Under autocast the align convolution yields low precision, the loss is float32, and nothing overflows."""
    case = Case("autocast", ((16, 9, 9),), (2, 1), student_channels=8, scale=10.0, loss=BALANCED | {"backend": backend})
    student, teacher, boxes, sizes, criterion = make_inputs(case)
    student[0].requires_grad_()
    with torch.autocast("cpu", dtype):
        losses = criterion(student, [t.to(dtype) for t in teacher], boxes, sizes)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert student[0].grad.isfinite().all()
    plain = criterion(student, teacher, boxes, sizes)
    for name, value in losses.items():
        torch.testing.assert_close(value, plain[name], rtol=0.1, atol=1e-3)


def test_low_precision_does_not_overflow():
    """A sum of squares in float16 is inf on one P3 level: sums are float32."""
    student, teacher = (60 * torch.randn(1, 64, 40, 40)).half(), (60 * torch.randn(1, 64, 40, 40)).half()
    student.requires_grad_()
    losses = fgd.fgd_loss(student, teacher, [torch.zeros(0, 4)], [(80, 80)])
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert student.grad.dtype == torch.float16 and student.grad.isfinite().all()


@each_backend
def test_empty_batch(backend):
    case = Case("empty batch", PYRAMID, (), loss=BALANCED)
    results = evaluate(make_inputs(case), backend)
    assert len(results) == 4 + 5 + 5 * 16 and all((value == 0).all() for value in results.values())


@each_backend
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_nan_in_nan_out(where, backend):
    case = Case("nan", ((8, 9, 9), (8, 4, 4)), (2, 1), loss=BALANCED)
    inputs = make_inputs(case)
    for level in inputs[0 if where == "student" else 1]:
        level[0, 3, 2, 2] = math.nan
    results = evaluate(inputs, backend)
    assert all(results[name].isnan() for name in fgd.LOSS_NAMES if name != "loss_fgd_fg" or where == "teacher")
    assert results["student[0]"][0].isnan().any()
    assert results["student[0]"][1].isfinite().all()  # images do not touch each other


@each_backend
def test_infinite_features_end(backend):
    inputs = make_inputs(Case("inf", ((8, 9, 9),), (2,), loss=BALANCED))
    inputs[0][0][0, 0, 0, 0] = math.inf
    assert not evaluate(inputs, backend)["loss_fgd_global"].isfinite()


@pytest.mark.skipif("cpu" not in HERE, reason="no compiled library")
def test_poisoned_memory():
    """Every number that is handed out was written: fresh memory full of NaN makes no difference."""
    case = Case("poison", PYRAMID, (3, 0, 2), loss=BALANCED)
    inputs = make_inputs(case)
    expected = evaluate(inputs, "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        found = evaluate(inputs, "cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@each_backend
def test_part_of_the_terms(backend):
    """A user may drop terms: the others' gradients do not change."""
    student, teacher, boxes, sizes, criterion = make_inputs(Case("part", PYRAMID[:2], loss=BALANCED))
    criterion.backend = backend
    for name in fgd.LOSS_NAMES:
        leaves = [s.detach().requires_grad_() for s in student]
        criterion(leaves, teacher, boxes, sizes)[name].backward()
        assert all(leaf.grad.isfinite().all() for leaf in leaves), name


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30)),
    counts=st.integers(0, 5),
    temperature=st.floats(0.1, 10),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(shape, counts, temperature, channels_last, seed):
    if "cpu" not in HERE:
        pytest.skip("no compiled library")
    torch.manual_seed(seed)
    n, c, h, w = shape
    loss = BALANCED | {"temperature": temperature}
    case = Case("any", ((c, h, w),), (counts,) * n, channels_last=channels_last, loss=loss)
    inputs = make_inputs(case)
    truth, ours = evaluate(inputs, "reference", torch.float64), evaluate(inputs, "cpu")
    for name in ("loss_fgd_fg", "loss_fgd_bg", "loss_fgd_global", "student[0]"):
        # The gradient of |A_s - A_t| jumps where they meet: a rounding may decide on which side a pixel is.
        tolerance = (
            5e-5 * float(truth[name].norm()) + 1e-6 + (0.02 * float(truth[name].norm()) if name[0] == "s" else 0)
        )
        assert float((ours[name] - truth[name]).norm()) <= tolerance, name


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"student": 3}, TypeError, "student: expected a tensor or a list"),
        ({"student": []}, ValueError, "student: expected at least one level"),
        ({"student": [S, 3], "teacher": [S, S]}, TypeError, r"student\[1\]: expected a tensor"),
        ({"student": S[0]}, ValueError, r"student\[0\]: expected shape \(N, C, H, W\), got \(6, 5, 7\)"),
        ({"student": S.int()}, TypeError, r"student\[0\]: expected float16.*got torch.int32"),
        ({"teacher": [S, S]}, ValueError, "teacher: expected 1 levels"),
        (
            {"teacher": S[:, :5]},
            ValueError,
            r"teacher\[0\]: expected the student's shape \(2, 6, 5, 7\), got \(2, 5, 5, 7\)",
        ),
        ({"teacher": S[..., :5]}, ValueError, "expected the student's shape"),
        ({"teacher": S.clone().requires_grad_()}, ValueError, "got requires_grad=True; detach"),
        ({"teacher": S.to("meta")}, ValueError, r"teacher\[0\]: expected device cpu.*got meta"),
        ({"student": torch.randn(2, 2049, 1, 1)}, ValueError, "1 to 2048 channels"),
        (
            {"boxes": BOXES[:1], "image_sizes": SIZES[:1]},
            ValueError,
            "boxes: expected one tensor for each of 2 images, got 1",
        ),
        ({"image_sizes": SIZES[:1]}, ValueError, "image_sizes: expected one"),
        ({"image_sizes": None}, TypeError, "image_sizes"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a number > 0"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"temperature": 1e-40}, ValueError, r"temperature: expected at least 2.94e-39, .* got 1e-40"),
        ({"temperature": "0.5"}, TypeError, "temperature: expected a number > 0, got '0.5' of type str"),
        ({"alpha": math.nan}, ValueError, "alpha: expected a finite number >= 0, got nan"),
        ({"beta": math.inf}, ValueError, "beta: expected a finite number >= 0, got inf"),
        ({"gamma": -1.0}, ValueError, "gamma: expected a finite number >= 0, got -1.0"),
        ({"lambda_": True}, TypeError, "lambda_: expected a number >= 0, got True of type bool"),
        ({"level_weights": [math.nan]}, ValueError, r"level_weights\[0\]: expected a finite number >= 0, got nan"),
        ({"level_weights": 2.0}, TypeError, "level_weights: expected numbers"),
        ({"gc_block": None}, TypeError, "gc_block: expected a list of tensors, which may be empty, got NoneType"),
        ({"gc_block": [1] * 16}, TypeError, r"gc_block\[0\]: expected a tensor, got int"),
        ({"student": S.to_sparse()}, TypeError, r"student\[0\]: expected a dense tensor"),
        ({"attention": "all"}, ValueError, "attention: expected one of both"),
        ({"level_weights": [1.0, 2.0]}, ValueError, "level_weights: expected 1 numbers"),
        ({"level_weights": "area"}, ValueError, "level_weights: expected numbers, 'inverse_area'"),
        ({"gc_block": [S]}, ValueError, "gc_block: expected 16 tensors for each of 1 levels, got 1"),
        ({"gc_block": [torch.zeros(3)] * 16}, ValueError, r"gc_block\[0\]: expected shape \(1, 6, 1, 1\), got \(3,\)"),
        ({"backend": "gpu"}, ValueError, "backend: expected 'auto' or one of"),
        ({"backend": "cuda"}, RuntimeError, "backend 'cuda' cannot run here: "),
    ],
)
def test_bad_input(change, kind, words):
    arguments = {"student": S, "teacher": S, "boxes": BOXES, "image_sizes": SIZES} | change
    with pytest.raises(kind, match=words) as raised:
        fgd.fgd_loss(**arguments)
    assert isinstance(raised.value, FGDError)  # which a command shows without a traceback


@pytest.mark.skipif("cpu" not in HERE, reason="no compiled library")
@pytest.mark.parametrize(
    "index, value, words",
    [
        (1, [S[:, :5]], "teacher"),
        (3, torch.tensor([0, 5, 9], dtype=torch.int32), "box_offsets: expected ascending"),
        (3, torch.tensor([0, 0], dtype=torch.int32), "box_offsets"),
        (2, torch.zeros(3, 3), "box_values"),
        (4, torch.zeros(2, 2, dtype=torch.float64), "image_sizes"),
        (6, [1.0], "weights"),
    ],
)
def test_the_operator_itself_refuses_what_it_cannot_read(index, value, words):
    packed = fgd.pack_boxes(BOXES, SIZES, "cpu")
    arguments = [[S], [S], *packed, [], [1.0] * 4, 0.5, 0.5]
    arguments[index] = value
    with pytest.raises(RuntimeError, match=words):
        torch.ops.fgd_kernels.forward(*arguments)


def test_environment_variable_chooses(monkeypatch):
    monkeypatch.setenv("FGD_BACKEND", "reference")
    assert choose_backend("auto", "cpu") == "reference"
    monkeypatch.setenv("FGD_BACKEND", "nonsense")
    with pytest.raises(FGDError, match="FGD_BACKEND: expected 'auto' or one of .*, got 'nonsense'"):
        choose_backend("auto", "cpu")


def test_without_the_compiled_library(tmp_path):
    """A pure-Python install: the same operator, on the reference; `backends` says why; by name it raises."""
    folder = tmp_path / "fgd_kernels"
    folder.mkdir()
    for path in pathlib.Path(fgd.__path__[0]).glob("*.py"):
        shutil.copy(path, folder)
    (folder / "_C.missing.txt").write_text("no C++ compiler was found")
    code = """
import torch, fgd_kernels as fgd
assert not fgd.backends()["cpu"].available and "no C++ compiler" in fgd.backends()["cpu"].reason, fgd.backends()
s = torch.randn(2, 3, 4, 4, requires_grad=True)
losses = fgd.fgd_loss(s, torch.randn(2, 3, 4, 4), [torch.zeros(0, 4)] * 2, [(8, 8)] * 2)
sum(losses.values()).backward()
assert s.grad.isfinite().all()
torch.ops.fgd_kernels.forward.default
try:
    fgd.fgd_loss(s, s.detach(), [torch.zeros(0, 4)] * 2, [(8, 8)] * 2, backend="cpu")
except RuntimeError as error:
    assert "no C++ compiler was found" in str(error)
else:
    raise AssertionError("a backend that is not there did not raise")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
