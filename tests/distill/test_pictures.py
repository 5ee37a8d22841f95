import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from fgd_distill import pictures
from fgd_distill.commands import main as cli
from fgd_distill.data.evaluation import METRICS
from fgd_distill.detectors.by_name import DetectorConfig
from fgd_distill.digits.detectors import digits_student, digits_teacher
from fgd_distill.pictures import attention
from fgd_distill.pictures.bars import read_ap
from fgd_distill.pictures.curves import metrics_file, read_metrics, smooth
from fgd_distill.pictures.images import coco_image
from fgd_distill.pictures.style import labelled
from fgd_kernels import foreground

DEMO_TABLE = Path(__file__).parents[2] / "bench" / "results" / "digits_students.csv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights: these tests ask what is drawn where, not how well anything learned."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, build) in enumerate({"teacher": digits_teacher, "student": digits_student}.items()):
        torch.manual_seed(seed)
        torch.save(build().state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture
def run_folder(tmp_path):
    """A run as Lightning's logger leaves it: losses every five steps and one validation."""

    def make(name, factor=1.0):
        logger = CSVLogger(tmp_path, name)
        for step in range(0, 100, 5):
            loss = factor * (math.exp(-step / 40) + 0.05 * math.sin(step))
            logger.log_metrics({"loss": 3 * loss, "train/bbox": 2 * loss, "train/loss_fgd_fg": loss}, step)
        logger.log_metrics({"val/AP": 20.0 * factor, "val/AP_small": 10.0, "val/AP_large": float("nan")}, 99)
        logger.save()
        return tmp_path / name

    return make


def attention_args(weights, output, *more):
    return [
        "show-attention",
        "--teacher.name=digits_teacher",
        "--teacher.num_classes=11",
        f"--teacher.weights={weights / 'teacher.pt'}",
        "--student.name=digits_student",
        "--student.num_classes=11",
        f"--output={output}",
        *more,
    ]


def pixels_of(path):
    """The PNG's pixels (h, w, 3), after the check that something is drawn all over it."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert Image.open(path).format == "PNG"
    for part in (pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]):
        assert part.std() > 5
    return pixels


def test_attention_of_a_coco_image(digits, weights, tmp_path):
    output = tmp_path / "new" / "attention.png"
    distilled = f"--distilled={{name: digits_student, num_classes: 11, weights: '{weights / 'student.pt'}'}}"
    folder = [f"--images={digits / 'images' / 'val'}", f"--annotations={digits / 'annotations' / 'val.json'}"]
    cli.main(attention_args(weights, output, distilled, *folder, "--index=2", "--temperature=8"))
    height, width = pixels_of(output).shape[:2]
    assert abs(width - 4 * 2.08 * 110) <= 1  # the mask and three models, at 110 dots an inch
    masks = ["--foreground=masks", "--levels=[1]", "--temperature=8"]
    cli.main(attention_args(weights, output, distilled, *folder, *masks))
    assert pixels_of(output).shape[0] < 0.45 * height
    assert [path.name for path in output.parent.iterdir()] == ["attention.png"]


def test_flat_attention_looks_flat(pair):
    """At a T that is far too large all models' colours are one; spanning the teacher's values they would look vivid."""
    image, boxes = torch.rand(3, 96, 128), torch.tensor([[45.0, 30.0, 60.0, 40.0]])
    spread = {}
    for temperature in (0.001, 1e3):
        view = pictures.view_attention(pair[1], {"ours": pair[0]}, image, boxes, temperature=temperature)
        for scale in ("fixed", "teacher"):
            figure = attention.draw_attention(view, [0], temperature, scale)
            teacher = figure.axes[1]
            shown = teacher.get_images()[1]
            spread[temperature, scale] = shown.norm(shown.get_array()).std()
            pixels = attention.effective(view.spatial["teacher"][0])
            assert f"as on {pixels:.0f} of 192 pixels" in teacher.get_title()
    assert spread[1e3, "fixed"] < 0.01 < 0.1 < spread[1e3, "teacher"]
    assert spread[0.001, "fixed"] > 0.1 and pixels > 191.9
    assert attention.effective(torch.tensor([0.0, 2.0, 2.0, 0.0])) == pytest.approx(2)


def test_attention_of_an_image_file(weights, tmp_path):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    cli.main(attention_args(weights, tmp_path / "a.png", f"--image={tmp_path / 'photo.jpg'}"))
    assert abs(pixels_of(tmp_path / "a.png").shape[1] - 3 * 2.08 * 110) <= 1


def test_the_frame_is_the_padded_batch(pair):
    """A 60 x 90 image becomes 85 x 128, padded to 96 x 128: picture, boxes and mask count in that."""
    student, teacher = pair
    before = {name: value.clone() for name, value in student.state_dict().items()}
    colour = torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1)
    view = pictures.view_attention(
        teacher, {"ours": student.train()}, colour.expand(3, 60, 90), torch.tensor([[45.0, 30.0, 60.0, 40.0]])
    )
    assert view.picture.shape == (3, 96, 128)
    torch.testing.assert_close(view.picture[:, :85], colour.expand(3, 85, 128))
    torch.testing.assert_close(view.boxes, torch.tensor([[64.0, 42.5, 85.3333, 56.6667]]))
    rows, columns = view.foreground[0].nonzero().unbind(1)
    assert view.foreground[0].shape == (12, 16)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 8, 8, 11)
    for maps in view.spatial.values():
        assert [tuple(m.shape) for m in maps] == [(12, 16), (6, 8), (3, 4)]
        assert all(float(m.mean()) == pytest.approx(1, abs=1e-5) for m in maps)
    assert student.training and all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_masks_as_foreground_lie_where_their_objects_lie(pair):
    """In the padded batch: as for boxes, an image of 60 x 90 fills 85 x 128 of 96 x 128."""
    student, teacher = pair
    image, box = torch.rand(3, 60, 90), torch.tensor([[45.0, 30.0, 60.0, 40.0]])
    masks = torch.zeros(1, 60, 90, dtype=torch.uint8)
    masks[0, 30:40, 45:60] = 1
    by_mask = pictures.view_attention(teacher, {"ours": student}, image, box, masks=masks)
    by_box = pictures.view_attention(teacher, {"ours": student}, image, box)
    assert torch.equal(by_mask.boxes, by_box.boxes) and by_mask.foreground[0].shape == (12, 16)
    rows, columns = by_mask.foreground[0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 7, 8, 10)  # 42.5 to 56.7 and 64 to 85.3
    assert float(by_mask.foreground[0].max()) == pytest.approx(1 / 9)
    empty = pictures.view_attention(teacher, {"ours": student}, image, box[:0], masks=masks[:0])
    assert all(float(level.max()) == 0 for level in empty.foreground)


def test_what_the_loss_takes_for_foreground_is_drawn():
    turned = [torch.zeros(0, 5), torch.tensor([[32.0, 24.0, 40.0, 8.0, 0.5]])]
    shapes, sizes = foreground.rotated_boxes(turned, [(48, 64)] * 2), [(12, 16), (6, 8)]
    for given in (shapes, [shapes(*size) for size in sizes]):
        figure = pictures.draw_foreground(torch.rand(3, 48, 64), given, sizes, index=1, boxes=torch.rand(1, 4))
        assert len(figure.axes) == 2 and "level 1, 6×8: foreground" in figure.axes[1].get_title()
        for axes, size in zip(figure.axes, sizes, strict=True):
            shown = torch.from_numpy(np.nan_to_num(axes.get_images()[1].get_array().filled(0)))
            torch.testing.assert_close(shown, shapes(*size)[1])
    with pytest.raises(ValueError, match="foreground: expected boxes for an image without annotations"):
        attention.show_attention(
            DetectorConfig("", 1, "a.pt"), DetectorConfig("", 1), image="a.png", foreground="masks"
        )
    with pytest.raises(ValueError, match=r"foreground: expected maps \(N, H, W\) of .*, got \[\(12, 16\)\]"):
        pictures.draw_foreground(torch.rand(3, 48, 64), [shapes(12, 16)], sizes)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"picture": np.zeros((3, 48, 64))}, TypeError, r"picture: expected a tensor \(3, h, w\), got ndarray"),
        ({"picture": torch.rand(1, 3, 48, 64)}, ValueError, r"picture: expected .*, got \(1, 3, 48, 64\)"),
        ({"picture": torch.rand(1, 48, 64)}, ValueError, r"picture: expected .*, got \(1, 48, 64\)"),
        ({"foreground": torch.rand(2, 12, 16)}, TypeError, "foreground: expected maps .*, got Tensor"),
        ({"foreground": [np.zeros((2, 12, 16))]}, TypeError, r"foreground\[0\]: expected a tensor .*, got ndarray"),
        ({"foreground": [torch.rand(12, 16)]}, ValueError, r"foreground\[0\]: expected a tensor .*, got \(12, 16\)"),
        ({"sizes": (12, 16)}, ValueError, r"sizes: expected \(H, W\) of each level, .*, got \(12, 16\)"),
        ({"sizes": []}, ValueError, "sizes: expected .*"),
        ({"sizes": [(12, 0)]}, ValueError, "sizes: expected .*"),
        ({"index": 2}, ValueError, "index: expected an image of the 2 of the maps, from 0, got 2"),
        ({"index": -1}, ValueError, "index: expected .*, got -1"),
        ({"boxes": [[0, 0, 1, 1]]}, TypeError, r"boxes: expected a tensor \(n, 4\), got list"),
        ({"boxes": torch.rand(4)}, ValueError, r"boxes: expected .*, got \(4,\)"),
    ],
)
def test_what_cannot_be_drawn_is_told(wrong, error, message):
    given = {"picture": torch.rand(3, 48, 64), "foreground": [torch.rand(2, 12, 16)], "sizes": [(12, 16)]}
    with pytest.raises(error, match=message):
        pictures.draw_foreground(**given | wrong)


def test_mask_rcnn_whose_step_asks_for_masks(pair):
    models = [
        MaskRCNN(
            model.backbone,
            num_classes=3,
            rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3),
            min_size=64,
            max_size=96,
        )
        for model in pair
    ]
    for boxes in (torch.tensor([[10.0, 10.0, 50.0, 40.0], [0.0, 5.0, 20.0, 60.0]]), None):
        view = pictures.view_attention(models[1], {"student": models[0]}, torch.rand(3, 64, 96), boxes)
        assert view.picture.shape == (3, 64, 96) and len(view.spatial["student"]) == 3
        assert len(view.boxes) == (0 if boxes is None else 2)


def test_an_unreadable_image_is_not_replaced_by_another(write_coco):
    images, annotations = write_coco([("a.png", []), ("b.png", [])])
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="index: expected a readable image, got 0"):
        coco_image(images, annotations, 0)
    assert coco_image(images, annotations, 1)[0].shape == (3, 30, 40)


def test_a_bright_spot_is_found_where_it_was_put():
    """From the image to the feature pixel, through a backbone that only averages brightness."""

    class Brightness(torch.nn.Module):
        def forward(self, batch):
            light = torch.nn.functional.avg_pool2d(batch.mean(1, keepdim=True) + 3, 8)
            return {str(n): torch.nn.functional.avg_pool2d(light, 2**n).expand(-1, 64, -1, -1) for n in range(3)}

    models = [digits_student(), digits_student()]
    for model in models:
        model.backbone.fpn = Brightness()
        model.backbone.body = torch.nn.Identity()
    image = torch.full((3, 100, 128), 0.4)
    image[:, 48:56, 16:24] = 1
    view = pictures.view_attention(models[0], {"student": models[1]}, image)
    for name in ("teacher", "student"):
        assert divmod(int(view.spatial[name][0].argmax()), 16) == (6, 2)
        assert divmod(int(view.spatial[name][1].argmax()), 8) == (3, 1)


def test_attention_is_drawn_over_the_pixel_it_belongs_to():
    """One hot feature pixel of 12 x 20 on a black picture of 96 x 160: the brightest dots lie in its 8 x 8 pixels."""
    hot = torch.ones(12, 20)
    hot[3, 10] = 9.0
    view = pictures.AttentionView(
        picture=torch.zeros(3, 96, 160),
        boxes=torch.zeros(0, 4),
        foreground=[torch.zeros(12, 20)],
        spatial={"teacher": [hot], "student": [hot.flip(0)]},
        channel={"teacher": [torch.rand(7)], "student": [torch.rand(7)]},
    )
    figure = pictures.draw_attention(view)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    dots = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int).sum(2)  # upwards, as matplotlib counts
    for panel, row in ((1, 3), (2, 8)):
        axes = figure.axes[panel]
        left, bottom, right, top = (round(v) for v in axes.get_window_extent().extents)
        inside = dots[bottom + 2 : top - 2, left + 2 : right - 2]
        y, x = (inside == inside.max()).nonzero()
        data = axes.transData.inverted().transform(np.stack([x + left + 2.5, y + bottom + 2.5], axis=1))
        assert (abs(data[:, 0] - 84) < 5).all() and (abs(data[:, 1] - (8 * row + 4)) < 5).all()
        assert np.ptp(data[:, 0]) > 6 and np.ptp(data[:, 1]) > 6


def test_students_are_measured_against_the_teacher(pair):
    student, teacher = pair
    view = pictures.view_attention(teacher, {"student": student, "copy": teacher}, torch.rand(3, 128, 128))
    titles = [axes.get_title() for axes in pictures.draw_attention(view, [0]).axes]
    titles = [title.splitlines()[0] for title in titles if title]
    assert "copy, off by 0.00" in titles
    off = float((view.spatial["student"][0] - view.spatial["teacher"][0]).abs().mean())
    assert off > 0 and f"student, off by {off:.2f}" in titles


def test_wrong_attention_options(pair):
    student, teacher = pair
    image = torch.rand(3, 128, 128)
    with pytest.raises(ValueError, match=r"no module 'backbone.fpm'; close names are \['backbone.fpn'"):
        pictures.view_attention(teacher, {"student": student}, image, student_layers="backbone.fpm")
    with pytest.raises(ValueError, match="as many feature maps of every model, got.*1.*3"):
        pictures.view_attention(teacher, {"s": student}, image, teacher_layers="backbone.fpn.layer_blocks.0")
    with pytest.raises(ValueError, match="temperature: expected a number > 0, got 0"):
        pictures.view_attention(teacher, {"student": student}, image, temperature=0)
    with pytest.raises(ValueError, match="levels: expected some of 0 to 2, got \\[3\\]"):
        pictures.draw_attention(pictures.view_attention(teacher, {"student": student}, image), [3])
    with pytest.raises(ValueError, match="students: expected models by names"):
        pictures.view_attention(teacher, {}, image)


def test_wrong_images_and_files(digits, weights, tmp_path):
    untrained = DetectorConfig("digits_teacher", 11)
    models = {
        "teacher": DetectorConfig("digits_teacher", 11, str(weights / "teacher.pt")),
        "student": DetectorConfig("digits_student", 11),
        "output": str(tmp_path / "a.png"),
    }
    folder = {"images": str(digits / "images" / "val"), "annotations": str(digits / "annotations" / "val.json")}
    for options, error, words in (
        ({}, ValueError, "expected either image, or images and annotations"),
        ({"images": folder["images"]}, ValueError, "expected either image, or images and annotations"),
        ({"image": str(tmp_path / "none.jpg")}, FileNotFoundError, "image: expected a file, found none"),
        ({"image": str(weights / "teacher.pt")}, ValueError, "expected an image file, could not read"),
        ({"image": str(DEMO_TABLE), "teacher": untrained}, ValueError, "it would look at noise"),
        ({"image": str(DEMO_TABLE), "output": "a.jpg"}, ValueError, "ends in .png, got 'a.jpg'"),
        ({**folder, "index": 6}, ValueError, "index: expected 0 to 5"),
    ):
        with pytest.raises(error, match=words):
            pictures.show_attention(**(models | options))
    assert not (tmp_path / "a.png").exists()


def test_training_curves_of_two_runs(run_folder, tmp_path, capsys):
    output = tmp_path / "curves.png"
    cli.main(["plot-training", f"{{alone: {run_folder('a')}, with FGD: {run_folder('b', 2.0)}}}", f"--output={output}"])
    height, width = pixels_of(output).shape[:2]
    assert abs(width - 3 * 3.1 * 110) <= 1 and abs(height - (2 * 2.2 + 0.45) * 110) <= 1  # four panels in two rows
    run_folder("a")
    cli.main(["plot-training", str(tmp_path / "a"), "--terms=[train/loss_fgd*]", f"--output={output}"])
    assert "2 files of logs, taking the newest" in capsys.readouterr().out
    assert pixels_of(output).shape[1] < width / 2


def test_runs_of_tensorboard(tmp_path):
    """As Lightning's logger writes it; a resumed run has two files in one folder."""
    for first in (0, 2):
        logger = TensorBoardLogger(tmp_path, name="board", version=0)
        for step in (first, first + 1):
            logger.log_metrics({"loss": 4.0 - step, "train/loss_fgd_fg": 1.0, "epoch": 0.0}, step)
        logger.log_metrics({f"val/{name}": 10.0 + first for name in METRICS}, first + 1)
        logger.finalize("success")
    metrics = read_metrics(metrics_file(tmp_path / "board"))
    assert metrics["loss"] == ([0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0]) and "epoch" not in metrics
    assert read_ap(tmp_path / "board", "board")["board"]["AP"] == [12.0]
    cli.main(["plot-training", str(tmp_path / "board"), f"--output={tmp_path / 'a.png'}"])
    pixels_of(tmp_path / "a.png")


def test_curves_name_their_terms_and_runs(run_folder):
    metrics = {name: read_metrics(run_folder(name) / "version_0" / "metrics.csv") for name in ("a", "b")}
    figure = pictures.draw_curves(metrics)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["loss, total", "loss_fgd_fg", "bbox", "val/AP"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    metrics["b"]["loss"][1][3] = math.nan
    assert pictures.draw_curves(metrics).axes[0].get_title() == "loss, total (1 values not finite)"


def test_smoothing_lags_neither_way():
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    weights = [[math.exp(-abs(i - j) / (0.3 * 7)) for j in range(7)] for i in range(7)]
    expected = [sum(w * v for w, v in zip(row, values, strict=True)) / sum(row) for row in weights]
    assert smooth(values, 0.3) == pytest.approx(expected)
    assert smooth(values, 0.0) == values
    assert smooth([2.0, math.nan, 2.0], 1.0) == pytest.approx([2.0, 2.0, 2.0])
    assert math.isnan(smooth([math.nan], 0.5)[0])


def test_wrong_metrics(run_folder, tmp_path):
    empty = tmp_path / "metrics.csv"
    for text, words in (("", "a column 'step'"), ("step,loss\n", "expected logged values, found none")):
        empty.write_text(text)
        with pytest.raises(ValueError, match=words):
            pictures.plot_training(str(empty), output=str(tmp_path / "x.png"))
        with pytest.raises(ValueError, match=words):
            pictures.plot_ap(str(empty), output=str(tmp_path / "x.png"))
    with pytest.raises(FileNotFoundError, match="found none at"):
        pictures.plot_training(str(tmp_path / "nowhere"))
    run = str(run_folder("a"))
    with pytest.raises(ValueError, match=re.escape("expected some of ['loss', ")):
        pictures.plot_training(run, terms=["val/AQ"])
    with pytest.raises(ValueError, match="0 <= smoothing <= 1, got 2"):
        pictures.plot_training(run, smoothing=2)
    with pytest.raises(ValueError, match="got one of them twice"):
        labelled([run, run], "runs")
    assert not (tmp_path / "x.png").exists()


def test_labels_are_the_parts_that_differ():
    assert list(labelled(["runs/a/version_0", "runs/b/version_0"], "runs")) == ["a/version_0", "b/version_0"]
    assert list(labelled("runs/a", "runs")) == ["a"]


def test_ap_by_size_of_a_table_and_of_a_run(run_folder, tmp_path):
    output = tmp_path / "ap.png"
    cli.main(["plot-ap", str(DEMO_TABLE), "--methods=[teacher, alone, inherited + FGD]", f"--output={output}"])
    pixels_of(output)
    table = read_ap(DEMO_TABLE, "")
    assert len(table["alone"]["AP_small"]) == 3 and table["teacher"]["AP"] == [72.33]
    figure = pictures.draw_ap(table)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights[:4] == pytest.approx([72.33, 68.85, 77.86, 92.52])
    assert heights[4] == pytest.approx(sum(table["alone"]["AP"]) / 3)
    cli.main(["plot-ap", f"{{short: {run_folder('a')}}}", f"--output={output}"])
    scores = read_ap(tmp_path / "a", "short")["short"]
    assert (scores["AP"], scores["AP_small"]) == ([20.0], [10.0]) and math.isnan(scores["AP_large"][0])
    texts = [text.get_text() for text in pictures.draw_ap({"short": scores}).axes[0].texts]
    assert texts == ["20.0", "10.0", "none", "none"]


def test_wrong_ap_tables(run_folder, tmp_path):
    with pytest.raises(ValueError, match="methods: expected some of.*'teacher'.*got \\['FGB'\\]"):
        pictures.plot_ap(str(DEMO_TABLE), methods=["FGB"])
    table = tmp_path / "table.csv"
    table.write_text("setting,AP\na,1.0\n")
    with pytest.raises(ValueError, match="missing are \\['AP_small'"):
        pictures.plot_ap(str(table))
    table.write_text("step,loss\n1,2.0\n")
    with pytest.raises(ValueError, match="expected a validation's val/AP"):
        pictures.plot_ap(str(table))
