"""The COCO numbers against pycocotools, and the cases where evaluators usually fall over."""

import contextlib
import copy
import io
import logging
from dataclasses import asdict, fields

import numpy as np
import pytest

from deim.errors import DataError
from deim.metrics.coco import ClassMetrics, CocoSummary, worst_class
from tests.metrics.random_results import coco_metrics

pycocotools_coco = pytest.importorskip("pycocotools.coco")
pycocotools_cocoeval = pytest.importorskip("pycocotools.cocoeval")

TOLERANCE = 1e-6
SUMMARY_NAMES = [field.name for field in fields(CocoSummary)]
CLASS_VALUES = ["ap", "ap50", "ap75", "ar100", "ap_small", "ap_medium", "ap_large"]
# Not in ascending order: the report must follow the file, the evaluator sorts.
CATEGORIES = [
    {"id": 90, "name": "scratch"},
    {"id": 3, "name": "pit"},
    {"id": 7, "name": "crack"},
    {"id": 12, "name": "absent"},
    {"id": 40, "name": "never predicted"},
    {"id": 41, "name": "only crowd"},
    {"id": 200, "name": "only small"},
]


def make_fixture(seed: int) -> tuple[dict, list[dict]]:
    """24 images of 400 px, every fourth one without boxes, one with more than 100 predictions of a class."""
    generator = np.random.default_rng(seed)
    images = [{"id": 1000 + 7 * i, "width": 400, "height": 400, "file_name": f"{i}.png"} for i in range(24)]
    annotations, predictions = [], []

    def random_box(largest: float = 180.0) -> list[float]:
        width, height = generator.uniform(4, largest, size=2)
        left, top = generator.uniform(0, 400 - width), generator.uniform(0, 400 - height)
        return [float(left), float(top), float(width), float(height)]

    def predict(image_id: int, category_id: int, bbox: list[float]) -> None:
        score = round(float(generator.uniform(0, 1)), 1)  # one decimal: many ties
        predictions.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score})

    for index, image in enumerate(images):
        for _ in range(int(generator.integers(0, 3))):
            predict(image["id"], int(generator.choice([90, 3, 7, 12, 41])), random_box())
        if index % 4 == 3:
            continue
        for _ in range(int(generator.integers(1, 9))):
            category_id = int(generator.choice([90, 3, 7, 40, 41, 200]))
            bbox = random_box(25.0 if category_id == 200 else 180.0)
            crowd = category_id == 41 or (category_id != 200 and generator.uniform() < 0.15)
            annotation = {
                "id": len(annotations),  # begins at 0, as many converters do
                "image_id": image["id"],
                "category_id": category_id,
                "bbox": bbox,
                # A polygon covers less than its box: the area decides the size.
                "area": bbox[2] * bbox[3] * float(generator.uniform(0.5, 1.0)),
            }
            annotations.append(annotation | ({"iscrowd": 1} if crowd else {}))
            if category_id == 40:
                continue
            for _ in range(int(generator.integers(0, 4))):
                jitter = generator.normal(0, 0.06, size=4) * np.array([bbox[2], bbox[3], bbox[2], bbox[3]])
                moved = [float(value) for value in np.maximum(np.array(bbox) + jitter, 1.0)]
                predict(image["id"], category_id, moved)
    for _ in range(130):
        predict(images[0]["id"], 3, random_box())
    generator.shuffle(predictions)
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, predictions


