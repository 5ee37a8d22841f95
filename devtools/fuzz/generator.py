"""Random cases. A case is a function of the campaign's seed and its index alone, so that any one can be run again.

Most cases are for the CPU kernels alone, and of a size at which the reference, in all its orders, takes some
milliseconds; every 8th is ten times as large. The interpreters are slow: every 32nd case is small enough for Triton's,
every 256th so small that the PTX interpreter runs the CUDA kernels on it, too. Features have at most 32 bits: for
float64 there is no judge that is more exact.
"""

import random

import torch

from devtools.accuracy.case import FEATURES, Case
from fgd_kernels import functional

LARGE, SMALL, TINY = 8, 32, 256
_ELEMENTS = {"large": 40_000, "medium": 4_000, "small": 2_000, "tiny": 600}  # of a level's map, one image
_CHANNELS = (1, 2, 3, 7, 8, 16, 24, 33, 40, 64, 65, 128, 250, 256, 300, 520)
_LARGEST = {torch.float16: 3e3}  # of a scale whose maps are finite
_NARROW = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def size_of(index: int) -> str:
    """Which backends a case is for: "large" and "medium" for the CPU kernels, "small" and "tiny" for all."""
    if index % SMALL == 0:
        return "tiny" if index % TINY == 0 else "small"
    return "large" if index % LARGE == 1 else "medium"


def make_case(seed: int, index: int) -> Case:
    """The case of that index."""
    choose = random.Random(f"{seed}/{index}")
    size = size_of(index)
    features = choose.choice((*FEATURES, "normal", "normal", "relu"))
    student_dtype, teacher_dtype = _dtypes(choose)
    if features.startswith("equal"):
        teacher_dtype = student_dtype  # a conversion could round
    count = choose.choice((1, 1, 2)) if size in ("large", "medium") else 1
    levels = tuple(_level(choose, _ELEMENTS[size]) for _ in range(count))
    aligned = choose.random() < 0.25 and student_dtype == torch.float32 and features in ("normal", "relu", "tied")
    temperature, scale = _magnitudes(choose, student_dtype, teacher_dtype)
    return Case(
        name=f"{seed}/{index}",
        levels=levels,
        boxes=_boxes(choose, size),
        student_dtype=student_dtype,
        teacher_dtype=teacher_dtype,
        channels_last=choose.random() < 0.5,
        scale=scale,
        student_channels=choose.randint(1, 40) if aligned else None,
        frozen=choose.random() < 0.07,
        fixed_student=choose.random() < 0.04,
        loss=_settings(choose) | {"temperature": temperature},
        features=features,
        sliced=choose.random() < 0.2,
    )


def torch_seed(seed: int, index: int) -> int:
    """What torch.manual_seed gets before a case's inputs are made."""
    return random.Random(f"{seed}/{index}/torch").getrandbits(60)


def _dtypes(choose: random.Random) -> tuple[torch.dtype, torch.dtype]:
    first = choose.choice(_NARROW)
    return first, choose.choice(_NARROW) if choose.random() < 0.3 else first


def _level(choose: random.Random, elements: int) -> tuple[int, int, int]:
    channels = choose.choice([c for c in _CHANNELS if c <= elements])
    pixels = min(elements // channels, choose.choice((1, 9, 100, 1000, 5000)))
    height = choose.randint(1, max(1, int(pixels**0.5)))
    return channels, height, max(1, choose.randint(pixels // height // 2, pixels // height))


def _boxes(choose: random.Random, size: str) -> tuple[int, ...]:
    images = choose.choice({"small": (1, 2), "tiny": (1,)}.get(size, (1, 1, 2, 3)))
    most = choose.choice((0, 2, 2, 6, 40 if size == "large" else 4))
    return tuple(choose.randint(0, most) for _ in range(images))


def _magnitudes(choose: random.Random, *dtypes: torch.dtype) -> tuple[float, float]:
    """Temperature and scale: half of the cases as in training, the rest from end to end, some softmaxes saturated."""
    kind = choose.random()
    if kind < 0.5:
        temperature, scale = 10 ** choose.uniform(-0.5, 0.5), 10 ** choose.uniform(-1, 0.5)
    elif kind < 0.85:
        temperature, scale = 10 ** choose.uniform(-3, 3), 10 ** choose.uniform(-6, 4)
    else:
        temperature, scale = 10 ** choose.uniform(-1, 1), choose.choice((10.0, 30.0, 100.0))
    return temperature, min(scale, *(_LARGEST.get(dtype, scale) for dtype in dtypes))


def _settings(choose: random.Random) -> dict:
    weights = {name: 10 ** choose.uniform(-3, 1) for name in ("alpha", "beta", "gamma", "lambda_")}
    settings = {"split": False} if choose.random() < 0.05 else {}
    if choose.random() < 0.1:
        settings["attention"] = choose.choice(functional.ATTENTIONS)
    return weights | settings | ({"level_weights": "inverse_area"} if choose.random() < 0.1 else {})
