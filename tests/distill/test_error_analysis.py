"""The analysis of errors: small scenes whose areas are known, the published script's numbers, and the command."""

import csv
import json

import numpy as np
import pytest

from fgd_distill.commands import main as commands
from fgd_distill.commands.error_analysis import detections, objects_of
from fgd_distill.data.error_analysis import KINDS, error_curves

CATEGORIES = [(1, "cat", "animal"), (3, "dog", "animal"), (7, "car", "vehicle"), (12, "cup", "")]
EXACT = [20.0, 30.0, 50.0, 40.0]
LOOSE = [20.0, 30.0, 50.0, 25.0]  # an IoU of 0.625 with EXACT
TOUCHING = [20.0, 30.0, 50.0, 15.0]  # of 0.375
FAR = [200.0, 150.0, 50.0, 40.0]


def write(folder, objects, found, name="found"):
    """Objects (image, category, box, perhaps whether a crowd) and detections (image, category, box, score) as files."""
    content = {
        "images": [{"id": i, "width": 320, "height": 240, "file_name": f"{i}.jpg"} for i in range(1, 41)],
        "categories": [{"id": i, "name": n, "supercategory": s} for i, n, s in CATEGORIES],
        "annotations": [
            {"id": i, "image_id": m, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": int(any(crowd))}
            for i, (m, c, b, *crowd) in enumerate(objects, start=1)
        ],
    }
    rows = [{"image_id": m, "category_id": c, "bbox": b, "score": s} for m, c, b, s in found]
    paths = folder / "objects.json", folder / f"{name}.json"
    paths[0].write_text(json.dumps(content))
    paths[1].write_text(json.dumps(rows))
    return paths


def areas(folder, objects, found, category="cat"):
    annotations, results = write(folder, objects, found)
    truth = objects_of(annotations)
    curves = error_curves(truth, detections(truth, results))
    return dict(zip(KINDS, curves.areas(curves.groups()["category", category])[:, 0], strict=True))


@pytest.mark.parametrize(
    ("category", "box", "forgiven"),
    [(1, EXACT, "C75"), (1, LOOSE, "C50"), (1, TOUCHING, "Loc"), (3, EXACT, "Sim"), (7, EXACT, "Oth"), (1, FAR, "BG")],
)
def test_each_kind_of_error_is_forgiven_from_its_curve_on(tmp_path, category, box, forgiven):
    """Two cats; one is found at once. The better-scored detection is wrong in one way, and precision a half with it."""
    other = [] if category == 1 else [(2, category, EXACT)]
    objects = [(1, 1, EXACT), (2, 1, [150.0, 100.0, 40.0, 40.0]), *other]
    hit = (2, 1, [150.0, 100.0, 40.0, 40.0], 0.5)
    wrong = (1 if category == 1 else 2, 1, box, 0.9)
    found = areas(tmp_path, objects, [wrong, hit])
    values = [found[kind] for kind in KINDS]
    assert values == sorted(values) and found["FN"] == 1
    before = KINDS.index(forgiven)
    # Recall 1/2 is reached at precision 1/2 while the wrong one counts.
    assert all(value == pytest.approx(51 / 101 / 2) for value in values[:before])
    assert values[before] > 0.5


def test_what_is_not_found_costs_from_bg_to_fn(tmp_path):
    found = areas(tmp_path, [(1, 1, EXACT), (2, 1, EXACT)], [(1, 1, EXACT, 0.9)])
    assert found["FN"] == 1 and all(found[kind] == pytest.approx(51 / 101) for kind in KINDS[:-1])


def test_categories_without_a_supercategory_are_like_none(tmp_path):
    objects = [(1, 12, EXACT), (2, 7, EXACT)]
    found = areas(tmp_path, objects, [(1, 12, EXACT, 0.5), (2, 12, EXACT, 0.9)], "cup")
    assert [found[kind] for kind in ("Loc", "Sim", "Oth")] == pytest.approx([0.5, 0.5, 1])


def random_scene(folder):
    rng = np.random.default_rng(0)
    objects, found = [], []
    ids = [category for category, *_ in CATEGORIES[:3]]
    for image in range(1, 41):
        for _ in range(rng.integers(1, 8)):
            w, h = np.exp(rng.uniform(np.log(8), np.log(160), 2))
            box = np.array([rng.uniform(0, 320 - w), rng.uniform(0, 240 - h), w, h])
            category = int(rng.choice(ids))
            objects.append((image, category, box.tolist(), rng.random() < 0.05))
            for _ in range(rng.integers(0, 4)):
                shift = rng.normal(0, rng.choice([0.05, 0.2, 0.5]), 4)
                near = np.concatenate([box[:2] + shift[:2] * box[2:], box[2:] * np.exp(shift[2:])])
                guess = category if rng.random() < 0.6 else int(rng.choice(ids))
                found.append((image, guess, near.tolist(), rng.random()))
    return write(folder, objects, found)


# What MMDetection's tools/analysis_tools/coco_error_analysis.py gives for the random scene, with the objects of other
# categories marked as ignored, as CocoEval.analyze of the COCO API has it, and not as crowds: the mean over the three
# categories with objects, by kind, then all, small, medium, large.
PUBLISHED = [
    [0.0644, 0.0738, 0.1043, 0.0429],
    [0.1791, 0.1654, 0.2495, 0.2533],
    [0.3456, 0.3573, 0.3951, 0.2673],
    [0.3782, 0.3922, 0.4289, 0.2673],
    [0.4514, 0.4803, 0.5054, 0.2954],
    [0.5776, 0.6073, 0.6106, 0.4224],
    [1.0, 1.0, 1.0, 1.0],
]


def test_random_detections_give_the_published_numbers(tmp_path):
    annotations, results = random_scene(tmp_path)
    truth = objects_of(annotations)
    curves = error_curves(truth, detections(truth, results))
    np.testing.assert_allclose(curves.areas(curves.groups()["all", "all"]), PUBLISHED, atol=5e-5)
    assert np.isnan(curves.precision[:, :, 3]).all()  # no cup anywhere: in no mean


def test_the_command_prints_draws_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = [(1, 1, EXACT), (2, 3, EXACT)]
    write(tmp_path, objects, [(1, 1, EXACT, 0.9), (2, 3, LOOSE, 0.9)], "one")
    write(tmp_path, objects, [], "none")
    commands.main(["errors", "objects.json", "one.json", "none.json", "--group", "animal", "--output", "fig.png"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["all", "all", "one.json", "0.500", *["1.000"] * 6] in lines
    assert ["all", "all", "none.json", *["0.000"] * 6, "1.000"] in lines
    assert ["supercategory", "vehicle", "all", "one.json", *"-" * 7] in lines
    assert (tmp_path / "fig.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "fig.csv").open()))
    assert len(rows) == 2 * 4 * (1 + 2 + len(CATEGORIES))
    dog = next(row for row in rows if (row["results"], row["group"], row["size"]) == ("one.json", "dog", "all"))
    assert dog["C75"] == "0.000000" and dog["C50"] == "1.000000"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "expected a COCO result file, a list of detections, got a dict"),
        ("[{]", "could not read it"),
        ('[{"image_id": 1}]', "detection 0: expected image_id, category_id, bbox and score"),
        ('[{"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "expected an image_id of the"),
        ('[{"image_id": true, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "expected an image_id of the"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, NaN, 1], "score": 1}]', "four finite numbers"),
    ],
)
def test_bad_results_are_told_in_one_line(tmp_path, content, told):
    annotations, results = write(tmp_path, [(1, 1, EXACT)], [])
    results.write_text(content)
    with pytest.raises(SystemExit, match=told):
        commands.main(["errors", str(annotations), str(results)])


def test_bad_arguments(tmp_path):
    annotations, results = write(tmp_path, [(1, 1, EXACT)], [])
    with pytest.raises(SystemExit, match="got 'animals'; did you mean animal"):
        commands.main(["errors", str(annotations), str(results), "--group", "animals"])
    with pytest.raises(SystemExit, match="found no file there"):
        commands.main(["errors", str(annotations), str(tmp_path / "other.json")])
