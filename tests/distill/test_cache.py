import io
import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from fgd_distill.distiller import DetectionDistiller
from fgd_distill.errors import FGDError
from fgd_distill.training.run import run
from fgd_distill.training.teacher_cache import CacheConfig, TeacherCache, teacher_fingerprint

FINGERPRINT = {"teacher": "abc", "layers": ["fpn"]}


class Teacher:
    """Stands for a teacher: two levels that depend on the image, and a count of the images that it saw."""

    def __init__(self):
        self.seen = 0

    def __call__(self, batch):
        self.seen += len(batch)
        return [batch[:, :2] * 3, batch[:, :1, ::2, ::2] + 1]


def batch_of(*ids, size=16):
    images = [torch.rand(3, size, size, generator=torch.Generator().manual_seed(number)) for number in ids]
    return torch.stack(images), [{"image_id": number} for number in ids]


def cache_in(folder, fingerprint=FINGERPRINT, images=4, **options):
    return TeacherCache(CacheConfig(str(folder), **options), fingerprint, images)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_teacher_sees_an_image_once(tmp_path, dtype):
    teacher = Teacher()
    cache = cache_in(tmp_path, dtype=dtype)
    first = cache.features(*batch_of(1, 2), teacher)
    mixed = cache.features(*batch_of(2, 3), teacher)
    assert teacher.seen == 3
    again = cache_in(tmp_path, dtype=dtype).features(*batch_of(3, 1), teacher)  # another run
    assert teacher.seen == 3
    for level in range(2):
        assert first[level].dtype == getattr(torch, dtype) and first[level].shape[0] == 2
        assert torch.equal(first[level][1], mixed[level][0])
        assert torch.equal(again[level], torch.stack([mixed[level][1], first[level][0]]))
    exact = Teacher()(batch_of(1, 2)[0])
    for ours, theirs in zip(first, exact, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-2, atol=1e-2)
        assert (dtype == "float32") == torch.equal(ours.float(), theirs)


def test_the_size_is_told_before_anything_is_written(tmp_path, capsys):
    # An image has 2 * 16 * 16 + 8 * 8 = 576 numbers of 2 bytes.
    folder = tmp_path / "cache"
    cache_in(folder, images=1_000_000, max_gb=2).features(*batch_of(1), Teacher())
    assert "1000000 images in" in (told := capsys.readouterr().out) and "need 1.15 GB as float16" in told
    shutil.rmtree(folder)
    with pytest.raises(OSError, match=r"need 1\.15 GB as float16; max_gb is 1, free are"):
        cache_in(folder, images=1_000_000, max_gb=1).features(*batch_of(1), Teacher())
    with pytest.raises(OSError, match="free are"):
        cache_in(folder, images=10**13, max_gb=math.inf).features(*batch_of(1), Teacher())
    assert list(folder.iterdir()) == []


def test_files_hold_one_image_each_and_no_more(tmp_path):
    cache_in(tmp_path, dtype="float32").features(*batch_of(*range(1, 9), size=64), Teacher())
    sizes = [path.stat().st_size for path in (tmp_path / "maps").iterdir()]
    assert len(sizes) == 8 and max(sizes) < 4 * (2 * 64 * 64 + 32 * 32) + 5000


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/maps-of-a-teacher")):
        with pytest.raises(FGDError, match=f"{re.escape(str(folder))}: .*(could not be written|expected a folder)"):
            cache_in(folder).features(*batch_of(1), Teacher())


def test_another_teacher_other_layers_or_another_type_are_refused(tmp_path):
    cache_in(tmp_path).features(*batch_of(1), Teacher())
    for fingerprint, options, message in (
        ({**FINGERPRINT, "teacher": "xyz"}, {}, "teacher: abc there, xyz here"),
        ({**FINGERPRINT, "layers": ["body"]}, {}, "layers"),
        (FINGERPRINT, {"dtype": "float32"}, "dtype: float16 there, float32 here"),
    ):
        with pytest.raises(ValueError, match=f"another set-up.*{message}"):
            cache_in(tmp_path, fingerprint, **options)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="found other files"):
        cache_in(tmp_path / "foreign")


def test_the_fingerprint_is_of_all_weights(pair):
    _, teacher = pair
    before = teacher_fingerprint(teacher, ["backbone.fpn"])
    assert before == teacher_fingerprint(teacher, ["backbone.fpn"])
    with torch.no_grad():
        teacher.backbone.fpn.layer_blocks[2][0].bias[-1] += 1e-3
    assert teacher_fingerprint(teacher, ["backbone.fpn"])["teacher"] != before["teacher"]


