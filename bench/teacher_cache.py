"""What reading an entry of the teacher cache costs, and how much of that is its checksum.

    python -m bench.teacher_cache

An entry of five levels of 256 channels for an image of 800x1344 pixels, in float16, which lies in the page cache.
"""

import tempfile
import time

import torch

from fgd_distill.machine import machine
from fgd_distill.training import teacher_cache
from fgd_distill.training.teacher_cache import CacheConfig, TeacherCache

SIZES = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
ROUNDS = 100


def milliseconds(*calls) -> list[float]:
    """The least time of the processor that each takes: other work on the machine counts as little as it can."""
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for index, call in enumerate(calls):
            begin = time.thread_time()
            call()
            best[index] = min(best[index], 1e3 * (time.thread_time() - begin))
    return best


def main() -> None:
    torch.set_num_threads(1)
    maps = [torch.randn(1, 256, *size) for size in SIZES]
    image, target = torch.rand(1, 3, 800, 1344), [{"image_id": 1}]
    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(CacheConfig(folder), {"teacher": "random", "layers": ["fpn"]}, images=1)
        cache.features(image, target, lambda _: maps)
        entry = cache._path(1)
        thumbnail = torch.nn.functional.adaptive_avg_pool2d(image, 8)[0]
        parts = [teacher_cache._as_bytes(level[0].half()) for level in maps]
        reading, checksum = milliseconds(
            lambda: cache._read(1, thumbnail),
            lambda: teacher_cache._crc(b"", parts),
        )
        print(f"{machine()}: an entry of {entry.stat().st_size / 1e6:.1f} MB is read in {reading:.1f} ms of processor")
        print(f"time, {checksum:.1f} ms of which are its checksum")


if __name__ == "__main__":
    main()
