"""Image files as cameras and other tools write them: the right pixels, or refused by name. 5 seconds."""

import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fgd_distill.commands.predict import _Images, _listed
from fgd_distill.data.datamodule import CocoFolder
from fgd_distill.data.image_files import UnreadableImageError, read_image
from fgd_distill.pictures.images import coco_image, image_file


def _image(number, **more):
    return {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} | more


def _box(image_id, bbox, number=1, **more):
    return {"id": number, "image_id": image_id, "category_id": 1, "bbox": bbox} | more


def _turned_jpeg(path, orientation, size=(60, 40)):
    """An image whose left half is bright as a viewer shows it upright, stored as a camera does."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = np.tile(np.linspace(0, 255, size[0]).astype(np.uint8)[None, :, None], (size[1], 1, 3))
    Image.fromarray(ramp).save(path, exif=exif, quality=95)


def test_exif_turns_the_image_where_the_json_has_the_turned_size(folder, tmp_path):
    boxes = [_box(1, [5, 40, 20, 15]), _box(1, [5, 5, 30, 34], 2)]
    entry = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 60, "write": False}
    images, annotations = folder([entry], boxes)
    _turned_jpeg(images / "a.jpg", 6)
    image, target = CocoFolder(images, annotations)[0]
    assert image.shape == (3, 60, 40)
    assert target["boxes"].tolist() == [[5, 40, 25, 55], [5, 5, 35, 39]]
    assert image[0, 0].mean() < 0.1 < 0.9 < image[0, -1].mean()  # left of the file is the top of what a viewer shows
    assert torch.equal(coco_image(images, annotations, 0)[0], image)
    torch.testing.assert_close(image_file(images / "a.jpg")[0], image)
    for listed in (_listed(images, str(annotations)), _listed(images, None)):
        assert torch.equal(_Images(listed)[0].pixels, image)


def test_exif_is_left_alone_where_the_json_has_the_stored_size(folder):
    images, annotations = folder([{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40, "write": False}])
    _turned_jpeg(images / "a.jpg", 6)
    assert CocoFolder(images, annotations)[0][0].shape == (3, 40, 60)


def test_a_size_that_fits_neither_way_is_told_with_both(folder, caplog):
    entries = [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 60, "write": False}, _image(2)]
    images, annotations = folder(entries)
    _turned_jpeg(images / "a.jpg", 6)
    assert CocoFolder(images, annotations)[0][1]["image_id"] == 2
    assert "a.jpg: expected 50 x 60 pixels, as the annotations say, got 60 x 40" in caplog.text
    with pytest.raises(ValueError, match="expected a readable image, got 0: a.jpg: expected 50 x 60"):
        coco_image(images, annotations, 0)
    assert _Images(_listed(images, str(annotations)))[0].pixels is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path, orientation):
    _turned_jpeg(tmp_path / "a.jpg", orientation)
    found = np.asarray(read_image(tmp_path / "a.jpg"))[..., 0].astype(int)
    assert found.shape == ((40, 60) if orientation < 5 else (60, 40))
    corners = [bool(found[y, x] > 128) for y, x in ((1, 1), (1, -2), (-2, 1), (-2, -2))]
    bright_right, bright_left = [False, True, False, True], [True, False, True, False]
    bright_bottom, bright_top = [False, False, True, True], [True, True, False, False]
    shown = [bright_right, bright_left, bright_left, bright_right, bright_bottom, bright_bottom, bright_top, bright_top]
    assert corners == shown[orientation - 1]


@pytest.mark.parametrize(("bits", "brightest"), [(12, 4095 / 65535), (16, 1.0)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path, bits, brightest, suffix):
    ramp = np.linspace(0, 2**bits - 1, 40 * 30).reshape(30, 40).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    pixels = image_file(tmp_path / f"a.{suffix}")[0]
    torch.testing.assert_close(pixels, torch.tensor(ramp / 65535).float().expand(3, 30, 40), atol=0.5 / 255, rtol=0)
    assert pixels.max() == pytest.approx(brightest, abs=0.5 / 255)


def _tiff(path, bits, photometric, data):
    """An uncompressed greyscale TIFF of 40 x 30 pixels, with fields that Pillow does not write."""
    fields = [(256, 40), (257, 30), (258, bits), (259, 1), (262, photometric), (273, 134), (277, 1), (278, 30)]
    fields.append((279, len(data)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    header = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + struct.pack("<I", 0)
    path.write_bytes(header.ljust(134, b"\0") + data)


@pytest.mark.parametrize("kind", ["pgm", "12 bits", "white is zero"])
def test_grey_of_more_than_eight_bits_in_other_files(tmp_path, kind):
    ramp = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    path = tmp_path / "a"
    if kind == "pgm":
        path.write_bytes(b"P5\n40 30\n65535\n" + ramp.astype(">u2").tobytes())
    elif kind == "12 bits":
        left, right = (ramp >> 4)[:, 0::2], (ramp >> 4)[:, 1::2]
        packed = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=-1)
        _tiff(path, 12, 1, packed.astype(np.uint8).tobytes())
    else:
        _tiff(path, 16, 0, (65535 - ramp).astype("<u2").tobytes())
    assert np.abs(np.asarray(read_image(path))[..., 0] - ramp / 257).max() < 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_every_format_is_turned_or_not_as_the_json_says(tmp_path, suffix):
    """Pillow turns TIFF files by itself, and the others not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.tile(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], (40, 1, 3))
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}", exif=exif)
    for size, turned in (((40, 60), True), ((60, 40), False), (None, True)):
        found = np.asarray(read_image(tmp_path / f"a.{suffix}", size)).astype(int)
        expected = ramp.transpose(1, 0, 2)[:, ::-1] if turned else ramp
        assert found.shape == expected.shape and np.abs(found - expected).max() < 12


