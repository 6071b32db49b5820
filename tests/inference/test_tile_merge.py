"""Tiles are put together again: every object comes back once, and nothing that is not one is joined."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from deim.data.images.tiling import TilesOptions, compute_windows
from deim.inference.tile_merge import merge_by_image, merge_tiles
from deim.structures import Detections, Placement

Box = tuple[float, float, float, float]
Actual = tuple[int, Box, float, int]
"""Number of the tile, box in pixels of the image, score, label."""


def placements_of(size_hw: tuple[int, int], size: int, overlap: float) -> list[Placement]:
    windows = compute_windows(size_hw, TilesOptions(size=size, overlap=overlap, keep_fraction=0.5)).tolist()
    return [
        Placement(
            orig_size_hw=size_hw,
            span_hw=(bottom - top, right - left),
            shift_yx=(top, left),
            tile_xyxy=(left, top, right, bottom),
        )
        for left, top, right, bottom in windows
    ]


def detections_of(rows: Sequence[tuple[Box, float, int]]) -> Detections:
    """Detections of a tile, sorted as a detector's are; queries are numbered in that order."""
    ordered = sorted(rows, key=lambda row: -row[1])
    return Detections(
        boxes_xyxy=torch.tensor([box for box, _, _ in ordered]).reshape(-1, 4),
        scores=torch.tensor([score for _, score, _ in ordered]),
        labels=torch.tensor([label for _, _, label in ordered], dtype=torch.int64),
        queries=torch.arange(len(ordered)),
    )


def merge(placements: list[Placement], actual: Sequence[Actual], *, max_detections: int = 300) -> Detections:
    by_tile = [
        detections_of([(box, score, label) for number, box, score, label in actual if number == tile])
        for tile in range(len(placements))
    ]
    return merge_tiles(by_tile, placements, max_detections=max_detections)


def boxes_of(merged: Detections) -> list[list[float]]:
    return merged.boxes_xyxy.tolist()


def seen(placements: list[Placement], box: Box, score: float = 0.5, label: int = 0) -> list[Actual]:
    """What a perfect detector gives of one object; later tiles are a little less sure."""
    actual = []
    for number, placement in enumerate(placements):
        left, top, right, bottom = placement.tile_xyxy
        part = (max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom))
        if part[0] < part[2] and part[1] < part[3]:
            actual.append((number, part, score - 0.01 * number, label))
    return actual


ROW = placements_of((100, 260), 100, 0.2)
"""Windows from 0, 80 and 160 along x."""
TOUCHING = placements_of((100, 300), 100, 0.0)
GRID = placements_of((180, 180), 100, 0.2)


def test_the_windows_are_what_the_cases_below_think() -> None:
    assert [placement.tile_xyxy[0] for placement in ROW] == [0, 80, 160]
    assert [placement.tile_xyxy[0] for placement in TOUCHING] == [0, 100, 200]
    assert [placement.tile_xyxy[:2] for placement in GRID] == [(0, 0), (80, 0), (0, 80), (80, 80)]


def test_an_image_of_one_tile_passes_through_untouched() -> None:
    actual = detections_of([((1.0, 2.0, 30.0, 40.0), 0.5, 1), ((1.0, 2.0, 30.0, 41.0), 0.5, 1)])
    whole = Placement(orig_size_hw=(50, 60), span_hw=(50.0, 60.0), shift_yx=(0.0, 0.0))
    assert merge_tiles([actual], [whole], max_detections=1) is actual


def test_tiles_without_detections_give_none() -> None:
    merged = merge(ROW, [])
    assert merged.boxes_xyxy.shape == (0, 4)
    assert merged.scores.shape == merged.labels.shape == merged.queries.shape == (0,)


@pytest.mark.parametrize("placements", [ROW, TOUCHING], ids=["overlapping", "touching"])
def test_a_scratch_across_all_tiles_comes_back_once(placements: list[Placement]) -> None:
    merged = merge(placements, seen(placements, (10, 40, 250, 44), score=0.8))
    assert boxes_of(merged) == [[10, 40, 250, 44]]
    assert merged.scores.tolist() == [pytest.approx(0.8)]


