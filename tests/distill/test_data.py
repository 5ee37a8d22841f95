import json

import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from fgd_distill.data import datamodule as data_module
from fgd_distill.data.datamodule import CocoDataModule, CocoFolder
from fgd_distill.data.resumable_loader import JointBatches, ResumableLoader, epoch_order
from fgd_distill.errors import FGDOSError


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


def test_missing_files_are_left_out_on_request(write_coco, caplog):
    images, annotations = write_coco([("a.png", []), ("lost.png", [{"bbox": [1, 1, 5, 5]}]), ("c.png", [])])
    (images / "lost.png").unlink()
    data = CocoFolder(images, annotations, skip_missing=True)
    assert [data[index][1]["image_id"] for index in range(len(data))] == [1, 3]
    assert "1 of them are not in" in caplog.text and "lost.png" in caplog.text
    for name in ("a.png", "c.png"):
        (images / name).unlink()
    with pytest.raises(FileNotFoundError, match="lists 3 images, 3 of them"):
        CocoFolder(images, annotations, skip_missing=True)


NO_ID = '{"images": [{"file_name": "a.png"}], "annotations": [], "categories": []}'


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', NO_ID, "\x00"])
def test_not_a_coco_json(write_coco, content):
    images, annotations = write_coco([("a.png", [])])
    annotations.write_text(content)
    with pytest.raises(ValueError, match="expected a COCO detection json"):
        CocoFolder(images, annotations)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, "finite numbers in annotation 1"),
        ({"bbox": [1, 2, "wide", 4], "area": 1}, "finite numbers in annotation 1"),
        ({"bbox": [1, 2, 3, 4], "category_id": 5}, "category_id 5, which is not among the categories"),
    ],
)
def test_annotations_that_make_no_sense(write_coco, annotation, message):
    with pytest.raises(ValueError, match=message):
        CocoFolder(*write_coco([("a.png", [{"area": 1, **annotation}])]))


