"""The Triton kernels as the compilers make them: gates on registers and loads, and the PTX itself, executed.

Everything here works without a GPU. The kernels are compiled from the arguments that the launchers pass.
"""

import os
import subprocess
import sys

import pytest
import torch
from cases import BALANCED, Case, assert_as_reference, evaluate, make_inputs

import fgd_kernels as fgd

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)

from devtools.offline import triton_build, triton_device, triton_spills
from devtools.offline.kernel_names import KERNELS
from fgd_kernels.triton_kernels.host.forward import rasterise
from fgd_kernels.triton_kernels.host.pyramid import Pyramid

KINDS = triton_spills.kinds()
GOALS = {"forward_pass": 68, "backward_pass": 102}  # thread instructions for every pair of features

# A choice of what `python -m devtools.offline.triton_spills` compiles, which is every kind for every target: each
# target has both layouts and both sizes of elements, and each body of the passes is compiled for some target.
LOADS = [
    *[(target, kind) for target in ("75", "90", "gfx942") for kind in ("float32, NCHW", "bfloat16, channels_last")],
    *[(target, kind) for target in ("80", "100", "120") for kind in ("bfloat16, NCHW", "float32, channels_last")],
    ("gfx1100", "bfloat16, NCHW"),
]
OTHERS = [
    ("75", "bfloat16, channels_last, 62 channels"),
    ("80", "float32, NCHW, offsets of 64 bits"),
    ("80", "bfloat16, NCHW, pointers not aligned"),
    ("80", "float32, NCHW, sliced"),
    ("80", "float32, channels_last, 250 channels"),
    ("90", "bfloat16, NCHW, no GcBlocks"),
    ("90", "float32 and bfloat16, channels_last"),
    ("120", "bfloat16, NCHW, 640 channels"),
    ("gfx1100", "float32, channels_last, 512 channels"),
    ("100", "every kernel, 1024 channels"),
    ("gfx942", "every kernel, 1024 channels"),
]


@pytest.mark.parametrize("target, kind", LOADS)
def test_no_spills_and_wide_loads(target, kind):
    features, elements = KINDS[kind].arguments["student_dtype"], 2 * 16 * 256
    for row in KINDS[kind].compiled(target, disassemble=True):
        assert (row["spilled"], row["spill_instructions"]) == (0, 0), row
        threads = row["warps"] * triton_build.TARGETS[target].warp_size
        wide = sum(count for width, count in row["loads"].items() if "128" in width or "x4" in width)
        assert wide >= elements * features.itemsize // (16 * threads), row
        assert row["shared"] <= 48 * 1024, row


@pytest.mark.parametrize("target, kind", OTHERS)
def test_no_spills_of_other_kinds(target, kind):
    rows = KINDS[kind].compiled(target)
    assert len(rows) == (11 if KINDS[kind].every_kernel else 2)
    for row in rows:
        assert row["spilled"] == 0, row


def test_kinds_are_asked_for_by_name_or_by_a_part_of_it():
    assert triton_spills.named(["bfloat16, NCHW"]) == ["bfloat16, NCHW"]
    assert len(triton_spills.named(["1024 channels"])) == 5
    assert triton_spills.named([""]) == list(KINDS)