@pytest.mark.parametrize("overlap", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("rise", [20, 90, 180])
def test_an_oblique_scratch_comes_back_once(rise: float, overlap: float) -> None:
    placements = placements_of((200, 620), 200, overlap)
    actual: list[Actual] = []
    for number, placement in enumerate(placements):
        assert placement.tile_xyxy is not None
        left, top, right, bottom = placement.tile_xyxy
        # Where the line from (10, 5) to (600, 5 + rise) is within the tile.
        start, end = max(left, 10), min(right, 600)
        first, last = (5 + rise * (x - 10) / 590 for x in (start, end))
        actual.append((number, (start, max(first - 2, top), end, min(last + 2, bottom)), 0.5, 0))
    assert boxes_of(merge(placements, actual)) == [[10, 3, 600, pytest.approx(7 + rise)]]


def test_an_object_in_the_corner_of_four_tiles_comes_back_once() -> None:
    for box in ((85, 86, 96, 97), (70, 60, 120, 130), (0, 0, 180, 180), (90, 90, 91, 91)):
        actual = seen(GRID, box)
        assert len(actual) == 4
        assert boxes_of(merge(GRID, actual)) == [list(box)]
    touching = placements_of((200, 200), 100, 0.0)
    assert boxes_of(merge(touching, seen(touching, (80, 90, 130, 115)))) == [[80, 90, 130, 115]]


def test_what_a_tile_shows_whole_gives_the_box() -> None:
    # The first tile shows all of it; the second an end of it, not quite at the same place.
    merged = merge(ROW, [(0, (60, 20, 90, 50), 0.6, 0), (1, (80, 21, 91, 49), 0.9, 0)])
    assert boxes_of(merged) == [[60, 20, 90, 50]]
    assert merged.scores.tolist() == [pytest.approx(0.9)]


def test_the_end_of_a_round_object_belongs_to_it_though_it_is_smaller() -> None:
    # A disc: the second tile shows a segment of it, which is less high than the disc.
    assert boxes_of(merge(ROW, [(0, (30, 10, 92, 70), 0.9, 0), (1, (80, 28, 92, 52), 0.5, 0)])) == [
        [30, 10, 92, 70]
    ]
    assert boxes_of(merge(TOUCHING, [(0, (50, 10, 100, 70), 0.9, 0), (1, (100, 28, 108, 52), 0.5, 0)])) == [
        [50, 10, 108, 70]
    ]


def test_a_piece_that_ends_short_of_the_border_does_not_hide_the_rest() -> None:
    actual = [(0, (10, 40, 95, 44), 0.9, 0), *seen(ROW, (10, 40, 250, 44))[1:]]
    assert boxes_of(merge(ROW, actual)) == [[10, 40, 250, 44]]


def test_neighbors_in_the_overlap_stay_two() -> None:
    item, other = (82, 20, 90, 30), (91, 20, 99, 30)
    actual = [*seen(ROW, item, score=0.9), *seen(ROW, other, score=0.7)]
    assert boxes_of(merge(ROW, actual)) == [list(item), list(other)]
    # So near to each other that either could be taken for the other: the better agreement counts.
    other = (84, 20, 92, 30)
    actual = [*seen(ROW, item, score=0.9), *seen(ROW, other, score=0.7)]
    assert boxes_of(merge(ROW, actual)) == [list(item), list(other)]


def test_neighbors_on_both_sides_of_a_border_stay_two() -> None:
    actual = [*seen(TOUCHING, (80, 20, 100, 30), score=0.9), *seen(TOUCHING, (100, 29, 120, 60), score=0.7)]
    assert len(boxes_of(merge(TOUCHING, actual))) == 2


def test_detections_of_one_tile_are_never_joined() -> None:
    # The same box three times, as raw detections are; the other tile has it once.
    actual = [(0, (82, 20, 98, 40), score, 0) for score in (0.9, 0.5, 0.1)]
    assert len(merge(ROW, actual).scores) == 3
    merged = merge(ROW, [*actual, (1, (82, 20, 98, 40), 0.8, 0)])
    assert merged.scores.tolist() == pytest.approx([0.9, 0.5, 0.1])


def test_other_classes_are_other_objects() -> None:
    actual = [(0, (82, 20, 98, 40), 0.9, 0), (1, (82, 20, 98, 40), 0.8, 1)]
    assert merge(ROW, actual).labels.tolist() == [0, 1]


def test_a_weak_detection_joins_but_does_not_shape_the_box() -> None:
    actual = [(0, (70, 20, 96, 40), 0.9, 0), (1, (80, 20, 150, 40), 0.05, 0)]
    assert boxes_of(merge(ROW, actual)) == [[70, 20, 96, 40]]


def test_no_more_are_kept_than_asked_for_and_queries_are_numbered_through() -> None:
    actual = [
        (tile, (80 * tile + 30, 10 * n, 80 * tile + 40, 10 * n + 5), 0.1 * n + 0.01 * tile, 0)
        for tile in range(3)
        for n in range(9)
    ]
    merged = merge(ROW, actual, max_detections=4)
    assert merged.scores.tolist() == pytest.approx([0.82, 0.81, 0.8, 0.72])
    assert merged.queries.tolist() == [18, 9, 0, 19]


def test_of_equal_scores_the_earlier_tile_comes_first() -> None:
    actual = [(tile, (80 * tile + 30, 10, 80 * tile + 40, 20), 0.5, 0) for tile in (2, 0, 1)]
    assert [box[0] for box in boxes_of(merge(ROW, actual))] == [30, 110, 190]


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.8])
def test_planted_objects_come_back_exactly(overlap: float) -> None:
    for seed in range(12 if overlap < 0.5 else 3):
        rng = np.random.default_rng([seed, round(100 * overlap)])
        size = int(rng.integers(100, 160))
        height, width = (int(side) for side in rng.integers(40, 420, size=2))
        placements = placements_of((height, width), size, overlap)
        planted = plant(rng, (height, width), number=14)
        actual = [
            (tile, part, float(rng.uniform(0.3, 0.9)), label)
            for box, label in planted
            for tile, part, _, label in (
                seen(placements, box, label=label) if len(placements) > 1 else [(0, box, 1.0, label)]
            )
        ]
        merged = merge(placements, actual)
        again = sorted(zip(map(tuple, boxes_of(merged)), merged.labels.tolist(), strict=True))
        assert again == sorted(planted), (seed, size, height, width)
        assert (merged.scores[:-1] >= merged.scores[1:]).all()
        best = max((row[2] for row in actual), default=None)
        assert best is None or float(merged.scores[0]) == pytest.approx(best)


