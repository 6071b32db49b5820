"""What is chosen for the gallery and how it is worded; pictures of hard boxes, names and sizes."""

from typing import Any

import numpy as np
import pytest
from deim.report.worst_errors import GalleryEntry, choose_gallery
from PIL import Image, ImageFont

from deim.inference.detection_table import SplitResults, split_results
from deim.metrics.assignment import assign, compute_overlaps
from deim.metrics.tide import ErrorKinds, classify_errors
from deim.report.draw import fit_text, shown_names
from deim.report.gallery import (
    ENTRY_HEIGHT,
    ENTRY_WIDTH,
    GAP,
    MARK_COLOR,
    PICTURE_SIDE,
    RIGHT_COLOR,
    WRONG_COLOR,
    _names_within,
    _shown_caption,
    draw_entry,
)
from tests.metrics.random_results import random_split

FIRST = [100.0, 100.0, 40.0, 40.0]
NEAR = [104.0, 100.0, 40.0, 40.0]
"""IoU 9/11 with `FIRST`."""
OFF = [120.0, 100.0, 40.0, 40.0]
"""IoU 1/3 with `FIRST`."""
FAR = [300.0, 300.0, 40.0, 40.0]
SCRATCH, INCLUSION = 0, 1
NAMES = ("scratch", "inclusion")

Boxes = list[tuple[int, list[float]]]
Founds = list[tuple[int, list[float], float]]


def split_of(truth: Boxes, found: Founds, names: tuple[str, ...] = NAMES) -> SplitResults:
    """One image."""
    return split_results(
        {
            "images": [{"id": 1, "file_name": "a.png"}],
            "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
            "annotations": [{"image_id": 1, "category_id": label, "bbox": box} for label, box in truth],
        },
        [{"image_id": 1, "category_id": label, "bbox": box, "score": score} for label, box, score in found],
    )


def gallery_of(
    raw: SplitResults, threshold: float = 0.4, **options: Any
) -> tuple[list[GalleryEntry], SplitResults, ErrorKinds]:
    shipped = raw.with_found(raw.found.scores >= threshold)
    overlaps = compute_overlaps(shipped)
    kinds = classify_errors(shipped, overlaps, assign(shipped, overlaps))
    entries = choose_gallery(
        shipped,
        raw,
        kinds=kinds,
        raw_overlaps=compute_overlaps(raw),
        score_thresholds=[threshold] * raw.num_classes,
        **options,
    )
    return entries, shipped, kinds


def picture_of(
    entry: GalleryEntry, shipped: SplitResults, kinds: ErrorKinds, image: Image.Image
) -> Image.Image:
    thresholds = np.full(shipped.num_classes, 0.4)
    return draw_entry(entry, image, shipped=shipped, kinds=kinds, score_thresholds=thresholds)


def gray(width: int = 400, height: int = 400, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (width, height), (120, 120, 120)).convert(mode)


def count(picture: Image.Image, color: tuple[int, int, int], left: int, right: int) -> int:
    return int((np.asarray(picture)[:, left:right] == color).all(axis=-1).sum())


def captions(truth: Boxes, found: Founds) -> list[str]:
    return [entry.caption for entry in gallery_of(split_of(truth, found))[0]]


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
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
            ["scratch missed: best score 0.80 counts for another box"],
        ),
        ([], [(SCRATCH, FAR, 0.87)], ["scratch at 0.87 where there is none"]),
        (
            [(INCLUSION, FIRST)],
            [(SCRATCH, NEAR, 0.87)],
            [
                "scratch at 0.87 where an inclusion is",
                "inclusion missed: no detection of it at any score; taken for scratch at 0.87",
            ],
        ),
        (
            [(SCRATCH, FIRST)],
            [(SCRATCH, OFF, 0.6), (SCRATCH, NEAR, 0.2)],
            [
                "scratch missed: best score 0.20, threshold 0.40;"
                " the box at 0.60 overlaps it too little (IoU 0.33)",
                "scratch at 0.60 overlaps the box of a scratch too little (IoU 0.33)",
            ],
        ),
        (
            [(INCLUSION, FIRST)],
            [(SCRATCH, OFF, 0.6), (INCLUSION, FIRST, 0.5)],
            ["scratch at 0.60 beside an inclusion (IoU 0.33)"],
        ),
        (
            [(SCRATCH, FIRST)],
            [(SCRATCH, FIRST, 0.9), (SCRATCH, NEAR, 0.6)],
            ["scratch at 0.60 where a higher score has found the scratch already"],
        ),
    ],
)
def test_captions(truth: Boxes, found: Founds, expected: list[str]) -> None:
    assert captions(truth, found) == expected