@pytest.fixture
def on_the_emulator(monkeypatch):
    """The backend takes CPU tensors and launches on an emulator of that target."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read by ops alone: the kernels are imported, and compiled, already

    def start(target):
        return triton_device.Emulator(target).instead_of_a_gpu()

    return start


EXECUTED = [
    ("80", Case("float32", ((64, 8, 8), (64, 3, 5)), (3, 0), loss=BALANCED)),
    ("90", Case("blocks of channels", ((300, 3, 9),), (2,), loss=BALANCED)),
    ("90", Case("bfloat16", ((64, 8, 8), (72, 3, 5)), (3,), torch.bfloat16, torch.bfloat16, True, loss=BALANCED)),
]


@pytest.mark.parametrize("target, case", EXECUTED, ids=lambda value: getattr(value, "name", value))
def test_the_compiled_code_equals_the_reference(target, case, on_the_emulator):
    with on_the_emulator(target) as gpu:
        assert_as_reference(case, "triton")
    assert len(gpu.launched) <= 12, gpu.launched


COUNTED = [
    (256, torch.float32, torch.float32, False),
    (256, torch.bfloat16, torch.bfloat16, False),
    (256, torch.bfloat16, torch.float32, False),
    (1024, torch.bfloat16, torch.bfloat16, True),
]


@pytest.mark.parametrize("channels, student, teacher, last", COUNTED)
def test_instructions_and_traffic(channels, student, teacher, last, on_the_emulator):
    """Per pair of features, on one level: what is executed, and read at the level of requests."""
    case = Case("counted", ((channels, 16, 32),), (2,), student, teacher, last, loss=BALANCED)
    with on_the_emulator("90") as gpu:
        evaluate(make_inputs(case), "triton")
    pairs = channels * 16 * 32
    for name, goal in GOALS.items():
        (counts,) = gpu.counts[name]
        assert counts.thread_instructions <= goal * pairs, counts.thread_instructions / pairs
        floor = pairs * (student.itemsize + teacher.itemsize)
        most = 1.25 if channels <= 256 else 1.3  # eight warps ask for the maps of eight pixels
        assert 32 * counts.global_read_sectors <= most * floor, 32 * counts.global_read_sectors / floor
    assert 32 * gpu.counts["backward_pass"][0].global_write_sectors <= 1.05 * pairs * student.itemsize


def test_a_mask_of_many_boxes():
    """Bit-equal to the reference, at a few instructions for every pixel and box: most are far from each other."""
    torch.manual_seed(0)
    count, height, width = 200, 50, 84
    centre = torch.rand(count, 2) * torch.tensor([1344.0, 800.0])
    boxes = torch.cat([centre - 30, centre + 30 + 40 * torch.rand(count, 2)], 1)
    offsets, sizes = torch.tensor([0, count], dtype=torch.int32), torch.tensor([[800.0, 1344.0]])
    pyramid = Pyramid.of(*[[torch.zeros(1, 1, height, width)]] * 2, False)
    with triton_device.Emulator("90").instead_of_a_gpu() as gpu:
        mask, _ = rasterise(pyramid, boxes, offsets, sizes)
    expected = fgd.reference.foreground_mask(boxes, offsets, sizes, height, width)
    assert torch.equal(mask.view(1, height, width), expected)
    (counts,) = gpu.counts["rasterise"]
    pairs = count * height * width
    assert counts.thread_instructions <= 6 * pairs, counts.thread_instructions / pairs


def test_five_levels_take_at_most_twelve_launches():
    """And each kernel is known by name to the sanitizer and to the GPU's test of launches."""
    names = [launch.kernel.fn.__name__ for launch in triton_build.launches(torch.float32, channels=16)]
    assert sorted(names) == sorted(set(KERNELS) - {"fgd_"})
    assert len(names) == 11
    assert len(triton_build.launches(torch.float32, channels=16, gc=False)) == 6


def test_every_launch_says_whether_products_are_fused():
    """Triton's default for those that do not is another from 3.10 on; 3.9 warns of it."""
    for launch in triton_build.launches(torch.float32, channels=16):
        name = launch.kernel.fn.__name__
        assert launch.options.get("enable_fp_fusion") is name.endswith("_pass"), name


def run(code: str, **environment: str) -> None:
    base = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([os.path.dirname(fgd.__path__[0])])
    subprocess.run([sys.executable, "-c", code], check=True, env=base | {"PYTHONPATH": path} | environment)


def test_importing_the_package_does_not_import_the_kernels():
    run("import sys, fgd_kernels as f; f.backends(); assert 'fgd_kernels.triton_kernels' not in sys.modules")


def test_a_machine_without_triton():
    run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fgd_kernels as f\n"
        "status = f.backends()['triton']\n"
        "assert not status.available and 'not installed' in status.reason, status\n"
        "s = torch.randn(1, 3, 4, 4)\n"
        "f.fgd_loss(s, s, [torch.zeros(0, 4)], [(8, 8)])\n"
        "try: f.fgd_loss(s, s, [torch.zeros(0, 4)], [(8, 8)], backend='triton')\n"
        "except RuntimeError as error: assert 'not installed' in str(error)\n"
        "else: raise AssertionError\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    status = fgd.backends()["triton"]
    assert not status.available and "no GPU" in status.reason
    assert fgd.ops.choose_backend("auto", "cpu") != "triton"