def plant(rng: np.random.Generator, size_hw: tuple[int, int], *, number: int) -> list[tuple[Box, int]]:
    """Objects at whole pixels; those of a class are farther apart than two borders are reached from."""
    planted: list[tuple[Box, int]] = []
    for _ in range(number):
        sides = np.minimum(np.exp(rng.uniform(0, 5.5, size=2)).astype(int) + 1, size_hw)
        top, left = (int(rng.integers(0, size_hw[axis] - sides[axis] + 1)) for axis in (0, 1))
        box = (float(left), float(top), float(left + sides[1]), float(top + sides[0]))
        label = int(rng.integers(3))
        if all(label != other or gap(box, there) > 4 for there, other in planted):
            planted.append((box, label))
    return planted


def gap(item: Box, other: Box) -> float:
    """Distance of two boxes along the axis on which they are farther apart."""
    return max(max(item[axis] - other[axis + 2], other[axis] - item[axis + 2]) for axis in (0, 1))


def test_images_are_complete_with_the_first_tile_of_the_next() -> None:
    parts = [detections_of([(row[1], row[2], 0)]) for row in seen(ROW, (10, 40, 250, 44))]
    whole = Placement(orig_size_hw=(50, 60), span_hw=(50.0, 60.0), shift_yx=(0.0, 0.0))
    other = detections_of([((1.0, 2.0, 3.0, 4.0), 0.5, 0)])
    inputs = [(7, place, part) for place, part in zip(ROW, parts, strict=True)]
    (image_id, merged), last = merge_by_image([*inputs, (3, whole, other)], max_detections=5)
    assert (image_id, boxes_of(merged)) == (7, [[10, 40, 250, 44]])
    assert last == (3, other)
    assert list(merge_by_image([], max_detections=5)) == []
