import math

import pytest
import torch

from fgd_distill.data.datamodule import CocoFolder
from fgd_distill.data.evaluation import MASK_METRICS, METRICS, CocoEvaluator


@pytest.fixture
def truth(write_coco):
    objects = [{"bbox": [2, 2, 20, 20]}, {"bbox": [24, 10, 12, 15], "category_id": 7}]
    return CocoFolder(*write_coco([("a.png", objects), ("b.png", []), ("c.png", [{"bbox": [5, 5, 30, 20]}])]))


def detection(boxes, scores, labels):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels),
    }


PERFECT = [
    detection([[2, 2, 22, 22], [24, 10, 36, 25]], [0.9, 0.8], [1, 7]),
    detection([], [], []),
    detection([[5, 5, 35, 25]], [0.7], [1]),
]


def evaluate(truth, predictions, ids=(1, 2, 3)):
    evaluator = CocoEvaluator(truth.coco)
    evaluator.update(predictions, ids)
    return evaluator.compute()


def test_a_perfect_prediction_scores_100(truth):
    metrics = evaluate(truth, PERFECT)
    assert tuple(metrics) == METRICS
    for name in ("AP", "AP50", "AP75", "AP_small", "AR"):
        assert metrics[name] == pytest.approx(100)
    assert math.isnan(metrics["AP_large"]) and math.isnan(metrics["AP_medium"])


def test_half_found_is_half_and_wrong_boxes_cost_precision(truth):
    # Category 1 has two objects, one of them found: precision 1 up to recall 0.5, that is 51 of the 101 recall points.
    # Category 7 is missed. A box of IoU 0.6 with its object counts at the thresholds 0.50, 0.55 and 0.60.
    one = evaluate(truth, [detection([[2, 2, 22, 22]], [0.9], [1]), PERFECT[1], PERFECT[1]])
    assert one["AP"] == pytest.approx(100 * (51 / 101 + 0) / 2)
    assert one["AR"] == pytest.approx(100 * (0.5 + 0) / 2)
    shifted = evaluate(truth, [detection([[2, 2, 14.0, 22]], [0.9], [1]), PERFECT[1], PERFECT[1]])
    assert shifted["AP50"] == pytest.approx(100 * 51 / 101 / 2) and shifted["AP75"] == 0
    assert shifted["AP"] == pytest.approx(one["AP"] * 0.3)


def test_no_detection_at_all_is_zero_not_an_error(truth):
    metrics = evaluate(truth, [PERFECT[1]] * 3)
    assert metrics["AP"] == 0 and metrics["AR"] == 0


def test_an_image_that_comes_twice_counts_once(truth):
    assert evaluate(truth, [*PERFECT, PERFECT[0]], (1, 2, 3, 1)) == pytest.approx(evaluate(truth, PERFECT), nan_ok=True)


def test_only_images_seen_count(truth):
    assert evaluate(truth, PERFECT[:1], (1,))["AP"] == pytest.approx(100)


def square(x, y, size):
    """The mask of a square, as a detector returns it: (1, 1, H, W), and as an annotation has it: its corners."""
    mask = torch.zeros(1, 1, 30, 40)
    mask[..., y : y + size, x : x + size] = 0.9
    return mask, [[x, y, x + size, y, x + size, y + size, x, y + size]]


def test_masks_are_judged_by_their_pixels(write_coco):
    inside, corners = square(4, 4, 12)
    half, _ = square(4, 4, 9)
    image = ("a.png", [{"bbox": [4, 4, 12, 12], "segmentation": corners, "area": 144}])
    coco = CocoFolder(*write_coco([image]), with_masks=True).coco

    def metrics(mask):
        evaluator = CocoEvaluator(coco, masks=True)
        evaluator.update([detection([[4, 4, 16, 16]], [0.9], [1]) | {"masks": mask}], [1])
        return evaluator.compute()

    whole = metrics(inside)
    assert tuple(whole) == (*METRICS, *MASK_METRICS)
    assert whole["AP"] == whole["AP_mask"] == whole["AP_small_mask"] == pytest.approx(100)
    part = metrics(half)  # IoU 81 / 144 = 0.56: right at the thresholds 0.50 and 0.55 of ten
    assert part["AP"] == pytest.approx(100) and part["AP_mask"] == pytest.approx(20)
    nothing = CocoEvaluator(coco, masks=True)
    nothing.update([detection([], [], []) | {"masks": torch.zeros(0, 1, 30, 40)}], [1])
    assert nothing.compute()["AP_mask"] == 0
    with pytest.raises(ValueError, match="expected masks"):
        CocoEvaluator(coco, masks=True).update([detection([], [], [])], [1])


def test_category_ids_may_have_gaps(write_coco):
    """Categories 1 and 7: labels are the ids themselves, so that nothing has to be mapped back."""
    data = CocoFolder(*write_coco([("a.png", [{"bbox": [2, 2, 20, 20], "category_id": 7}])]))
    label = data[0][1]["labels"].tolist()
    assert label == [7]
    assert evaluate(data, [detection([[2, 2, 22, 22]], [0.9], label)], (1,))["AP"] == pytest.approx(100)
    assert evaluate(data, [detection([[2, 2, 22, 22]], [0.9], [1])], (1,))["AP"] == 0


def test_wrong_use_is_told(truth):
    evaluator = CocoEvaluator(truth.coco)
    with pytest.raises(RuntimeError, match="no image"):
        evaluator.compute()
    with pytest.raises(ValueError, match="one image id a prediction, got 1 for 3"):
        evaluator.update(PERFECT, [1])
    with pytest.raises(ValueError, match="got 99"):
        evaluator.update(PERFECT[:1], [99])