def test_other_pixels_or_sizes_of_the_same_image_are_refused(tmp_path):
    cache = cache_in(tmp_path)
    images, targets = batch_of(1, 2)
    cache.features(images, targets, Teacher())
    with pytest.raises(ValueError, match="image 2 looks different.*random train_transforms"):
        cache.features(torch.stack([images[0], images[1].flip(-1)]), targets, Teacher())
    with pytest.raises(ValueError, match="expected batches of 16x16 pixels.*got 16x24.*fixed_size"):
        cache.features(torch.rand(2, 3, 16, 24), targets, Teacher())


def test_mirrored_images_have_entries_of_their_own(tmp_path):
    batch, targets = batch_of(1, 2)
    batch[1] = 0.5 + 1e-5 * batch[1]  # the thumbnails of its two forms are the same within their tolerance
    teacher = Teacher()
    for _ in range(2):
        for images in (batch, batch.flip(3)):
            cache = cache_in(tmp_path, forms=2, dtype="float32")  # another run each time
            for ours, theirs in zip(cache.features(images, targets, teacher), Teacher()(images), strict=True):
                assert torch.equal(ours, theirs)
    assert teacher.seen == 4 and len(list((tmp_path / "maps").iterdir())) == 4
    with pytest.raises(ValueError, match=r"image 1 came in 3 forms, teacher_cache.forms is 2; beside the mirroring"):
        cache.features(batch.flip(2), targets, teacher)
    with pytest.raises(ValueError, match=r"another set-up \(forms: 2 there, None here\)"):
        cache_in(tmp_path, dtype="float32")


def test_forms_count_in_the_size(tmp_path, capsys):
    cache_in(tmp_path, images=1000, forms=4).features(*batch_of(1), Teacher())
    assert "need 0.00461 GB" in capsys.readouterr().out


@pytest.mark.parametrize(("forms", "told"), [(0, "expected 1 or more, got 0"), (2.0, "expected a whole number")])
def test_forms_that_are_no_number_of_forms(tmp_path, forms, told):
    with pytest.raises((TypeError, ValueError), match=f"teacher_cache.forms: {told}"):
        cache_in(tmp_path, forms=forms)


def test_values_that_the_type_cannot_hold(tmp_path):
    def loud(batch):
        return [batch * 1e6]

    with pytest.raises(ValueError, match="image 1 is not finite in float16; use bfloat16"):
        cache_in(tmp_path / "a").features(*batch_of(1), loud)
    cache_in(tmp_path / "b", dtype="bfloat16").features(*batch_of(1), loud)


def other_files(content):
    """Contents of files that are not the entry ``content``."""
    torch.save({"maps": [torch.full((2, 16, 16), math.nan)], "thumbnail": torch.zeros(3, 8, 8)}, saved := io.BytesIO())
    nan = bytearray(content)
    nan[-2:] = b"\xff\x7f"  # NaN in float16
    return {
        "empty": b"",
        "cut": content[:100],
        "cut at its end": content[:-2],
        "longer": content + b"\0",
        "text": b"a text of the same length, " * (len(content) // 27) + b"." * (len(content) % 27),
        "of torch.save": saved.getvalue(),
        "with NaN": bytes(nan),
        "zeros": bytes(len(content)),
    }


@pytest.mark.parametrize("kind", other_files(bytes(100)))
def test_an_entry_that_does_not_fit_is_made_again(tmp_path, caplog, kind):
    teacher = Teacher()
    first = cache_in(tmp_path).features(*batch_of(1, 2), teacher)
    path = tmp_path / "maps" / "2.maps"
    path.write_bytes(other_files(whole := path.read_bytes())[kind])
    again = cache_in(tmp_path).features(*batch_of(1, 2), teacher)
    assert teacher.seen == 3 and [
        record.message for record in caplog.records if "2.maps is made again: it" in record.message
    ]
    assert len(caplog.records) == 1 and "\n" not in caplog.text.strip()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))
    assert path.read_bytes() == whole