def reference(ground_truth: dict, predictions: list[dict]) -> tuple[list[float], dict[int, dict[str, float]]]:
    """Twelve numbers and the numbers of each category by pycocotools, -1 where it says so."""
    truth = copy.deepcopy(ground_truth)
    for index, annotation in enumerate(truth["annotations"], start=1):
        annotation["id"] = index  # 0 means "unmatched" to pycocotools, too
        annotation.setdefault("iscrowd", 0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = pycocotools_coco.COCO()
        coco.dataset = truth
        coco.createIndex()
        results = coco.loadRes(copy.deepcopy(predictions))
        evaluator = pycocotools_cocoeval.COCOeval(coco, results, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]

    def mean(values: np.ndarray) -> float:
        valid = values[values > -1]
        return float(valid.mean()) if valid.size else -1.0

    every, small, medium, large = (precision[..., area, 2] for area in range(4))
    parts = (every, every[0], every[5], recall[..., 0, 2], small, medium, large)
    classes = {
        category_id: {name: mean(part[..., k]) for name, part in zip(CLASS_VALUES, parts, strict=True)}
        for k, category_id in enumerate(evaluator.params.catIds)
    }
    return [float(value) for value in evaluator.stats], classes


def assert_same(ours: float | None, theirs: float) -> None:
    if theirs == -1:
        assert ours is None
    else:
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


def by_name(classes: tuple[ClassMetrics, ...]) -> dict[str, ClassMetrics]:
    return {entry.name: entry for entry in classes}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_numbers_equal_pycocotools(seed: int) -> None:
    ground_truth, predictions = make_fixture(seed)
    metrics = coco_metrics(ground_truth, predictions)
    stats, classes = reference(ground_truth, predictions)
    for name, theirs in zip(SUMMARY_NAMES, stats, strict=True):
        assert_same(getattr(metrics.summary, name), theirs)
    for entry in metrics.classes:
        for name in CLASS_VALUES:
            assert_same(getattr(entry, name), classes[entry.category_id][name])
    assert 0.05 < metrics.summary.ap < 0.95  # the fixture decides something


def test_fixture_has_the_hard_cases() -> None:
    ground_truth, predictions = make_fixture(0)
    per_image_and_class = {}
    for first in predictions:
        key = first["image_id"], first["category_id"]
        per_image_and_class[key] = per_image_and_class.get(key, 0) + 1
    assert max(per_image_and_class.values()) > 100
    assert len({first["score"] for first in predictions}) < len(predictions) / 5
    assert any(box.get("iscrowd") for box in ground_truth["annotations"])
    assert not any(first["category_id"] == 40 for first in predictions)


def test_every_class_is_listed_in_the_order_of_the_file() -> None:
    ground_truth, predictions = make_fixture(0)
    classes = coco_metrics(ground_truth, predictions).classes
    assert [entry.category_id for entry in classes] == [category["id"] for category in CATEGORIES]
    assert [entry.name for entry in classes] == [category["name"] for category in CATEGORIES]


def test_notes_explain_nulls_and_a_class_never_predicted() -> None:
    ground_truth, predictions = make_fixture(0)
    classes = by_name(coco_metrics(ground_truth, predictions).classes)

    assert classes["absent"].note == "no ground-truth box of this class in the split"
    assert [getattr(classes["absent"], name) for name in CLASS_VALUES] == [None] * len(CLASS_VALUES)
    assert classes["absent"].num_predictions > 0

    assert classes["only crowd"].note == "no ground-truth box of this class in the split"
    assert classes["only crowd"].num_boxes == 0
    assert classes["only crowd"].ap is None

    never = classes["never predicted"]
    assert never.note.startswith("never predicted")
    assert (never.ap, never.ap50, never.ap75, never.ar100) == (0.0, 0.0, 0.0, 0.0)
    assert never.num_predictions == 0

    small = classes["only small"]
    assert small.note == "no medium or large ground-truth box of this class in the split"
    assert small.ap_small is not None
    assert (small.ap_medium, small.ap_large) == (None, None)

    assert classes["crack"].note is None


def test_counts_leave_crowd_regions_out() -> None:
    ground_truth, predictions = make_fixture(1)
    metrics = coco_metrics(ground_truth, predictions)
    boxes = [box for box in ground_truth["annotations"] if not box.get("iscrowd", 0)]
    assert metrics.num_boxes == len(boxes) < len(ground_truth["annotations"])
    assert metrics.num_images == 24
    assert metrics.num_images_without_boxes == 24 - len({box["image_id"] for box in boxes})
    for entry in metrics.classes:
        new = [box for box in boxes if box["category_id"] == entry.category_id]
        assert entry.num_boxes == len(new)
        assert entry.num_images == len({box["image_id"] for box in new})
        assert entry.num_predictions == sum(
            first["category_id"] == entry.category_id for first in predictions
        )


def test_no_predictions_gives_zeros() -> None:
    ground_truth, _ = make_fixture(0)
    metrics = coco_metrics(ground_truth, [])
    assert set(asdict(metrics.summary).values()) == {0.0}
    assert {entry.ap for entry in metrics.classes} == {0.0, None}
    assert all(entry.note for entry in metrics.classes)


@pytest.mark.parametrize("keep", ["images and predictions", "images", "nothing", "crowd", "empty file"])
def test_no_ground_truth_gives_none(keep: str) -> None:
    ground_truth, predictions = make_fixture(0)
    crowd = [box for box in ground_truth["annotations"] if box.get("iscrowd")]
    ground_truth = ground_truth | {"annotations": crowd if keep == "crowd" else []}
    if keep in ("nothing", "empty file"):
        ground_truth["images"] = []
    if keep == "empty file":
        ground_truth["categories"] = []
    metrics = coco_metrics(ground_truth, predictions if keep in ("images and predictions", "crowd") else [])
    assert set(asdict(metrics.summary).values()) == {None}
    assert len(metrics.classes) == (0 if keep == "empty file" else len(CATEGORIES))
    for entry in metrics.classes:
        assert {getattr(entry, name) for name in CLASS_VALUES} == {None}
        assert entry.note.startswith("no ground-truth box of this class in the split")
    assert metrics.num_boxes == 0
    assert metrics.num_images_without_boxes == metrics.num_images
    assert worst_class(metrics) is None


def test_area_is_taken_from_the_box_where_the_file_has_none() -> None:
    ground_truth, predictions = make_fixture(0)
    for box in ground_truth["annotations"]:
        box["area"] = box["bbox"][2] * box["bbox"][3]
    with_area = coco_metrics(ground_truth, predictions)
    for box in ground_truth["annotations"]:
        del box["area"]
    assert coco_metrics(ground_truth, predictions) == with_area


def test_perfect_predictions_score_one_whatever_the_number_types() -> None:
    ground_truth = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 5, "bbox": [10, 10, 50, 50], "ignore": 1}],
        "categories": [{"id": 5, "name": "pit"}],
    }
    prediction = {
        "image_id": np.int64(1),
        "category_id": np.int64(5),
        "bbox": np.array([10, 10, 50, 50], dtype=np.float32),
        "score": np.float32(0.9),
    }
    summary = coco_metrics(ground_truth, [prediction]).summary
    assert (summary.ap, summary.ar1, summary.ap_medium, summary.ap_small) == (1.0, 1.0, 1.0, None)


