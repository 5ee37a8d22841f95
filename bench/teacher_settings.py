"""What the digits teacher's forward pass costs in each type and layout, and how far its maps then are from float32's.

    python -m bench.teacher_settings
    python -m bench.teacher_settings --compile    # takes minutes, and a C++ compiler

Milliseconds of processor time of one thread, medians over passes that are taken in turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch

from fgd_distill import DetectionDistiller, TeacherSettings
from fgd_distill.detectors.by_name import DetectorConfig, build_detector
from fgd_distill.machine import machine
from fgd_distill.text_table import aligned


class NoLoss(torch.nn.Module):
    def forward(self, student, teacher, boxes, image_sizes):
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--images", type=int, default=16, help="of a batch, 128 x 128 pixels each")
    parser.add_argument("--compile", action="store_true", help="the compiled teachers, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = torch.randn(args.images, 3, 128, 128)
    student = build_detector(DetectorConfig("digits_student", 11))
    distillers = {}
    for compiled, dtype, last in itertools.product((False, True)[: 1 + args.compile], ("float32", "bfloat16"), (0, 1)):
        teacher = build_detector(DetectorConfig("digits_teacher", 11, "package:digits_teacher.pt"))
        name = f"{dtype}, {'channels_last' if last else 'NCHW'}{', compiled' if compiled else ''}"
        settings = TeacherSettings(dtype, channels_last=bool(last), compile=compiled)
        distillers[name] = DetectionDistiller(student, teacher, NoLoss(), teacher_settings=settings)
    seconds: dict[str, list[float]] = {name: [] for name in distillers}
    maps = {}
    for _ in range(args.repeats + 2):
        for name, distiller in distillers.items():
            begin = time.process_time()
            maps[name] = distiller.teacher_features(batch)
            seconds[name].append(time.process_time() - begin)
    medians = {name: statistics.median(found[2:]) for name, found in seconds.items()}
    whole = medians["float32, NCHW"]
    rows = [["teacher", "ms", "of float32's", "error"]]
    for name, median in medians.items():
        pairs = zip(maps[name], maps["float32, NCHW"], strict=True)
        error = max(float((a.float() - b).norm() / b.norm()) for a, b in pairs)
        rows.append([name, f"{1000 * median:.1f}", f"{median / whole:.2f}", f"{error:.1e}"])
    print(*aligned(rows), f"on {machine()}", sep="\n")


if __name__ == "__main__":
    main()