def test_the_pixel_limit_can_be_raised_above_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 500)
    Image.new("L", (40, 30), 99).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=1200).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 500
    with pytest.raises(UnreadableImageError, match="expected at most 1000 pixels"):
        read_image(tmp_path / "a.png", max_pixels=1000)


@pytest.mark.parametrize(
    ("mode", "suffix", "error"),
    [("1", "png", 1), ("L", "png", 0), ("LA", "png", 0), ("RGB", "png", 0), ("RGBA", "png", 0), ("CMYK", "tif", 0),
     ("YCbCr", "tif", 3), ("LAB", "tif", 3), ("P", "png", 0), ("PA", "tif", 0)],
)  # fmt: skip
def test_modes(tmp_path, mode, suffix, error):
    """Each as the picture that was stored, read back by Pillow's own conversion (LAB's by its colour management)."""
    colours = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        stored, expected = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB"), picture
    else:
        stored = picture.convert(mode)
        expected = stored.convert("RGB")
    stored.save(tmp_path / f"a.{suffix}")
    found = np.asarray(read_image(tmp_path / f"a.{suffix}")).astype(int)
    assert found.shape == (30, 40, 3) and np.abs(found - np.asarray(expected)).mean() <= error


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused(tmp_path, mode):
    Image.fromarray(np.random.default_rng(0).random((30, 40)).astype({"I": np.int32, "F": np.float32}[mode])).save(
        tmp_path / "a.tif"
    )
    with pytest.raises(UnreadableImageError, match=f"a.tif: expected 8 or 16 bits a channel, got Pillow's mode {mode}"):
        read_image(tmp_path / "a.tif")


def test_images_that_are_too_large_are_refused_before_they_are_decoded(folder, caplog, monkeypatch):
    images, annotations = folder([_image(1), _image(2, file_name="large.png", write=False, width=None)])
    Image.new("L", (400, 300), 99).save(images / "large.png")
    data = CocoFolder(images, annotations, max_pixels=100_000)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(
        UnreadableImageError, match=r"large.png: expected at most 100000 pixels \(data.max_pixels\), got"
    ):
        data.dataset._dataset._load_image(2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(UnreadableImageError, match=f"{name}: expected a file, got a folder, a pipe or a device"):
            read_image(tmp_path / name)


def test_no_program_is_run_for_a_picture(tmp_path, monkeypatch):
    """Whatever its name is, PostScript is Ghostscript's."""
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("run"))
    with pytest.raises(UnreadableImageError, match="a.png: expected pixels, got EPS, which a program has to draw"):
        read_image(tmp_path / "a.png")
