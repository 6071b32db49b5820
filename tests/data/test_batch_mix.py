"""Mix-up and copy-blend: what is blended brings its box along."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deim.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deim.data.augment.copy_blend import MIN_AREA, copy_blend
from deim.data.augment.mix_up import mix_up
from deim.data.augment.transform import Sample
from deim.structures import Target
from tests.data.colored import COLORS, colored_sample, some

SIZE_HW = (60, 80)


def as_batch(samples: list[Sample]) -> tuple[Tensor, list[Target]]:
    scale = torch.tensor([SIZE_HW[1], SIZE_HW[0]] * 2)
    targets: list[Target] = [
        {
            "boxes": xyxy_to_cxcywh(sample.boxes_xyxy / scale),
            "labels": sample.labels,
            "area": sample.area,
            "image_id": number,
        }
        for number, sample in enumerate(samples)
    ]
    return torch.stack([sample.image for sample in samples]).float(), targets


def pixels(target: Target) -> Tensor:
    return (cxcywh_to_xyxy(target["boxes"]) * torch.tensor([SIZE_HW[1], SIZE_HW[0]] * 2)).round()


def make_batch() -> tuple[Tensor, list[Target]]:
    return as_batch(
        [
            colored_sample([(10, 10, 30, 25), (50, 5, 60, 50)], SIZE_HW),
            colored_sample([], SIZE_HW),
            colored_sample([(40, 20, 80, 60)], SIZE_HW, first=2),
        ]
    )


def test_images_without_boxes_are_mixed() -> None:
    images, targets = as_batch([colored_sample([], SIZE_HW)] * 2)
    _, mixed = mix_up(images, targets, ratio=0.5)
    assert [target["boxes"].shape for target in mixed] == [(0, 4), (0, 4)]
    blended, actual = copy_blend(images, targets, max_objects=3, ratio=0.5, rng=np.random.default_rng(0))
    assert torch.equal(blended, images)
    assert [target["labels"].shape for target in actual] == [(0,), (0,)]


def test_a_single_image_is_not_mixed_with_itself() -> None:
    images, targets = as_batch([colored_sample([(0, 0, 20, 20)], SIZE_HW)])
    mixed, actual = mix_up(images, targets, ratio=0.45)
    assert torch.equal(mixed, images)
    assert actual[0]["labels"].tolist() == [0]


def test_mix_up_blends_each_image_with_the_one_before() -> None:
    images, targets = make_batch()
    kept = images.clone()
    mixed, actual = mix_up(images, targets, ratio=0.55)
    assert torch.equal(images, kept)
    assert [target["labels"].tolist() for target in actual] == [[0, 1, 2], [0, 1], [2]]
    assert [target["area"].tolist() for target in actual] == [[300, 450, 1600], [300, 450], [1600]]
    assert [target["image_id"] for target in actual] == [0, 1, 2]
    torch.testing.assert_close(mixed[1], 0.55 * images[1] + 0.45 * images[0])
    torch.testing.assert_close(mixed[0], 0.55 * images[0] + 0.45 * images[2])
    for index, target in enumerate(actual):
        for box, label in zip(pixels(target).int().tolist(), target["labels"].tolist(), strict=True):
            part = mixed[index, :, box[1] : box[3], box[0] : box[2]]
            strongest = int(COLORS[label].argmax())
            assert (part[strongest] >= part.amax(dim=0) - 0.11 * 255).all()


@pytest.mark.parametrize("seed", some(5, of=40))
def test_copies_lie_inside_with_their_label_and_size(seed: int) -> None:
    images, targets = make_batch()
    kept = images.clone()
    blended, actual = copy_blend(images, targets, max_objects=3, ratio=0.5, rng=np.random.default_rng(seed))
    assert torch.equal(images, kept)
    sizes = {0: (20, 15), 1: (10, 45), 2: (40, 40)}
    for index, (new, target) in enumerate(zip(targets, actual, strict=True)):
        count = len(new["labels"])
        assert torch.equal(target["boxes"][:count], new["boxes"])
        assert sorted(target["labels"][count:].tolist()) == [0, 1, 2]
        boxes = pixels(target)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([80, 60, 80, 60])).all()
        for box, label, area in zip(boxes, target["labels"].tolist(), target["area"], strict=True):
            size = (box[2:] - box[:2]).tolist()
            assert tuple(size) == sizes[label]
            assert area == size[0] * size[1]
        # The copy that came last lies on top: half of its pixels' color at least.
        left, top, right, bottom = boxes[-1].int().tolist()
        part = blended[index, :, top:bottom, left:right]
        assert (part[int(COLORS[int(target["labels"][-1])].argmax())] >= 127).all()


def test_what_no_object_came_to_is_as_it_was() -> None:
    images, targets = make_batch()
    blended, actual = copy_blend(images, targets, max_objects=1, ratio=0.5, rng=np.random.default_rng(1))
    changed = (blended != images).any(dim=1)
    for index, target in enumerate(actual):
        left, top, right, bottom = pixels(target)[-1].tolist()
        margin_x, margin_y = int(0.25 * (right - left)), int(0.25 * (bottom - top))
        rows, columns = changed[index].nonzero().unbind(-1)
        if len(rows):
            assert columns.min() >= left - margin_x
            assert columns.max() < right + margin_x
            assert rows.min() >= top - margin_y
            assert rows.max() < bottom + margin_y


def test_objects_come_from_each_donor_as_often() -> None:
    images, targets = as_batch([colored_sample([(0, 0, 30, 30)], SIZE_HW)])
    item, nine = [(0, 0, 12, 12)], [(20, 20, 32, 32)] * 9
    donors = as_batch([colored_sample(item, SIZE_HW, first=1), colored_sample(nine, SIZE_HW, first=2)])
    donors[1][1]["labels"] = torch.full((9,), 2)
    rng = np.random.default_rng(0)
    labels = []
    for _ in range(400):
        blended, actual = copy_blend(images, targets, max_objects=1, ratio=0.5, rng=rng, donors=donors)
        assert actual[0]["labels"][0] == 0
        left, top, right, bottom = pixels(actual[0])[1].int().tolist()
        assert (right - left, bottom - top) == (12, 12)
        assert (blended[0, :, top:bottom, left:right] != images[0, :, top:bottom, left:right]).any()
        labels += actual[0]["labels"][1:].tolist()
    assert len(labels) == 400
    assert labels.count(1) / 400 == pytest.approx(0.5, abs=0.07)


def test_a_donor_with_few_objects_gives_as_many_copies() -> None:
    images, targets = as_batch([colored_sample([], SIZE_HW)])
    donors = as_batch([colored_sample([(20, 20, 32, 32)] * number, SIZE_HW) for number in (1, 10, 10)])
    for label, target in enumerate(donors[1]):
        target["labels"] = torch.full_like(target["labels"], label)
    rng = np.random.default_rng(0)
    labels = []
    for _ in range(300):
        _, actual = copy_blend(images, targets, max_objects=3, ratio=0.5, rng=rng, donors=donors)
        labels += actual[0]["labels"].tolist()
    assert len(labels) == 900
    assert np.bincount(labels) / 900 == pytest.approx(np.full(3, 1 / 3), abs=0.05)


def test_small_objects_are_not_copied() -> None:
    images, targets = as_batch([colored_sample([(0, 0, 9, 11), (20, 20, 30, 30)], SIZE_HW)] * 2)
    assert MIN_AREA == 100
    _, actual = copy_blend(images, targets, max_objects=5, ratio=0.5, rng=np.random.default_rng(0))
    assert [target["labels"].tolist() for target in actual] == [[0, 1, 1, 1]] * 2


def test_the_same_seed_gives_the_same_batch() -> None:
    images, targets = make_batch()
    first, second, other = (
        copy_blend(images, targets, max_objects=3, ratio=0.5, rng=np.random.default_rng(seed))
        for seed in (4, 4, 5)
    )
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])
