"""What only a GPU can show, of the CUDA kernels and of the Triton kernels. There: make gpu-test (pytest -m gpu).

Every test takes `backend`; what fgd.backends() says cannot run is skipped with its reason.
Races and memory ordering: make gpu-sanitize, which runs test_sanitizer under compute-sanitizer's four tools.
"""

import pytest
import torch
from cases import BALANCED, PYRAMID, Case, assert_as_reference, evaluate, make_inputs, standard_cases

import fgd_kernels as fgd
from devtools.offline.kernel_names import KERNELS

pytestmark = pytest.mark.gpu

FIVE = Case("five levels", PYRAMID, (3, 0, 5), loss=BALANCED)
LARGE = Case(
    "large", ((256, 100, 168), (256, 50, 84), (256, 25, 42), (256, 13, 21), (256, 7, 11)), (7, 7), loss=BALANCED
)


def backends():
    """One parameter each, skipped with the reason where it cannot run."""
    for name in ("cuda", "triton"):
        status = fgd.backends()[name]
        why = f"backend {name!r}: {status.reason}"
        yield pytest.param(name, marks=pytest.mark.skipif(not status.available, reason=why))


@pytest.fixture(params=backends())
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _full_precision():
    """The reference judges in float32, its convolutions too."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def without_float64(case: Case, backend: str) -> None:
    """Skip what the Triton kernels refuse."""
    if backend == "triton" and case.student_dtype == torch.float64:
        pytest.skip("the Triton kernels do not compute in float64")


def packed_inputs(case: Case, backend: str):
    """Leaves, teacher, packed boxes and a criterion that runs our kernels."""
    student, teacher, boxes, sizes, criterion = make_inputs(case, "cuda")
    criterion.backend = backend
    packed = fgd.pack_boxes(boxes, sizes, student[0].device)
    return [s.requires_grad_() for s in student], teacher, packed, criterion


def gradients(student, teacher, packed, criterion):
    """The loss and every gradient, by torch.autograd.grad."""
    loss = sum(criterion(student, teacher, packed).values())
    return [loss, *torch.autograd.grad(loss, [*student, *criterion.parameters()])]


@pytest.mark.parametrize("case", [*standard_cases(), LARGE], ids=lambda case: case.name)
def test_equals_the_reference(case, backend):
    without_float64(case, backend)
    assert_as_reference(case, backend, "cuda")


def sanitizer_cases():
    """Every kernel: both layouts and the generic one, each type, aligned rows and others, whole and partial tiles."""
    levels = ((24, 16, 24), *PYRAMID[2:])
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for last in (False, True):
            yield Case(f"{dtype} {'channels_last' if last else 'contiguous'}", levels, (3, 0, 5), dtype, dtype, last)
    yield Case("types that differ", levels, (3, 0, 5), torch.bfloat16, torch.float32)
    yield Case("many channels", ((300, 5, 7),), (3, 1))
    yield Case("many boxes", levels, (300, 1))


@pytest.mark.parametrize("case", list(sanitizer_cases()), ids=lambda case: case.name)
def test_sanitizer(case, backend):
    """Small enough for compute-sanitizer."""
    without_float64(case, backend)
    results = evaluate(make_inputs(case, "cuda"), backend)
    assert all(value.isfinite().all() for value in results.values())


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradcheck(channels_last, backend):
    case = Case("gradcheck", ((3, 4, 5), (4, 2, 3)), (2, 1), *[torch.float64] * 2, channels_last, loss=BALANCED)
    without_float64(case, backend)
    student, teacher, packed, criterion = packed_inputs(case, backend)
    criterion.double()

    def loss(*features):
        return tuple(criterion(list(features), teacher, packed).values())

    assert torch.autograd.gradcheck(loss, student, eps=1e-6, atol=1e-6)


def test_cuda_graph(backend):
    """Captured once, replayed on other features: launch parameters are copied at capture."""
    student, teacher, packed, criterion = packed_inputs(FIVE, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients(student, teacher, packed, criterion)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(student, teacher, packed, criterion)
    with torch.no_grad():
        for tensor in (*student, *teacher):
            tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    for a, b in zip(captured, gradients(student, teacher, packed, criterion), strict=True):
        assert torch.equal(a, b)


def test_no_synchronisation(backend):
    student, teacher, packed, criterion = packed_inputs(FIVE, backend)
    gradients(student, teacher, packed, criterion)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(student, teacher, packed, criterion)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_current_stream(backend):
    """Work of another stream that has not finished when the loss is called on it."""
    student, teacher, packed, criterion = packed_inputs(LARGE, backend)
    expected = gradients(student, teacher, packed, criterion)
    sources = [s.detach().clone() for s in student]
    with torch.no_grad():
        for s in student:
            s.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(50_000_000)
        for s, source in zip(student, sources, strict=True):
            s.copy_(source)
    with torch.cuda.stream(stream):
        found = gradients(student, teacher, packed, criterion)
    torch.cuda.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_current_device_stays(backend):
    """Tensors of the second device, on a stream of it, while the first one is current, and stays so."""
    student, teacher, packed, criterion = packed_inputs(FIVE, backend)
    expected = gradients(student, teacher, packed, criterion)
    moved = ([s.detach().to("cuda:1").requires_grad_() for s in student], [t.to("cuda:1") for t in teacher])
    boxes = fgd.boxes.PackedBoxes(*(t.to("cuda:1") for t in packed))
    criterion.to("cuda:1")
    found = gradients(*moved, boxes, criterion)
    assert torch.cuda.current_device() == 0
    with torch.cuda.device(1):
        stream = torch.cuda.Stream(1)
        stream.wait_stream(torch.cuda.current_stream(1))
        torch.cuda.set_stream(stream)
    try:
        again = gradients(*moved, boxes, criterion)
        torch.cuda.synchronize(1)
    finally:
        torch.cuda.set_stream(torch.cuda.default_stream(1))
        torch.cuda.set_device(0)
    for a, b in zip(again, found, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu())


def test_compile(backend):
    student, teacher, packed, criterion = packed_inputs(FIVE, backend)
    eager = gradients(student, teacher, packed, criterion)

    @torch.compile(fullgraph=True)
    def loss(student, teacher):
        return sum(criterion(student, teacher, packed).values())

    value = loss(student, teacher)
    found = [value, *torch.autograd.grad(value, [*student, *criterion.parameters()])]
    for a, b in zip(found, eager, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype, backend):
    """Half features under autocast; parameters and sums stay in float32."""
    case = Case("amp", PYRAMID, (3, 0), dtype, dtype, loss=BALANCED)
    student, teacher, packed, criterion = packed_inputs(case, backend)
    plain = gradients(student, teacher, packed, criterion)
    with torch.autocast("cuda", dtype=dtype):
        found = gradients(student, teacher, packed, criterion)
    assert found[0].dtype == torch.float32
    for a, b in zip(found, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_a_hundred_times(dtype, channels_last, backend):
    case = Case("repeat", LARGE.levels, (7, 7), dtype, dtype, channels_last, loss=BALANCED)
    inputs = packed_inputs(case, backend)
    first = gradients(*inputs)
    for _ in range(99):
        for a, b in zip(gradients(*inputs), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype, backend):
    """A step's peak above its inputs and its gradients: at most 5% of a feature map."""
    case = Case("memory", LARGE.levels, (7,) * 8, dtype, dtype, loss=BALANCED)
    student, teacher, packed, criterion = packed_inputs(case, backend)
    gradients(student, teacher, packed, criterion)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = gradients(student, teacher, packed, criterion)
    # What the allocator adds to a large block (up to a megabyte) belongs to the gradients.
    extra = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    assert len(results) > len(student) and torch.cuda.memory_allocated() > before
    feature_map = sum(s.numel() * s.element_size() for s in student)
    assert extra <= 0.05 * feature_map


def test_launches(backend):
    """Forward and backward of five levels, GcBlocks included: at most 12 kernels of ours."""
    student, teacher, packed, criterion = packed_inputs(FIVE, backend)
    gradients(student, teacher, packed, criterion)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        gradients(student, teacher, packed, criterion)
        torch.cuda.synchronize()
    ours = [event for event in profile.events() if event.name.startswith(KERNELS)]
    assert 0 < len(ours) <= 12


def test_empty_batch(backend):
    case = Case("empty", PYRAMID, (), loss=BALANCED)
    student, teacher, packed, criterion = packed_inputs(case, backend)
    loss, *found = gradients(student, teacher, packed, criterion)
    assert loss == 0 and all((g == 0).all() for g in found)
