"""What is chosen for the gallery and how it is worded; drawings of hard boxes, names and sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deim.inference.operating_points import BestF1Goal, NmsRule
from deim.metrics.choose_thresholds import choose_operating_points
from deim.report.build import ReportInputs
from deim.report.draw import GAP
from deim.report.gallery import SIDE, GalleryEntry, choose_gallery, draw_entry
from deim.report.palette import CORRECT_COLOR, MARK_COLOR, WRONG_COLOR
from tests.metrics.random_results import Split, random_split, split_tables
from tests.report.random_reports import make_provenance

FIRST = [100.0, 100.0, 40.0, 40.0]
NEAR = [104.0, 100.0, 40.0, 40.0]
"""IoU 9/11 with `FIRST`."""
OFF = [120.0, 100.0, 40.0, 40.0]
"""IoU 1/3 with `FIRST`."""
FAR = [300.0, 300.0, 40.0, 40.0]
SCRATCH, INCLUSION = 0, 1
NAMES = ("scratch", "inclusion")

Boxes = list[tuple[int, list[float]]]
ActualValues = list[tuple[int, list[float], float]]


def split_of(truth: Boxes, actual: ActualValues, names: tuple[str, ...] = NAMES) -> Split:
    """One image."""
    return split_tables(
        {
            "images": [{"id": 1, "file_name": "a.png"}],
            "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
            "annotations": [{"image_id": 1, "category_id": label, "bbox": box} for label, box in truth],
        },
        [{"image_id": 1, "category_id": label, "bbox": box, "score": score} for label, box, score in actual],
    )


def inputs_of(split: Split, threshold: float = 0.4, nms: NmsRule | None = None) -> ReportInputs:
    points = choose_operating_points(
        *split,
        goal=BestF1Goal(),
        rules=[NmsRule()],
        split_name="val",
        annotations_sha256="",
        default_threshold=threshold,
        max_escape_rate=0.01,
    )
    classes = tuple(replace(entry, threshold=threshold) for entry in points.classes)
    points = replace(points, classes=classes, nms=nms or NmsRule())
    return ReportInputs(
        ground_truth=split.truth,
        detections=split.detections,
        points=points,
        provenance=make_provenance(Path()),
        num_resamples=0,
    )


def gallery_of(split: Split, threshold: float = 0.4) -> list[GalleryEntry]:
    return choose_gallery(inputs_of(split, threshold))


def drawing_of(entry: GalleryEntry, split: Split, image: Image.Image) -> Image.Image:
    return draw_entry(entry, image, inputs_of(split))


def gray(width: int = 400, height: int = 400, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (width, height), (120, 120, 120)).convert(mode)


def count(photo_image: Image.Image, color: tuple[int, int, int], left: int, right: int) -> int:
    return int((np.asarray(photo_image)[:, left:right] == color).all(axis=-1).sum())


def captions(truth: Boxes, actual: ActualValues) -> list[str]:
    return [entry.caption for entry in gallery_of(split_of(truth, actual)) if entry.kind != "correct"]


@pytest.mark.parametrize(
    ("truth", "actual", "expected"),
    [
        ([(SCRATCH, FIRST)], [], ["scratch missed: no detection of it at any score"]),
        (
            [(SCRATCH, FIRST)],
            [(SCRATCH, NEAR, 0.12)],
            ["scratch missed: best score 0.12, threshold 0.40"],
        ),
        (
            [(SCRATCH, FIRST)],
            [(SCRATCH, NEAR, 0.3991)],
            ["scratch missed: best score 0.3991, threshold 0.4000"],
        ),
        (
            [(SCRATCH, FIRST), (SCRATCH, NEAR)],
            [(SCRATCH, NEAR, 0.8)],
            ["scratch missed: best score 0.80 hits another box"],
        ),
        ([], [(SCRATCH, FAR, 0.87)], ["scratch at 0.87 where there is none"]),
        (
            [(INCLUSION, FIRST)],
            [(SCRATCH, NEAR, 0.87)],
            [
                "scratch at 0.87 on a box of inclusion",
                "inclusion missed: no detection of it at any score; predicted as scratch at 0.87",
            ],
        ),
        (
            [(SCRATCH, FIRST)],
            [(SCRATCH, OFF, 0.6), (SCRATCH, NEAR, 0.2)],
            [
                "scratch missed: best score 0.20, threshold 0.40;"
                " the box at 0.60 overlaps it too little (IoU 0.33)",
                "scratch at 0.60 overlaps the box of scratch too little (IoU 0.33)",
            ],
        ),
        (
            [(INCLUSION, FIRST)],
            [(SCRATCH, OFF, 0.6), (INCLUSION, FIRST, 0.5)],
            ["scratch at 0.60 beside a box of inclusion (IoU 0.33)"],
        ),
        (
            [(SCRATCH, FIRST)],
            [(SCRATCH, FIRST, 0.9), (SCRATCH, NEAR, 0.6)],
            ["scratch at 0.60 on a box of scratch that a higher score hits"],
        ),
    ],
)
def test_captions(truth: Boxes, actual: ActualValues, expected: list[str]) -> None:
    assert captions(truth, actual) == expected


def test_a_detection_that_nms_removes_is_named() -> None:
    split = split_of([(SCRATCH, FIRST)], [(SCRATCH, FIRST, 0.8), (INCLUSION, FIRST, 0.9)])
    miss, _ = choose_gallery(inputs_of(split, nms=NmsRule(mode="agnostic", iou_threshold=0.5)))
    assert miss.caption.startswith("scratch missed: best score 0.80 was removed by NMS")


def test_the_score_of_a_miss_is_the_best_raw_one_of_its_class() -> None:
    actual = [(SCRATCH, NEAR, 0.1), (SCRATCH, FIRST, 0.2), (INCLUSION, NEAR, 0.3), (INCLUSION, OFF, 0.9)]
    miss, alarm = gallery_of(split_of([(SCRATCH, FIRST)], actual))
    assert (miss.kind, miss.label, miss.score) == ("miss", SCRATCH, 0.2)
    assert miss.box_xywh == tuple(FIRST)
    assert (alarm.kind, alarm.label, alarm.score) == ("false alarm", INCLUSION, 0.9)


def test_worst_misses_come_first_then_the_larger_then_the_order_of_the_file() -> None:
    truth = [(SCRATCH, [50.0 * k, 0.0, 10.0 + (k == 3), 10.0]) for k in range(4)]
    actual = [(SCRATCH, truth[0][1], 0.3), (SCRATCH, truth[1][1], 0.1)]
    entries = gallery_of(split_of(truth, actual))
    assert [entry.position for entry in entries] == [3, 2, 1, 0]
    assert [entry.score for entry in entries] == [None, None, 0.1, 0.3]


@pytest.mark.parametrize("seed", range(3))
def test_entries_are_misses_and_false_detections_of_every_class(seed: int) -> None:
    split = split_tables(*random_split(seed, decimals=6))
    entries, overlaps = gallery_of(split), inputs_of(split).kept
    kept, assignment = overlaps.detections, overlaps.assignment
    is_fn = ~split.truth.is_crowd
    is_fn[assignment.truth[0, assignment.is_tp[0]]] = False
    for label in range(split.truth.num_classes):
        misses = [entry for entry in entries if entry.label == label and entry.kind == "miss"]
        alarms = [entry for entry in entries if entry.label == label and entry.kind == "false alarm"]
        assert len(misses) == min(4, int(is_fn[split.truth.label == label].sum()))
        false_rows = np.flatnonzero(assignment.is_fp[0] & (kept.label == label))
        assert [entry.score for entry in alarms] == sorted(kept.score[false_rows])[::-1][:4]
        for entry in misses:
            assert is_fn[entry.position]
            assert split.truth.class_names[label] in entry.caption
        for entry in alarms:
            assert assignment.is_fp[0, entry.position]
    absent, never, crowd = 3, 4, 5
    class_kinds = {label: {e.kind for e in entries if e.label == label} for label in range(7)}
    assert class_kinds[never] == {"miss"}
    assert "miss" not in class_kinds[absent] | class_kinds[crowd]


@pytest.mark.parametrize("empty", ["truth", "predictions", "images"])
def test_sets_without_truth_or_detections(empty: str) -> None:
    ground_truth, predictions = random_split(0, empty=empty != "predictions")
    if empty != "truth":
        predictions = []
    if empty == "images":
        ground_truth = ground_truth | {"images": []}
    split = split_tables(ground_truth, predictions)
    entries = gallery_of(split)
    expected = {"truth": {"false alarm"}, "predictions": {"miss"}, "images": set()}
    assert {entry.kind for entry in entries} == expected[empty]
    for entry in entries[:1]:
        assert drawing_of(entry, split, gray()).width == 2 * SIDE + GAP


@pytest.mark.parametrize(
    ("scores", "shown"),
    [([], []), ([0.7], [0.7]), ([0.5, 0.9], [0.9, 0.5]), ([0.5, 0.6, 0.7, 0.8, 0.9], [0.9, 0.7, 0.5])],
)
def test_the_best_the_median_and_the_weakest_correct_detection_stand_beside_the_errors(
    scores: list[float], shown: list[float]
) -> None:
    boxes = [[60.0 * k, 0.0, 40.0, 40.0] for k in range(len(scores))]
    truth = [(INCLUSION, FAR), *((SCRATCH, box) for box in boxes)]
    entries = gallery_of(split_of(truth, [(SCRATCH, *pair) for pair in zip(boxes, scores, strict=True)]))
    correct = [entry for entry in entries if entry.kind == "correct"]
    assert [entry.caption for entry in correct] == [f"scratch found at {s:.2f} (IoU 1.00)" for s in shown]
    assert [entry.kind for entry in entries if entry.label == INCLUSION] == ["miss"]


def test_blue_is_correct_and_orange_is_wrong() -> None:
    split = split_of([(SCRATCH, FIRST), (SCRATCH, FAR)], [(SCRATCH, FIRST, 0.9), (INCLUSION, FAR, 0.7)])
    entries = [entry for entry in gallery_of(split) if entry.kind != "correct"]
    assert [(entry.kind, entry.label) for entry in entries] == [("miss", 0), ("false alarm", 1)]
    for entry in entries:
        drawing = drawing_of(entry, split, gray())
        # Around `FAR` only: the box and the detection there are wrong, those of `FIRST` are out of sight.
        for left in (0, SIDE + GAP):
            assert count(drawing, WRONG_COLOR, left, left + SIDE) > 500
            assert count(drawing, CORRECT_COLOR, left, left + SIDE) == 0
            assert count(drawing, MARK_COLOR, left, left + SIDE) > 500
    whole = split_of([(SCRATCH, FIRST), (SCRATCH, [0, 0, 390, 390])], [(SCRATCH, FIRST, 0.9)])
    drawing = drawing_of(gallery_of(whole)[0], whole, gray())
    for left in (0, SIDE + GAP):
        assert count(drawing, CORRECT_COLOR, left, left + SIDE) > 300
    assert count(drawing, WRONG_COLOR, 0, SIDE) > 500
    assert count(drawing, WRONG_COLOR, SIDE + GAP, 2 * SIDE + GAP) == 0


@pytest.mark.parametrize(
    ("box", "size", "mode"),
    [
        ([0.0, 0.0, 400.0, 400.0], (400, 400), "RGB"),
        ([0.0, 0.0, 0.5, 0.5], (400, 400), "L"),
        ([399.0, 399.0, 1.0, 1.0], (400, 400), "RGBA"),
        ([390.0, 10.0, 40.0, 40.0], (400, 400), "P"),
        ([-30.0, -30.0, 20.0, 20.0], (400, 400), "1"),
        ([10.0, 10.0, 3000.0, 4.0], (4000, 20), "RGB"),
        ([1.0, 1.0, 2.0, 3000.0], (6, 4000), "RGB"),
        ([0.0, 0.0, 1.0, 1.0], (1, 1), "RGB"),
    ],
)
def test_drawings_of_hard_boxes_have_the_same_size_and_a_mark(
    box: list[float], size: tuple[int, int], mode: str
) -> None:
    split = split_of([(SCRATCH, box)], [(INCLUSION, box, 0.9)])
    entries = gallery_of(split)
    assert len(entries) == 2
    for entry in entries:
        image = gray(*size, mode)
        before = image.copy()
        drawing = drawing_of(entry, split, image)
        assert drawing.width == 2 * SIDE + GAP
        assert image == before
        for left in (0, SIDE + GAP):
            assert count(drawing, MARK_COLOR, left, left + SIDE) > 3


@pytest.mark.parametrize(
    "names",
    [
        ("scratch",),
        ("RAYÓN", "DEFORMACIÓN"),
        ("凹坑", "裂纹"),
        ("", "x"),
        ("a very long name of a class " * 5, "another one, just as long, but different " * 5),
        tuple(f"class of defects number {k}" for k in range(30)),
    ],
)
def test_any_names(names: tuple[str, ...]) -> None:
    split = split_of([(0, FIRST)], [(len(names) - 1, FAR, 0.9)], names)
    for entry in gallery_of(split):
        assert drawing_of(entry, split, gray()).width == 2 * SIDE + GAP


def test_many_boxes_on_one_spot_get_frames_but_few_tags() -> None:
    boxes = [[100.0 + 2 * k, 100.0 + 2 * k, 40.0, 40.0] for k in range(60)]
    split = split_of([(SCRATCH, box) for box in boxes], [(INCLUSION, box, 0.9) for box in boxes])
    drawing = drawing_of(gallery_of(split)[0], split, gray())
    assert count(drawing, WRONG_COLOR, 0, SIDE) > 500
