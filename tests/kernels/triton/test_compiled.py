"""The Triton kernels as the compilers make them: gates on registers and loads, and the PTX itself, executed.

Everything here works without a GPU. The kernels are compiled from the arguments that the launchers pass.
"""

import dataclasses
import functools
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

from devtools.offline import triton_build, triton_device
from devtools.offline.kernel_names import KERNELS
from fgd_kernels.triton_kernels.host import pyramid

LAYOUTS = ("contiguous", "channels_last")
KINDS = [*zip(("float32", "bfloat16"), LAYOUTS, strict=True), *zip(("bfloat16", "float32"), LAYOUTS, strict=True)]
GATES = [
    (target, *kind) for target in triton_build.TARGETS for kind in KINDS[: 4 if target in ("80", "90", "100") else 2]
]
GOALS = {"forward_pass": 68, "backward_pass": 102}  # thread instructions for every pair of features


@functools.cache
def rows(target: str, features: str, layout: str) -> list[dict]:
    return triton_build.report([target], [features], [layout], channels=256, every_kernel=False)


@pytest.mark.parametrize("target, features, layout", GATES)
def test_no_spills_and_wide_loads(target, features, layout):
    for row in rows(target, features, layout):
        assert (row["spilled"], row["spill_instructions"]) == (0, 0), row
        threads = row["warps"] * triton_build.TARGETS[target].warp_size
        memory = 2 * 16 * 256 * getattr(torch, features).itemsize
        wide = sum(count for width, count in row["loads"].items() if "128" in width or "x4" in width)
        assert wide >= memory // (16 * threads), row
        assert row["shared"] <= 48 * 1024, row


def variants() -> dict[str, dict]:
    """What else a user's tensors make the compilers see, each more than a change of sizes: arguments of `launches`."""
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    last = {"channels_last": True}
    found = {f"float16, {'channels_last' if on else 'NCHW'}": {"channels_last": on} for on in (False, True)}
    found = {name: kind | {"student_dtype": f16} for name, kind in found.items()}
    found["float32 and bfloat16"] = {"student_dtype": f32, "teacher_dtype": bf16}
    found["bfloat16 and float32, channels_last"] = {"student_dtype": bf16, "teacher_dtype": f32} | last
    for dtype, name in ((f32, "float32"), (bf16, "bfloat16")):
        kind = {"student_dtype": dtype}
        found |= {f"{name}, {c} channels": kind | {"channels": c} for c in (48, 250, 520)}
        for c in (16, 62, 248, 250, 300, 512, 1024):
            found[f"{name}, {c} channels, channels_last"] = kind | last | {"channels": c}
        found[f"{name}, sliced"] = kind | {"sliced": True}
        found[f"{name}, channels_last, sliced"] = kind | last | {"sliced": True}
        found[f"{name}, no GcBlocks"] = kind | {"gc": False}
    return found


@pytest.mark.parametrize("target", triton_build.TARGETS)
def test_every_kernel_compiles_without_spills(target):
    rows = triton_build.report([target], ["float32"], ["contiguous"], channels=1024, every_kernel=True)
    assert len(rows) == 11
    for row in rows:
        assert (row["spilled"], row["spill_instructions"]) == (0, 0), row


@pytest.mark.parametrize("variant", variants())
def test_no_spills_of_other_variants(variant):
    for row in triton_build.passes(triton_build.launches(**variants()[variant], target="80"), "80"):
        assert (row["spilled"], row["spill_instructions"]) == (0, 0), row


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16])
def test_no_spills_without_alignment_or_with_wide_offsets(features, channels_last, monkeypatch):
    """No pointer is known to be a multiple of 16 bytes; images of 2^31 elements."""
    launches = functools.partial(triton_build.launches, features, channels_last=channels_last, target="80")
    of = pyramid.Layouts.of
    found = triton_build.passes(launches(), "80", aligned=False)
    monkeypatch.setattr(pyramid.Layouts, "of", lambda *args: dataclasses.replace(of(*args), wide=True))
    for row in found + triton_build.passes(launches(), "80"):
        assert (row["spilled"], row["spill_instructions"]) == (0, 0), row


@pytest.fixture
def on_the_emulator(monkeypatch):
    """The backend takes CPU tensors and launches on an emulator of that target."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read by ops alone: the kernels are imported, and compiled, already

    def start(target):
        return triton_device.Emulator(target).instead_of_a_gpu()

    return start


EXECUTED = [
    ("80", Case("float32", ((64, 8, 8), (64, 3, 5)), (3, 0), loss=BALANCED)),
    ("90", Case("blocks of channels", ((520, 3, 9),), (2,), loss=BALANCED)),
    ("90", Case("bfloat16", ((64, 8, 8), (72, 3, 5)), (3,), torch.bfloat16, torch.bfloat16, True, loss=BALANCED)),
]


@pytest.mark.parametrize("target, case", EXECUTED, ids=lambda value: getattr(value, "name", value))
def test_the_compiled_code_equals_the_reference(target, case, on_the_emulator):
    with on_the_emulator(target) as gpu:
        assert_as_reference(case, "triton")
    assert len(gpu.launched) <= 12, gpu.launched


@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16])
def test_instructions_and_traffic(features, on_the_emulator):
    """Per pair of features, on one level of 256 channels: what is executed, and read at the level of requests."""
    case = Case("counted", ((256, 16, 32),), (2,), features, features, loss=BALANCED)
    with on_the_emulator("90") as gpu:
        evaluate(make_inputs(case), "triton")
    pairs, size = 256 * 16 * 32, torch.empty(0, dtype=features).element_size()
    for name, goal in GOALS.items():
        (counts,) = gpu.counts[name]
        assert counts.thread_instructions <= goal * pairs, counts.thread_instructions / pairs
        floor = 2 * pairs * size
        assert 32 * counts.global_read_sectors <= 1.25 * floor, 32 * counts.global_read_sectors / floor
    assert 32 * gpu.counts["backward_pass"][0].global_write_sectors <= 1.05 * pairs * size


def test_five_levels_take_at_most_twelve_launches():
    """And each kernel is known by name to the sanitizer and to the GPU's test of launches."""
    names = [launch.kernel.fn.__name__ for launch in triton_build.launches(torch.float32, channels=16)]
    assert sorted(names) == sorted(set(KERNELS) - {"fgd_"})
    assert len(names) == 11
    assert len(triton_build.launches(torch.float32, channels=16, gc=False)) == 6


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