def test_a_suppressed_detection_is_said_to_be_suppressed() -> None:
    raw = split_of([(SCRATCH, FIRST)], [(SCRATCH, FIRST, 0.9)])
    shipped = raw.with_found(np.zeros(1, dtype=np.bool_))
    overlaps = compute_overlaps(shipped)
    (entry,) = choose_gallery(
        shipped,
        raw,
        kinds=classify_errors(shipped, overlaps, assign(shipped, overlaps)),
        raw_overlaps=compute_overlaps(raw),
        score_thresholds=[0.4, 0.4],
    )
    assert entry.caption == "scratch missed: best score 0.90 was suppressed as a duplicate"


def test_class_scores_are_the_best_raw_ones_on_the_box() -> None:
    found = [(SCRATCH, NEAR, 0.1), (SCRATCH, FIRST, 0.2), (INCLUSION, NEAR, 0.3), (INCLUSION, OFF, 0.9)]
    miss, alarm = gallery_of(split_of([(SCRATCH, FIRST)], found))[0]
    assert (miss.kind, miss.label, miss.score, miss.right_label) == ("miss", SCRATCH, 0.2, SCRATCH)
    assert miss.class_scores == (0.2, 0.3)
    assert miss.box_xywh == tuple(FIRST)
    assert (alarm.kind, alarm.label, alarm.score) == ("false alarm", INCLUSION, 0.9)
    assert alarm.right_label == SCRATCH
    assert alarm.class_scores == (0.0, 0.9)


def test_worst_misses_come_first_then_the_larger_then_the_order_of_the_file() -> None:
    truth = [(SCRATCH, [50.0 * k, 0.0, 10.0 + (k == 3), 10.0]) for k in range(6)]
    found = [(SCRATCH, truth[0][1], 0.3), (SCRATCH, truth[1][1], 0.1), (SCRATCH, truth[2][1], 0.9)]
    entries = gallery_of(split_of(truth, found), per_class=10)[0]
    assert [entry.position for entry in entries] == [3, 4, 5, 1, 0]
    assert [entry.score for entry in entries] == [None, None, None, 0.1, 0.3]
    assert len(gallery_of(split_of(truth, found), per_class=2)[0]) == 2


@pytest.mark.parametrize("seed", range(3))
def test_entries_are_misses_and_false_detections_of_every_class(seed: int) -> None:
    raw = split_results(*random_split(seed, decimals=6))
    entries, shipped, _ = gallery_of(raw)
    overlaps = compute_overlaps(shipped)
    assignment = assign(shipped, overlaps)
    is_missed = ~shipped.truth.is_crowd
    is_missed[assignment.truth[0, assignment.is_hit[0]]] = False
    for label in range(raw.num_classes):
        misses = [entry for entry in entries if entry.label == label and entry.kind == "miss"]
        alarms = [entry for entry in entries if entry.label == label and entry.kind == "false alarm"]
        assert len(misses) == min(4, int(is_missed[shipped.truth.label == label].sum()))
        own_false = np.flatnonzero(assignment.is_false[0] & (shipped.found.label == label))
        assert [entry.score for entry in alarms] == sorted(shipped.found.scores[own_false])[::-1][:4]
        for entry in misses:
            assert is_missed[entry.position]
            assert raw.class_names[label] in entry.caption
            assert (entry.score or 0.0) == entry.class_scores[label]
        for entry in alarms:
            assert assignment.is_false[0, entry.position]
            assert entry.class_scores[label] >= entry.score
    absent, never, crowd = 3, 4, 5
    kinds_of_class = {label: {e.kind for e in entries if e.label == label} for label in range(7)}
    assert kinds_of_class[never] == {"miss"}
    assert "miss" not in kinds_of_class[absent] | kinds_of_class[crowd]
    assert entries == gallery_of(raw)[0]


@pytest.mark.parametrize("empty", ["truth", "predictions", "images"])
def test_sets_without_truth_or_detections(empty: str) -> None:
    ground_truth, predictions = random_split(0, empty=empty != "predictions")
    if empty != "truth":
        predictions = []
    if empty == "images":
        ground_truth = ground_truth | {"images": []}
    entries, shipped, kinds = gallery_of(split_results(ground_truth, predictions))
    expected = {"truth": {"false alarm"}, "predictions": {"miss"}, "images": set()}
    assert {entry.kind for entry in entries} == expected[empty]
    for entry in entries[:1]:
        assert picture_of(entry, shipped, kinds, gray()).size == (ENTRY_WIDTH, ENTRY_HEIGHT)