def test_a_json_without_images_or_without_objects(write_coco, tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        CocoFolder(*write_coco([]))
    images, annotations = write_coco([("a.png", [])])
    assert len(CocoFolder(images, annotations)[0][1]["boxes"]) == 0
    with pytest.raises(ValueError, match="expected objects to learn from"):
        CocoDataModule(str(tmp_path), images.name, annotations.name, images.name, annotations.name).setup("fit")


def test_what_other_tools_leave_out_is_filled_in(write_coco):
    images, annotations = write_coco([("a.png", [{"bbox": [0, 0, 10, 5]}])])
    content = json.loads(annotations.read_text())
    del content["annotations"][0]["iscrowd"], content["annotations"][0]["area"]
    annotations.write_text(json.dumps(content))
    data = CocoFolder(images, annotations)
    assert len(data[0][1]["boxes"]) == 1 and data.coco.anns[1]["area"] == 50


def test_boxes_that_cannot_be_learnt_are_counted(write_coco, caplog):
    boxes = [[50, 50, 5, 5], [3, 3, 0, 8], [5, 5, -3, 4], [1, 1, 5, 5]]
    CocoFolder(*write_coco([("a.png", [{"bbox": box} for box in boxes])]))
    assert "3 boxes are empty or outside their image" in caplog.text
    assert "'a.png' (annotation 1), 'a.png' (annotation 2), 'a.png' (annotation 3); annotations" in caplog.text


def test_annotations_without_a_mask_are_left_out_where_masks_are_wanted(write_coco, caplog):
    whole = {"bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}
    line = {"bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0]]}
    data = CocoFolder(*write_coco([("a.png", [line, whole, {"bbox": [1, 1, 3, 3]}])]), with_masks=True)
    assert data[0][1]["masks"].shape == (1, 30, 40)
    assert "2 annotations have no usable segmentation" in caplog.text
    with pytest.raises(ValueError, match="none of 1 annotations has a usable segmentation"):
        CocoFolder(*write_coco([("a.png", [line])]), with_masks=True)


def test_the_next_image_takes_the_place_of_one_that_cannot_be_read(write_coco, caplog):
    images, annotations = write_coco([(f"{name}.png", []) for name in "abcd"])
    whole = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(whole[: len(whole) // 2])
    (images / "d.png").write_bytes(b"not an image")
    data = CocoFolder(images, annotations)
    assert [data[index][1]["image_id"] for index in (0, 1, 2, 3, 3)] == [1, 3, 3, 1, 1]
    assert set(data.unreadable) == {1, 3}
    assert "(2 so far): d.png" in caplog.text and caplog.text.count("so far") == 2  # not in every epoch again
    with pytest.raises(IndexError):
        data[4]


def test_a_disk_that_is_gone_ends_the_run(write_coco, monkeypatch):
    images, annotations = write_coco([(f"{name}.png", []) for name in "abc"])
    data = CocoFolder(images, annotations)
    monkeypatch.setattr(data_module, "UNREADABLE_IN_A_ROW", 2)
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(OSError, match="unreadable, among them b.png: FileNotFoundError"):
        data[0]


def test_random_transforms_depend_on_seed_epoch_and_image_alone(digits):
    def image(item, seed=0, consumed=0):
        data = module(digits, train_transforms=[v2.ColorJitter(brightness=0.9)], seed=seed)
        data.setup("fit")
        torch.rand(consumed)
        return data.train_set[item][0]

    before = torch.random.get_rng_state()
    first = image((0, 3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, image((0, 3), consumed=5)) and torch.equal(first, image(3))
    assert not torch.equal(first, image((1, 3))) and not torch.equal(first, image((0, 3), seed=1))
    data = module(digits)
    data.setup("fit")
    assert not data.train_set.differs_between_epochs()


def test_the_order_is_a_dataloaders():
    loader = DataLoader(range(24), 5, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(3))
    for epoch in range(3):
        iterator = iter(loader)
        seen = [index for _ in range(len(loader)) for index in next(iterator).tolist()]
        assert seen == epoch_order(24, 3, epoch)[:20]


@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_the_batches_of_one(monkeypatch, drop_last):
    one = list(JointBatches(22, 4, seed=1, drop_last=drop_last))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("fgd_distill.data.resumable_loader.process_rank", lambda rank=rank: (rank, 2))
        parts.append(list(JointBatches(22, 2, seed=1, drop_last=drop_last)))
    joint = [first + second for first, second in zip(*parts, strict=True)]
    assert len(joint) == len(one) == (5 if drop_last else 6)
    assert joint[:5] == one[:5]
    if not drop_last:
        assert joint[5][:2] == one[5] and joint[5][2:] == one[0][:2]  # filled up: each process takes the step


class Pairs(list):
    """A data set that returns the pairs that it is asked for."""

    def __getitem__(self, item):
        return item


def loader_of(length=10, batch_size=3):
    batches = JointBatches(length, batch_size, seed=0, drop_last=True)
    return ResumableLoader(Pairs(range(length)), batches, collate_fn=list)


@pytest.mark.parametrize("taken", [1, 2, 3, 4])
def test_a_loader_goes_on_where_it_was(taken):
    def batches(loader, count):
        while True:
            for batch in loader:
                yield batch
                count -= 1
                if not count:
                    return

    whole = list(batches(loader_of(), 8))
    assert {epoch for batch in whole for epoch, _ in batch} == {0, 1, 2}
    first, second = loader_of(), loader_of()
    begun = list(batches(first, taken))
    second.load_state_dict(first.state_dict())
    assert begun + list(batches(second, 8 - taken)) == whole


def test_a_position_within_an_epoch_needs_the_same_batches():
    first = loader_of()
    loader_of(batch_size=2).load_state_dict(first.state_dict())  # at an epoch's beginning anything goes
    next(iter(first))
    with pytest.raises(ValueError, match=r"after 1 batches.*joint_batch_size 3 \(now 2\)"):
        loader_of(batch_size=2).load_state_dict(first.state_dict())
    first.steps_an_epoch = 1
    assert first.state_dict()["epoch"] == 1 and first.state_dict()["batches"] == 0


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
    data = module(digits, batch_size=25)
    data.setup("fit")
    with pytest.raises(ValueError, match="at most the 24 training images, got 25"):
        data.train_dataloader()


def test_an_error_in_a_loader_process_is_told_without_its_traceback(monkeypatch):
    """Torch's way of handing it over, without a process of its own."""

    def fails(self):
        try:
            raise FGDOSError("20 images in a row: a.png: cut\nshort")
        except FGDOSError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()
        yield

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", fails)
    loader = ResumableLoader(list(range(4)), JointBatches(4, 2))
    with pytest.raises(FGDOSError) as error:
        next(iter(loader))
    assert str(error.value) == "20 images in a row: a.png: cut\nshort"