def test_the_order_of_predictions_without_ties_does_not_matter() -> None:
    ground_truth, predictions = make_fixture(2)
    for index, first in enumerate(predictions):
        first["score"] = (index + 1) / (len(predictions) + 1)
    assert coco_metrics(ground_truth, predictions) == coco_metrics(ground_truth, predictions[::-1])


def test_unknown_ids_and_wild_numbers_are_reported_together() -> None:
    ground_truth, predictions = make_fixture(0)
    predictions += [
        {"image_id": 5, "category_id": 90, "bbox": [0, 0, 5, 5], "score": 0.5},
        {"image_id": 4, "category_id": 1, "bbox": [0, 0, 5, float("nan")], "score": 0.5},
    ]
    with pytest.raises(DataError) as caught:
        coco_metrics(ground_truth, predictions)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(
        "predictions: unknown image_id, got 4, 5. Every image_id must be among the images"
    )
    assert lines[1].startswith("predictions: unknown category_id, got 1. Every category_id must be among the")
    with pytest.raises(
        DataError, match="predictions: bbox or score is not finite, got NaN or infinity in the"
    ):
        coco_metrics(
            ground_truth, [predictions[-1] | {"image_id": predictions[0]["image_id"], "category_id": 90}]
        )


def test_a_long_list_of_unknown_images_is_cut() -> None:
    strangers = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5} for i in range(30)]
    ground_truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "pit"}]}
    with pytest.raises(DataError, match=r"got 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more\."):
        coco_metrics(ground_truth, strangers)


def test_arguments_are_left_as_they_are() -> None:
    ground_truth, predictions = make_fixture(0)
    before = copy.deepcopy((ground_truth, predictions))
    coco_metrics(ground_truth, predictions)
    assert (ground_truth, predictions) == before


@pytest.mark.filterwarnings("error")
def test_nothing_is_printed_logged_or_warned(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for predictions in ([], make_fixture(0)[1]):
            coco_metrics(make_fixture(0)[0], predictions)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_worst_class_skips_classes_without_ground_truth() -> None:
    ground_truth, predictions = make_fixture(0)
    assert worst_class(coco_metrics(ground_truth, predictions)).name == "never predicted"
