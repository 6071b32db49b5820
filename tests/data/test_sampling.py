"""Repeat-factor sampling: frequencies are those of the formula, orders those of the seed and the epoch."""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deim.config.schema import Config
from deim.data.augment.options import AugmentOptions
from deim.data.formats.coco import read_coco
from deim.data.formats.split import CocoSplit
from deim.data.sampling import (
    EpochSampler,
    Item,
    compute_repeat_factors,
    count_repetitions,
    draw_copies,
    epoch_length,
)
from deim.errors import ConfigError
from tests.data.building import make_sampler, make_train_dataset

FACTORS = np.array([1.0, 2.5, 1.0, 1.25, 4.0, 1.0, 1.7, 1.0, 3.3, 1.0])


def items_of(sampler: EpochSampler, epoch: int, *, first_batch: int = 0) -> list[list[Item]]:
    return [list(batch.items[batch.part]) for batch in sampler.requests(epoch, first_batch=first_batch)]


def write_split(root: Path, classes: list[list[int]], *, crowds: tuple[int, ...] = ()) -> CocoSplit:
    """An annotation file with the classes of each image; the images are empty files."""
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30}
        for number in range(len(classes))
    ]
    for image in images:
        (root / str(image["file_name"])).touch()
    boxes = [(number, category) for number, of_image in enumerate(classes) for category in of_image]
    annotations = [
        {
            "id": number + 1,
            "image_id": image,
            "category_id": category,
            "bbox": [1, 2, 10, 10],
            "area": 100,
            "iscrowd": int(image in crowds),
        }
        for number, (image, category) in enumerate(boxes)
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in (5, 2, 9)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return read_coco(root / "train.json", root)


def test_factors_follow_the_formula(tmp_path: Path) -> None:
    # 16 images: class 5 on 8, class 2 on 2 (twice on the first), class 9 on 1 of these; 6 empty.
    split = write_split(tmp_path, [[5]] * 7 + [[5, 2, 2], [2, 9]] + [[9]] + [[]] * 6, crowds=(9,))
    by_image, by_class = compute_repeat_factors(split, 0.25)
    by_category = dict(zip(split.category_ids, by_class, strict=True))
    assert by_category == {5: 1.0, 2: math.sqrt(0.25 * 16 / 2), 9: math.sqrt(0.25 * 16 / 1)}
    # An image follows its rarest class; crowds and empty images are not repeated.
    expected = [1.0] * 7 + [by_category[2], by_category[9]] + [1.0] * 7
    assert by_image.tolist() == expected


def test_without_boxes_nothing_is_repeated(tmp_path: Path) -> None:
    by_image, by_class = compute_repeat_factors(write_split(tmp_path, [[], []]), 1.0)
    assert by_image.tolist() == [1, 1]
    assert by_class.tolist() == [1, 1, 1]


def test_copies_are_the_factor_rounded_up_or_down_and_its_mean() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_copies(FACTORS, rng=rng) for _ in range(4000)])
    length = epoch_length(FACTORS)
    assert length == math.ceil(FACTORS.sum()) == 18
    assert (drawn.sum(axis=1) == length).all()
    stretched = FACTORS * length / FACTORS.sum()
    assert (drawn >= np.floor(stretched)).all()
    assert (drawn <= np.ceil(stretched)).all()
    # Four standard deviations of a mean of 4000 that differ by 1 at most.
    np.testing.assert_allclose(drawn.mean(axis=0), stretched, atol=4 * 0.5 / 4000**0.5)
    np.testing.assert_allclose(stretched, FACTORS, rtol=1 / FACTORS.sum())


@pytest.mark.parametrize("number", [1, 7, 1000])
def test_factors_of_one_are_every_image_once(number: int) -> None:
    assert (draw_copies(np.ones(number), rng=np.random.default_rng(1)) == 1).all()