def test_an_entry_of_another_image_or_cache_is_made_again(tmp_path):
    """Of the same size, and whole."""
    teacher = Teacher()
    first = cache_in(tmp_path / "a").features(*batch_of(1, 2), teacher)
    cache_in(tmp_path / "b", {**FINGERPRINT, "teacher": "xyz"}).features(
        *batch_of(1), lambda batch: [level + 1 for level in Teacher()(batch)]
    )
    cache_in(tmp_path / "c", dtype="bfloat16").features(*batch_of(1), Teacher())
    for other in (tmp_path / "a" / "maps" / "2.maps", *(tmp_path / name / "maps" / "1.maps" for name in "bc")):
        shutil.copy(other, tmp_path / "a" / "maps" / "1.maps")
        seen = teacher.seen
        again = cache_in(tmp_path / "a").features(*batch_of(1, 2), teacher)
        assert teacher.seen == seen + 1
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """300 bits of an entry and 100 of cache.json, each flipped alone, and now and then a run of bytes after it."""
    teacher, numbers = Teacher(), random.Random(0)
    first = cache_in(tmp_path).features(*batch_of(1, 2), teacher)
    for name, count in (("maps/2.maps", 300), ("cache.json", 100)):
        whole = (tmp_path / name).read_bytes()
        for trial in range(count):
            content = bytearray(whole)
            place = numbers.randrange(8 * len(content))
            content[place // 8] ^= 1 << place % 8
            if trial % 5 == 4:
                content[place // 8 + 1 : place // 8 + 9] = numbers.randbytes(
                    len(content[place // 8 + 1 : place // 8 + 9])
                )
            (tmp_path / name).write_bytes(content)
            seen = teacher.seen
            again = cache_in(tmp_path).features(*batch_of(1, 2), teacher)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True)), (name, place)
            assert teacher.seen > seen or (name == "cache.json" and json.loads(content) == json.loads(whole))
            assert (tmp_path / name).read_bytes() == whole or teacher.seen == seen


@pytest.mark.parametrize(
    "content", [b"", b"a text", b"{", b"[1, 2]", b"7", b"{}", b'{"teacher": "abc"}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_manifest_that_does_not_fit_is_made_again(tmp_path, caplog, content):
    """What it is about is in the entries as well: they are used again."""
    teacher = Teacher()
    first = cache_in(tmp_path).features(*batch_of(1, 2), teacher)
    whole = (tmp_path / "cache.json").read_bytes()
    (tmp_path / "cache.json").write_bytes(content)
    cache = cache_in(tmp_path)
    assert "cache.json is made again: it is damaged" in caplog.text and len(caplog.records) == 1
    again = cache.features(*batch_of(1), teacher) + cache.features(*batch_of(2), teacher)
    assert teacher.seen == 3 and (tmp_path / "cache.json").read_bytes() == whole
    assert torch.equal(first[0], torch.cat([again[0], again[2]]))
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "cache.json").write_bytes(content)
    with pytest.raises(FileExistsError, match="found other files"):
        cache_in(tmp_path)


def test_entries_of_an_earlier_format_are_removed(tmp_path, caplog):
    teacher = Teacher()
    cache_in(tmp_path).features(*batch_of(1), teacher)
    content = {"maps": [level[0] for level in Teacher()(batch_of(2)[0])], "thumbnail": torch.zeros(3, 8, 8)}
    for name in ("1.pt", "-2.pt", "student.pt"):
        torch.save(content, tmp_path / "maps" / name)
    cache_in(tmp_path).features(*batch_of(1, 2), teacher)
    (told,) = caplog.messages
    assert "maps: 2 entries (" in told and "of an earlier version's format are removed; their maps are made" in told
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["1.maps", "2.maps", "student.pt"]
    assert teacher.seen == 2
    cache_in(tmp_path)
    assert len(caplog.messages) == 1


def test_partial_files_of_killed_runs_are_removed(tmp_path):
    cache_in(tmp_path).features(*batch_of(1), Teacher())
    (tmp_path / ".cache.json.123.partial").write_text("{")
    (tmp_path / "maps" / ".2.maps.0123abcd.partial").write_bytes(b"half")
    cache_in(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["1.maps", "cache.json"]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".cache.json.123.partial").write_text("{")
    cache_in(tmp_path / "new").features(*batch_of(1), Teacher())  # a run that was killed at its very beginning


def test_the_second_epoch_of_a_training_runs_no_teacher(fit_args, teacher_file, tmp_path, monkeypatch):
    """Two epochs of six steps; in float32 they are those of a training without a cache."""
    images = []
    original = DetectionDistiller.teacher_features

    def counted(self, batch):
        images.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(DetectionDistiller, "teacher_features", counted)
    fgd = ["--config=digits_fgd.yaml", f"--model.teacher.weights={teacher_file}", "--trainer.limit_val_batches=0"]
    cache = {"folder": str(tmp_path / "cache"), "dtype": "float32"}
    kept = run(fit_args(tmp_path / "kept", *fgd, f"--model.teacher_cache={json.dumps(cache)}", steps=12))
    assert images == [4] * 6
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["frame"] == [128, 128]
    plain = run(fit_args(tmp_path / "plain", *fgd, steps=12))
    assert images == [4] * 18
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(kept.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)

    flip = '--data.train_transforms=[{"class_path": "torchvision.transforms.v2.RandomHorizontalFlip"}]'
    with pytest.raises(ValueError, match="teacher_cache: expected images that are the same in every epoch"):
        run(fit_args(tmp_path / "flip", *fgd, f"--model.teacher_cache={json.dumps(cache)}", flip))
