"""Processor seconds of a distilled training step of an image at 800x1344, for pairs of the paper: one thread, no data.

    python -m bench.coco_step --pairs retinanet_x101 fasterrcnn_r101

Weights are random, which changes no time but that of proposals. One step each: enough to estimate hours by.
"""

import argparse
import time

import torch

from bench.machine import processor
from fgd_distill import distil
from fgd_distill.detectors.by_name import DetectorConfig, build_detector

PAIRS = {
    "retinanet_x101": ("retinanet_resnet50_fpn", "retinanet_resnext101_64x4d_fpn"),
    "retinanet_r101": ("retinanet_resnet50_fpn", "retinanet_resnet101_fpn"),
    "fasterrcnn_r101": ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet101_fpn"),
    "fcos_r101": ("fcos_resnet50_fpn", "fcos_resnet101_fpn"),
}
BOXES = torch.tensor([[100.0, 100, 400, 500], [600.0, 200, 900, 420]])


def measure(student: str, teacher: str) -> tuple[float, float, float]:
    """Processor seconds of the teacher alone, of both networks with the loss, and of the backward pass."""
    torch.manual_seed(0)
    pair = (build_detector(DetectorConfig(name, 91)) for name in (student, teacher))
    distiller = distil(*pair, verbose=False)
    targets = [{"boxes": BOXES, "labels": torch.tensor([1, 2])}]
    start = time.process_time()
    distiller.teacher_features(torch.rand(1, 3, 800, 1344))
    of_teacher = time.process_time()
    losses = distiller([torch.rand(3, 800, 1333)], targets)
    forward = time.process_time()
    torch.stack(list(losses.values())).sum().backward()
    return of_teacher - start, forward - of_teacher, time.process_time() - forward


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=PAIRS)
    torch.set_num_threads(1)
    print(processor())
    for name in parser.parse_args().pairs:
        of_teacher, forward, backward = measure(*PAIRS[name])
        print(f"{name}: teacher {of_teacher:.1f} s, forward {forward:.1f} s, backward {backward:.1f} s", flush=True)


if __name__ == "__main__":
    main()
