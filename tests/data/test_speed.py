"""The benchmark of loading: both sides do the same work on the same images."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from deim.data.augment.pipeline import Augmentation
from deim.data.dataset import DetectionDataset, InputFormat
from deim.data.formats.coco import CocoSplit
from deim.data.speed import Batches, make_photographs, plain_ways, stages_of, time_in_turns, whole_way
from deim.errors import DataError

FORM = InputFormat(size_hw=(64, 96), resize="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = Augmentation(horizontal_flip=0.0, vertical_flip=0.0, photometric=0.0, start_epoch=0, stop_epoch=9)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    return make_photographs(tmp_path_factory.mktemp("photographs"), 3, size_hw=(135, 165))


def own_dataset(split: CocoSplit, augmentation: Augmentation = PLAIN) -> DetectionDataset:
    classes = {category_id: index for index, category_id in enumerate(split.category_ids)}
    return DetectionDataset(split, classes, input_format=FORM, augmentation=augmentation)


def test_photographs_have_the_size_and_boxes(split: CocoSplit) -> None:
    assert split.sizes_hw.tolist() == [[135, 165]] * 3
    assert split.num_empty == 0


def test_steps_go_through_the_images_again_and_again() -> None:
    batches = Batches(3, 2)
    assert [batches.items(step) for step in range(3)] == [
        [(0, 0), (0, 1)],
        [(0, 2), (1, 0)],
        [(1, 1), (1, 2)],
    ]


def test_without_changes_both_give_the_same_inputs(split: CocoSplit) -> None:
    batches = Batches(3, 3)
    ours: Any = whole_way(own_dataset(split), batches)(0)
    for way in plain_ways(split, batches, input_format=FORM, augmentation=PLAIN).values():
        loaded: Any = way(0)
        images, targets = loaded
        # Pillow's own resizing rounds otherwise.
        torch.testing.assert_close(images, ours.images, atol=1.01 / 255 / min(FORM.std), rtol=0)
        for target, own in zip(targets, ours.targets, strict=True):
            assert len(target["boxes"]) == len(own["boxes"])
    stages = stages_of(own_dataset(split), batches)
    assert [stage(0) for stage in stages.values()][:2] == [None, None]
    assert torch.equal(list(stages.values())[2](0).images, ours.images)


def test_each_way_is_timed_in_each_step(split: CocoSplit) -> None:
    seen: list[tuple[str, int]] = []
    ways = {name: lambda step, name=name: seen.append((name, step)) for name in "ab"}
    seconds = time_in_turns(ways, steps=2)
    assert set(seconds) == {"a", "b"}
    assert seen == [("a", 1), ("b", 1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    ("form", "augmentation", "named"),
    [
        (FORM, replace(PLAIN, mosaic=0.5, mix_end_epoch=9, photometric=0.5), "got mosaic"),
        (replace(FORM, resize="letterbox"), PLAIN, "got another input"),
    ],
)
def test_what_has_no_plain_counterpart_is_refused(
    split: CocoSplit, form: InputFormat, augmentation: Augmentation, named: str
) -> None:
    with pytest.raises(DataError, match=named):
        plain_ways(split, Batches(3, 1), input_format=form, augmentation=augmentation)