def test_copies_of_a_list_are_numbered() -> None:
    assert count_repetitions(np.array([3, 1, 3, 3, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]
    assert count_repetitions(np.zeros(0, dtype=np.int64)).tolist() == []


def test_frequencies_of_the_sampler_match_the_formula(tmp_path: Path) -> None:
    split = write_split(tmp_path, [[5]] * 30 + [[2]] * 5 + [[9]] * 2 + [[]] * 3)
    factors = compute_repeat_factors(split, 0.5)[0]
    batches = EpochSampler(len(split), 8, seed=0, repeat_factors=factors)
    seen: Counter[int] = Counter()
    for epoch in range(400):
        items = [item for batch in items_of(batches, epoch) for item in batch]
        assert len(items) == epoch_length(factors)
        assert len(set(items)) == len(items)
        assert {item[1] for item in items} == set(range(len(split)))
        seen.update(item[1] for item in items)
    frequencies = np.array([seen[index] for index in range(len(split))]) / 400
    # Within the stretch to a whole length, and four standard deviations of 400 epochs.
    np.testing.assert_allclose(frequencies, factors, atol=4 * 0.5 / 400**0.5, rtol=1 / factors.sum())
    by_class = [frequencies[30:35].mean(), frequencies[35:37].mean(), frequencies[37:].mean()]
    assert by_class == pytest.approx([math.sqrt(0.5 * 40 / 5), math.sqrt(0.5 * 40 / 2), 1.0], rel=0.03)


def test_an_order_follows_from_seed_and_epoch_and_continues_after_a_stop() -> None:
    sampler = EpochSampler(10, 4, seed=3, repeat_factors=FACTORS)
    whole = items_of(sampler, 2)
    assert [len(batch) for batch in whole] == [4, 4, 4, 4, 2]
    assert len(sampler) == 5
    assert items_of(sampler, 2, first_batch=2) == whole[2:]
    assert items_of(sampler, 3) != whole
    for other_seed, is_same in ((3, True), (4, False)):
        again = EpochSampler(10, 4, seed=other_seed, repeat_factors=FACTORS)
        assert (items_of(again, 2) == whole) is is_same


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_processes_share_each_batch_equally(num_ranks: int) -> None:
    alone = items_of(EpochSampler(10, 8, seed=0, repeat_factors=FACTORS), 0)
    samplers = [
        EpochSampler(10, 8, seed=0, rank=rank, num_ranks=num_ranks, repeat_factors=FACTORS)
        for rank in range(num_ranks)
    ]
    shares = [items_of(sampler, 0) for sampler in samplers]
    for together in zip(*shares, strict=True):
        assert len({len(share) for share in together}) == 1
    whole = [sorted(item for share in together for item in share) for together in zip(*shares, strict=True)]
    assert whole[:2] == [sorted(batch) for batch in alone[:2]]
    assert sum(map(len, whole)) == 18 - 18 % 8 % num_ranks


def test_copies_of_an_epoch_are_changed_in_different_ways(
    tiny_set: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(tiny_set, tiny_set / "run")
    split = read_coco(tiny_set / "annotations" / "train.json", tiny_set / "images")
    dataset = make_train_dataset(replace(config, augment=AugmentOptions(photometric=1.0)), split)
    items = [dataset.read(item) for item in ((1, 0), (1, 0, 1), (1, 0, 2), (1, 0, 1))]
    images = [image for image, _ in items]
    assert torch.equal(images[1], images[3])
    assert not any(torch.equal(images[a], images[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert len({target["noise_seed"] for _, target in items}) == 3


def test_it_is_off_unless_asked_for_and_reported_when_on(
    tmp_path: Path, tiny_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    split = write_split(tmp_path, [[5]] * 8 + [[2]])
    with caplog.at_level(logging.INFO, logger="deim"):
        plain = make_sampler(tiny_config(tmp_path, tmp_path), split, batch_size=3)
        assert plain.repeat_factors is None
        assert caplog.text == ""
        config = tiny_config(tmp_path, tmp_path, "data.sampling={type: repeat_factor, threshold: 0.5}")
        batches = make_sampler(config, split, batch_size=3)
    assert len(batches) == 4
    assert "data.sampling: repeat factors class 2 2.12; an epoch has 11 images instead of 9" in caplog.text


def test_a_threshold_that_is_no_share_is_refused(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    for threshold in (0, 1.5):
        option = f"data.sampling={{type: repeat_factor, threshold: {threshold}}}"
        with pytest.raises(
            ConfigError, match=rf"data\.sampling\.threshold: got {threshold:g}, needs \(0, 1\]"
        ):
            tiny_config(tmp_path, tmp_path, option)
