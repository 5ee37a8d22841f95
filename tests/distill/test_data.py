import pytest
import torch
from torchvision.transforms import v2

from fgd_distill.data import CocoDataModule, CocoFolder


def module(digits, **options):
    paths = {
        f"{s}_{k}": f"{k}/{s}{'.json' if k == 'annotations' else ''}"
        for s in ("train", "val")
        for k in ("images", "annotations")
    }
    return CocoDataModule(root=str(digits), **paths, **{"batch_size": 4, "num_workers": 0, **options})


def test_items_are_what_torchvisions_detectors_take(write_coco):
    data = CocoFolder(*write_coco([("a.png", [{"bbox": [4, 5, 10, 20], "category_id": 7}])]))
    image, target = data[0]
    assert image.shape == (3, 30, 40) and image.dtype == torch.float32
    assert target["boxes"].tolist() == [[4, 5, 14, 25]] and target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [7] and target["image_id"] == 1
    assert type(target["boxes"]) is torch.Tensor
    assert data.max_label() == 7


def test_images_without_boxes_stay(write_coco):
    crowd = {"bbox": [0, 0, 9, 9], "iscrowd": 1}
    data = CocoFolder(*write_coco([("a.png", []), ("b.png", [crowd]), ("c.png", [{"bbox": [0, 0, 9, 9]}])]))
    assert [len(data[index][1]["boxes"]) for index in range(3)] == [0, 0, 1]
    for index in range(2):
        target = data[index][1]
        assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32
        assert target["labels"].shape == (0,) and target["labels"].dtype == torch.int64
        assert target["image_id"] == index + 1


def test_boxes_are_cut_to_the_image_and_dropped_when_nothing_is_left(write_coco):
    boxes = [[-5, -5, 15, 15], [30, 20, 100, 100], [50, 50, 5, 5], [3, 3, 0, 8]]
    labels = [1, 7, 1, 7]
    items = [{"bbox": box, "category_id": label} for box, label in zip(boxes, labels, strict=True)]
    target = CocoFolder(*write_coco([("a.png", items)]))[0][1]
    assert target["boxes"].tolist() == [[0, 0, 10, 10], [30, 20, 40, 30]]
    assert target["labels"].tolist() == [1, 7]


def test_transforms_move_image_and_boxes_together(write_coco):
    paths = write_coco([("a.png", [{"bbox": [0, 0, 10, 10]}]), ("b.png", [])])
    data = CocoFolder(*paths, transforms=[v2.RandomHorizontalFlip(p=1.0)])
    assert data[0][1]["boxes"].tolist() == [[30, 0, 40, 10]]
    assert data[1][1]["boxes"].shape == (0, 4)


def test_masks_on_request(write_coco):
    corners = [[0, 0, 10, 0, 10, 10, 0, 10]]
    paths = write_coco([("a.png", [{"bbox": [0, 0, 10, 10], "segmentation": corners}]), ("b.png", [])])
    data = CocoFolder(*paths, with_masks=True)
    assert data[0][1]["masks"].shape == (1, 30, 40) and data[0][1]["masks"].sum() > 80
    assert data[1][1]["masks"].shape == (0, 30, 40)


def test_missing_files_are_named(write_coco, tmp_path):
    images, annotations = write_coco([("a.png", []), ("lost.png", [])])
    with pytest.raises(FileNotFoundError, match="folder of images.*nowhere"):
        CocoFolder(tmp_path / "nowhere", annotations)
    with pytest.raises(FileNotFoundError, match="annotation file.*nothing.json"):
        CocoFolder(images, tmp_path / "nothing.json")
    (images / "lost.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists 2 images, 1 of them.*lost.png"):
        CocoFolder(images, annotations)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}'])
def test_not_a_coco_json(write_coco, content):
    images, annotations = write_coco([("a.png", [])])
    annotations.write_text(content)
    with pytest.raises(ValueError, match="expected a COCO detection json"):
        CocoFolder(images, annotations)


def test_the_order_of_images_depends_on_the_seed_alone(digits):
    def order(seed, consumed):
        data = module(digits, seed=seed)
        data.setup("fit")
        torch.rand(consumed)  # what else a run draws from the global generator must not matter
        return [target["image_id"] for _, targets in data.train_dataloader() for target in targets]

    assert order(0, 1) == order(0, 5) != order(1, 1)
    assert sorted(order(0, 1)) == list(range(1, 25))


def test_bad_loader_settings(digits):
    with pytest.raises(ValueError, match="batch_size >= 1"):
        module(digits, batch_size=0)
    with pytest.raises(RuntimeError, match="setup"):
        module(digits).train_dataloader()
