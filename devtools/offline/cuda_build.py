"""Compiles without a GPU, into build/cuda-tests: the kernels to PTX, the launch plans to a small library."""

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
OFFLINE = ROOT / "devtools" / "offline"  # shims, to be compiled with the sources of csrc
CUDA = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "cuda-tests"
ARCHITECTURE = "sm_80"  # its PTX is what later architectures can assemble, too
UNITS = (
    *(f"{step}_nchw_wide_{channels}" for step in ("forward", "backward") for channels in (512, 1024, 2048)),
    "forward_nhwc_wide",
    "backward_nhwc_wide",
    "forward_nchw",
    "forward_nhwc",
    "forward_generic",
    "merge",
    "gc_block",
    "gc_backward",
    "backward_nchw",
    "backward_nhwc",
    "backward_generic",
    "forward_nchw_mixed",
    "forward_nhwc_mixed",
    "backward_nchw_mixed",
    "backward_nhwc_mixed",
)


def missing() -> str | None:
    """Why kernels cannot be compiled here, or None."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on PATH: the CUDA kernels cannot be compiled"
    return None


def _sources() -> bytes:
    files = [*sorted(CUDA.iterdir()), *sorted((ROOT / "csrc" / "include").rglob("*.h"))]
    return b"".join(f.read_bytes() for f in files if f.suffix in (".h", ".cuh"))


@functools.cache
def cached(output: str, inputs: tuple, command: tuple) -> pathlib.Path:
    """Run a compiler that writes `output` from files `inputs`, unless that was done before for the same bytes."""
    text = b"".join(path.read_bytes() for path in inputs) + _sources() + repr(command).encode()
    path = CACHE / f"{hashlib.sha256(text).hexdigest()[:16]}-{output}"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        made = pathlib.Path(folder, output)
        done = subprocess.run([*command, "-o", made, *inputs], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        made.replace(path)
    return path


def ptx_of(unit: str, architecture: str = ARCHITECTURE) -> str:
    """The PTX of csrc/cuda/<unit>.cu."""
    flags = ("-ptx", "-std=c++17", "-O3", f"-arch={architecture}", f"-I{CUDA.parent / 'include'}", f"-I{CUDA}")
    return cached(f"{unit}-{architecture}.ptx", (CUDA / f"{unit}.cu",), ("nvcc", *flags)).read_text()


def ptx_for(architecture: str) -> str:
    """Whose PTX the code of an architecture is assembled from, as in csrc/cuda/build.cmake."""
    return architecture if architecture == "sm_75" else ARCHITECTURE


def assembled(unit: str, architecture: str) -> str:
    """What ptxas says (registers, spills) about csrc/cuda/<unit>.cu on an architecture."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "kernel.ptx")
        path.write_text(ptx_of(unit, ptx_for(architecture)))
        command = ["ptxas", "-v", f"-arch={architecture}", "-o", os.devnull, path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


class Features(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("image", ctypes.c_int64),
        ("channel", ctypes.c_int64),
        ("pixel", ctypes.c_int64),
    )


class Level(ctypes.Structure):
    _fields_ = (
        ("student", Features),
        ("teacher", Features),
        ("grad", Features),
        ("mask", ctypes.c_uint64),
        ("gc_block", ctypes.c_uint64 * 16),
        ("gc_grads", ctypes.c_uint64 * 16),
        ("weights", ctypes.c_double * 4),
        ("gc_hidden", ctypes.c_int * 2),
        ("layout", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
    )


class Pyramid(ctypes.Structure):
    _fields_ = (
        ("levels", ctypes.POINTER(Level)),
        *((name, ctypes.c_uint64) for name in ("boxes", "box_offsets", "image_sizes")),
        *((name, ctypes.c_uint64) for name in ("grads", "maps", "stats", "terms")),
        ("sums", ctypes.c_uint64 * 4),
        ("spatial_temperature", ctypes.c_double),
        ("channel_temperature", ctypes.c_double),
        *((name, ctypes.c_int) for name in ("level_count", "images", "student_type", "teacher_type", "box_count")),
        *((name, ctypes.c_int) for name in ("has_gc_block", "need_student", "need_gc_block")),
    )


class Chunks(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("pixels", "chunk_pixels", "chunks", "alignment"))


class Launch(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("blocks", ctypes.c_int64),
        ("threads", ctypes.c_int),
        ("params_bytes", ctypes.c_int),
        ("params", ctypes.c_ubyte * 4096),
    )


@functools.cache
def plans() -> ctypes.CDLL:
    """The library of plan_shim.cpp and csrc/cuda/plan.cpp."""
    sources = (OFFLINE / "plan_shim.cpp", CUDA / "plan.cpp")
    flags = ("-shared", "-fPIC", "-std=c++17", "-O1", f"-I{CUDA.parent / 'include'}", f"-I{CUDA}")
    library = ctypes.CDLL(str(cached("plans.so", sources, (os.environ.get("CXX", "c++"), *flags))))
    for function in (library.shim_maps_size, library.shim_stats_size):
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.POINTER(Pyramid)]
    library.shim_plan.argtypes = [
        ctypes.POINTER(Pyramid),
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.POINTER(Launch),
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_int64),
    ]
    return library


def plan(pyramid: Pyramid, backward: bool, scratch: int, multiprocessors: int) -> tuple[list[Launch], int]:
    """The launches of a pass and the bytes of scratch memory that they need."""
    launches, scratch_bytes = (Launch * 64)(), ctypes.c_int64()
    count = plans().shim_plan(
        ctypes.byref(pyramid), backward, scratch, multiprocessors, launches, len(launches), ctypes.byref(scratch_bytes)
    )
    return list(launches[:count]), scratch_bytes.value