def test_blue_is_right_and_red_is_wrong() -> None:
    raw = split_of([(SCRATCH, FIRST), (SCRATCH, FAR)], [(SCRATCH, FIRST, 0.9), (INCLUSION, FAR, 0.7)])
    entries, shipped, kinds = gallery_of(raw)
    assert [(entry.kind, entry.label) for entry in entries] == [("miss", 0), ("false alarm", 1)]
    middle, right = PICTURE_SIDE + GAP, 2 * (PICTURE_SIDE + GAP)
    for entry in entries:
        picture = picture_of(entry, shipped, kinds, gray())
        # Around `FAR` only: the box and the detection there are wrong, those of `FIRST` are out of sight.
        for left in (0, middle):
            assert count(picture, WRONG_COLOR, left, left + PICTURE_SIDE) > 500
            assert count(picture, RIGHT_COLOR, left, left + PICTURE_SIDE) == 0
            assert count(picture, MARK_COLOR, left, left + PICTURE_SIDE) > 500
        # `inclusion` scores 0.70, wrongly; `scratch` 0.
        assert count(picture, WRONG_COLOR, right, ENTRY_WIDTH) > 1000
        assert count(picture, RIGHT_COLOR, right, ENTRY_WIDTH) == 0
    whole = gallery_of(split_of([(SCRATCH, FIRST), (SCRATCH, [0, 0, 390, 390])], [(SCRATCH, FIRST, 0.9)]))
    picture = picture_of(whole[0][0], *whole[1:], gray())
    for left in (0, middle):
        assert count(picture, RIGHT_COLOR, left, left + PICTURE_SIDE) > 300
    assert count(picture, WRONG_COLOR, 0, PICTURE_SIDE) > 500
    assert count(picture, WRONG_COLOR, middle, middle + PICTURE_SIDE) == 0


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
def test_pictures_of_hard_boxes_have_the_same_size_and_a_mark(
    box: list[float], size: tuple[int, int], mode: str
) -> None:
    entries, shipped, kinds = gallery_of(split_of([(SCRATCH, box)], [(INCLUSION, box, 0.9)]))
    assert len(entries) == 2
    for entry in entries:
        image = gray(*size, mode)
        before = image.copy()
        picture = picture_of(entry, shipped, kinds, image)
        assert picture.size == (ENTRY_WIDTH, ENTRY_HEIGHT)
        assert image == before
        for left in (0, PICTURE_SIDE + GAP):
            assert count(picture, MARK_COLOR, left, left + PICTURE_SIDE) > 3


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
    raw = split_of([(0, FIRST)], [(len(names) - 1, FAR, 0.9)], names)
    entries, shipped, kinds = gallery_of(raw)
    for entry in entries:
        assert picture_of(entry, shipped, kinds, gray()).size == (ENTRY_WIDTH, ENTRY_HEIGHT)


def test_words_that_all_long_names_share_are_left_out_of_pictures() -> None:
    short = split_of([(0, FIRST)], [(1, FAR, 0.9)], ("pit", "scratch"))
    long = split_of(
        [(0, FIRST)],
        [(1, FAR, 0.9)],
        ("surface_line_3_pit_seen_from_above", "surface_line_3_scratch_seen_from_above"),
    )
    pictures = []
    for raw in (short, long):
        entries, shipped, kinds = gallery_of(raw)
        pictures.append([picture_of(entry, shipped, kinds, gray()) for entry in entries])
    assert entries[0].caption.startswith("surface_line_3_pit_seen_from_above missed")
    assert pictures[0] == pictures[1]


def test_long_names_differ_in_the_caption_and_beside_the_bars() -> None:
    names = ("pit", *(f"dent of the outer wall of vessel {k}" for k in range(19)))
    shown = shown_names(names)
    caption = _shown_caption(f"{names[1]} missed: taken for {names[11]} and pit", names, shown)
    assert caption == f"{shown[1]} missed: taken for {shown[11]} and pit"
    font = ImageFont.load_default(size=12)
    beside = _names_within(names, font, 124)
    assert len(set(beside)) == len(names)
    assert all(fit_text(name, font, 124) == fit_text(name, font, 999) for name in beside)


def test_many_boxes_on_one_spot_get_frames_but_few_tags() -> None:
    boxes = [[100.0 + 2 * k, 100.0 + 2 * k, 40.0, 40.0] for k in range(60)]
    raw = split_of([(SCRATCH, box) for box in boxes], [(INCLUSION, box, 0.9) for box in boxes])
    entries, shipped, kinds = gallery_of(raw)
    picture = picture_of(entries[0], shipped, kinds, gray())
    assert count(picture, WRONG_COLOR, 0, PICTURE_SIDE) > 500


def test_a_threshold_above_every_score_draws_no_mark() -> None:
    raw = split_of([(SCRATCH, FIRST)], [])
    (entry,), shipped, kinds = gallery_of(raw)
    pictures = [
        draw_entry(entry, gray(), shipped=shipped, kinds=kinds, score_thresholds=[threshold, 0.5])
        for threshold in (1.1, 7.0, 0.9)
    ]
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]
