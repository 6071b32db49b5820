"""Resampled AP against COCO's own evaluation, and intervals against populations whose AP is known."""

import time
from typing import Any

import numpy as np
import pytest

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.metrics.assignment import Overlaps
from deim.metrics.bootstrap import (
    SampledScore,
    ScoreSamples,
    difference,
    interval,
    mean_interval,
    mean_over_classes,
    mean_over_runs,
    resample_scores,
)
from tests.metrics.random_results import CLASS_NAMES, coco_metrics, random_split, split_tables


def sampled(
    ground_truth: dict[str, Any], predictions: list[dict[str, Any]], *, num_resamples: int = 40, seed: int = 0
) -> ScoreSamples:
    overlaps = split_tables(ground_truth, predictions).overlaps
    return resample_scores(overlaps, num_resamples=num_resamples, seed=seed)


def random_population(
    seed: int,
    *,
    num_images: int,
    class_shares: tuple[float, ...],
    actual_log_odds: float = 1.8,
    score_gap: float = 1.6,
    box_quality: tuple[float, float] = (9.0, 2.2),
    false_per_image: float = 8.0,
) -> Overlaps:
    """Images as they come, one to four boxes each, some images harder than others, and their detections.

    The overlaps are drawn, so boxes are left at 0 px.

    Args:
        seed: Of everything.
        num_images: As many as wanted of an endless population.
        class_shares: Share of each class in the boxes.
        found_log_odds: Of a box being detected, in an image of medium hardness.
        score_gap: How far the scores of detected boxes lie above those of false detections, in log-odds.
        box_quality: Beta distribution of the IoU with the box.
        false_per_image: False detections of all classes, on average, in an image of medium hardness.
    """
    rng = np.random.default_rng(seed)
    num_classes = len(class_shares)
    ease = rng.normal(0, 0.5, num_images)
    owner = np.repeat(np.arange(num_images), rng.integers(1, 5, num_images))
    label = rng.choice(num_classes, size=len(owner), p=class_shares)
    iou = rng.beta(*box_quality, len(owner))
    hit_scores = score_gap + ease[owner] + rng.normal(size=len(owner)) + 2 * (iou - 0.7)
    hit = np.flatnonzero(rng.logistic(size=len(owner)) < actual_log_odds + ease[owner])
    false_image = np.repeat(np.arange(num_images), rng.poisson(false_per_image * np.exp(-ease)))
    image = np.concatenate([owner[hit], false_image])
    scores = np.concatenate([hit_scores[hit], rng.normal(size=len(false_image))])
    labels = np.concatenate([label[hit], rng.integers(num_classes, size=len(false_image))])
    matched = np.concatenate([hit, np.full(len(false_image), -1)])
    reached = np.concatenate([iou[hit], np.zeros(len(false_image))])
    order = np.lexsort((-scores, image))
    truth = GroundTruthTable(
        class_names=tuple(f"class {number}" for number in range(num_classes)),
        category_ids=tuple(range(num_classes)),
        normal_class=None,
        image_ids=tuple(range(num_images)),
        file_names=tuple(str(number) for number in range(num_images)),
        sizes_hw=np.zeros((num_images, 2), dtype=np.int64),
        image=owner,
        label=label,
        boxes_xywh=np.zeros((len(owner), 4)),
        area=np.zeros(len(owner)),
        is_crowd=np.zeros(len(owner), dtype=np.bool_),
    )
    detections = DetectionTable(
        image=image[order],
        label=labels[order],
        boxes_xywh=np.zeros((len(image), 4)),
        score=scores[order],
        query=np.full(len(image), -1),
    )
    hits = np.flatnonzero(matched[order] >= 0)
    return Overlaps(
        ground_truth=truth,
        detections=detections,
        detection=hits,
        truth=matched[order][hits],
        iou=reached[order][hits],
    )


def values(scores: tuple[SampledScore, ...]) -> np.ndarray:
    """(C,) of the split, NaN without ground truth."""
    return np.array([np.nan if score.value is None else score.value for score in scores])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decimals", [1, 9])
@pytest.mark.parametrize("step", [1, -1])
def test_the_values_of_the_split_are_those_of_coco(seed: int, decimals: int, step: int) -> None:
    ground_truth, predictions = random_split(seed, decimals=decimals)
    ground_truth["images"] = ground_truth["images"][::step]  # equal scores go by image id, not by position
    samples = sampled(ground_truth, predictions, num_resamples=2)
    metrics = coco_metrics(ground_truth, predictions)
    for ours, ours50, theirs in zip(samples.ap, samples.ap50, metrics.classes, strict=True):
        assert ours.value == (None if theirs.ap is None else pytest.approx(theirs.ap, abs=1e-9))
        assert ours50.value == (None if theirs.ap50 is None else pytest.approx(theirs.ap50, abs=1e-9))
        assert (ours.num_images, ours.num_boxes) == (theirs.num_images, theirs.num_boxes)
    assert samples.mean_ap.value == pytest.approx(metrics.summary.ap, abs=1e-9)
    assert samples.mean_ap50.value == pytest.approx(metrics.summary.ap50, abs=1e-9)
    assert samples.mean_ap50.num_boxes == metrics.num_boxes
    assert samples.mean_ap50.num_images == metrics.num_images - metrics.num_images_without_boxes


def test_a_resample_is_the_set_with_copied_images() -> None:
    ground_truth, predictions = random_split(3, decimals=12)
    num_images = len(ground_truth["images"])
    samples = sampled(ground_truth, predictions, num_resamples=6, seed=11)
    generator = np.random.default_rng(11)
    for resample in range(6):
        images, boxes, actual = [], [], []
        for new_id, drawn in enumerate(generator.integers(num_images, size=num_images).tolist()):
            image = ground_truth["images"][drawn]
            images.append(image | {"id": new_id})
            image_boxes = [box for box in ground_truth["annotations"] if box["image_id"] == image["id"]]
            boxes += [
                box | {"image_id": new_id, "id": len(boxes) + k} for k, box in enumerate(image_boxes, 1)
            ]
            actual += [item | {"image_id": new_id} for item in predictions if item["image_id"] == image["id"]]
        metrics = coco_metrics(ground_truth | {"images": images, "annotations": boxes}, actual)
        for ours, ours50, theirs in zip(samples.ap, samples.ap50, metrics.classes, strict=True):
            expected = [np.nan if number is None else number for number in (theirs.ap, theirs.ap50)]
            np.testing.assert_allclose(
                [ours.resampled[resample], ours50.resampled[resample]], expected, atol=1e-9
            )
        assert samples.mean_ap.resampled[resample] == pytest.approx(metrics.summary.ap, abs=1e-9)
        assert samples.mean_ap50.resampled[resample] == pytest.approx(metrics.summary.ap50, abs=1e-9)


def test_classes_without_ground_truth_without_predictions_and_of_crowds() -> None:
    ground_truth, predictions = random_split(0)
    samples = sampled(ground_truth, predictions)
    for name in ("absent", "only crowd"):
        score = samples.ap50[CLASS_NAMES.index(name)]
        assert score.value is None
        assert score.num_boxes == score.num_images == 0
        assert np.isnan(score.resampled).all()
        assert interval(score) is None
    never = samples.ap[CLASS_NAMES.index("never predicted")]
    assert never.value == 0
    actual = interval(never)
    assert actual is not None
    assert actual.low == 0
    assert 1 < actual.high * never.num_boxes < 4  # "none of n" allows up to about 3 of n


@pytest.mark.parametrize("emptiness", ["no boxes", "no images", "no predictions", "no classes"])
def test_empty_sets(emptiness: str) -> None:
    ground_truth, predictions = random_split(0, empty=emptiness == "no boxes")
    if emptiness == "no images":
        ground_truth, predictions = ground_truth | {"images": [], "annotations": []}, []
    if emptiness == "no classes":
        ground_truth, predictions = ground_truth | {"categories": [], "annotations": []}, []
    if emptiness == "no predictions":
        predictions = []
    samples = sampled(ground_truth, predictions)
    assert samples.mean_ap50.resampled.shape == (40,)
    is_none = emptiness != "no predictions"
    assert (interval(samples.mean_ap50) is None) == is_none
    assert (difference(samples.mean_ap50, samples.mean_ap50).value is None) == is_none


def test_one_image_says_nothing_of_others() -> None:
    samples = sampled(*random_split(0, num_images=1))
    assert samples.mean_ap50.value is not None
    assert (samples.mean_ap50.resampled == samples.mean_ap50.value).all()
    assert interval(samples.mean_ap50) is None
    assert difference(samples.mean_ap50, samples.mean_ap50).verdict == "cannot be compared"


def test_the_seed_and_the_image_ids_decide_what_is_drawn() -> None:
    ground_truth, predictions = random_split(1)
    first = sampled(ground_truth, predictions)
    turned = sampled(ground_truth | {"images": ground_truth["images"][::-1]}, predictions)
    other = sampled(ground_truth, predictions, seed=1)
    np.testing.assert_array_equal(
        first.mean_ap.resampled, sampled(ground_truth, predictions).mean_ap.resampled
    )
    np.testing.assert_array_equal(first.mean_ap.resampled, turned.mean_ap.resampled)
    assert first.image_ids == turned.image_ids
    assert (first.mean_ap.resampled != other.mean_ap.resampled).any()
    assert first.mean_ap.value == other.mean_ap.value


def test_a_resample_may_lack_a_class() -> None:
    ground_truth, predictions = random_split(2)
    class_mask = ground_truth["categories"][0]["id"]
    kept = [box for box in ground_truth["annotations"] if box["category_id"] != class_mask]
    owners = [ground_truth["images"][0]["id"], ground_truth["images"][1]["id"]]
    new = [
        {"id": 10_000 + k, "image_id": owner, "category_id": class_mask, "bbox": [5.0, 5.0, 50.0, 50.0]}
        for k, owner in enumerate(owners)
    ]
    actual = {"image_id": owners[0], "category_id": class_mask, "bbox": [5.0, 5.0, 50.0, 50.0], "score": 2.0}
    samples = sampled(ground_truth | {"annotations": kept + new}, [*predictions, actual], num_resamples=200)
    missing = np.isnan(samples.ap50[0].resampled)
    assert 0.05 < missing.mean() < 0.3  # (1 - 2 / 24)²⁴ = 0.12
    assert not np.isnan(samples.mean_ap50.resampled).any()
    wide = interval(samples.ap50[0])
    assert wide is not None
    assert wide.high - wide.low > 0.8


def test_intervals_hold_the_score() -> None:
    samples = sampled(*random_split(4), num_resamples=200)
    for score in (samples.mean_ap, samples.mean_ap50, *samples.ap, *samples.ap50):
        actual = interval(score)
        assert (actual is None) == (score.value is None)
        assert actual is None or 0 <= actual.low <= score.value <= actual.high <= 1


@pytest.mark.parametrize("num_boxes", [5, 25, 500])
def test_a_perfect_score_is_not_certain_and_less_so_with_fewer_boxes(num_boxes: int) -> None:
    perfect = SampledScore(value=1.0, resampled=np.ones(200), num_images=num_boxes, num_boxes=num_boxes)
    actual = interval(perfect)
    assert actual is not None
    assert actual.high == 1
    assert 1 < (1 - actual.low) * num_boxes < 4


def test_two_images_that_agree_do_not_tell_two_runs_apart() -> None:
    ground_truth, _ = random_split(0, num_classes=1, empty=True)
    ground_truth["images"] = ground_truth["images"][:2]
    boxes = [
        {"image_id": image["id"], "category_id": 90, "bbox": [9.0, 9.0, 50.0, 50.0]}
        for image in ground_truth["images"]
    ]
    ground_truth["annotations"] = [box | {"id": k, "iscrowd": 0} for k, box in enumerate(boxes)]
    actual = [box | {"score": 0.9} for box in boxes]
    change = difference(sampled(ground_truth, []).mean_ap50, sampled(ground_truth, actual).mean_ap50)
    assert change.value == 1
    assert change.verdict == "not distinguishable"


def test_a_run_never_differs_from_itself() -> None:
    samples = sampled(*random_split(5))
    for score in (samples.mean_ap, samples.mean_ap50, *samples.ap, *samples.ap50):
        actual = difference(score, score)
        if score.value is None:
            assert (actual.value, actual.low, actual.high) == (None, None, None)
            assert actual.verdict == "cannot be compared"
        else:
            assert (actual.value, actual.low, actual.high) == (0, 0, 0)
            assert actual.verdict == "not distinguishable"


def test_a_clearly_worse_run_is_told_apart_and_a_hardly_worse_one_is_not() -> None:
    ground_truth, predictions = random_split(6, num_images=120)
    rng = np.random.default_rng(0)
    full = sampled(ground_truth, predictions, num_resamples=200).mean_ap50

    def without(share: float) -> SampledScore:
        kept = [item for item in predictions if rng.uniform() >= share]
        return sampled(ground_truth, kept, num_resamples=200).mean_ap50

    much = difference(full, without(0.5))
    assert much.value < much.high < 0
    assert much.verdict == "worse"
    back = difference(without(0.5), full)
    assert back.value > back.low > 0
    assert back.verdict == "better"
    assert back.num_boxes == full.num_boxes
    little = difference(full, without(0.01))
    assert little.value != 0
    assert little.verdict == "not distinguishable"


def test_the_mean_over_runs_is_that_of_each_resample() -> None:
    ground_truth, predictions = random_split(2)
    runs = [sampled(ground_truth, predictions[start:]) for start in (0, 40, 80)]
    mean = mean_over_runs(runs)
    label = next(label for label, score in enumerate(runs[0].ap) if score.value is not None)
    for of_mean, *of_runs in (
        (mean.mean_ap50, *(run.mean_ap50 for run in runs)),
        (mean.ap[label], *(run.ap[label] for run in runs)),
    ):
        assert of_mean.value == pytest.approx(np.mean([item.value for item in of_runs]))
        expected = np.mean([item.resampled for item in of_runs], axis=0)
        np.testing.assert_allclose(of_mean.resampled, expected)
        assert (of_mean.num_images, of_mean.num_boxes) == (of_runs[0].num_images, of_runs[0].num_boxes)
    # Rounding must not tell a run from itself.
    for number in (1, 3, 7):
        same = mean_over_runs([runs[1]] * number)
        for score, other in ((same.mean_ap50, runs[1].mean_ap50), (same.ap[label], runs[1].ap[label])):
            assert difference(score, other) == difference(other, other)


def test_the_mean_over_classes_is_over_those_with_ground_truth() -> None:
    samples = sampled(*random_split(4), num_resamples=60)
    every = mean_over_classes(samples.ap50)
    assert every.value == pytest.approx(samples.mean_ap50.value)
    np.testing.assert_allclose(every.resampled, samples.mean_ap50.resampled)
    assert every.num_boxes == samples.mean_ap50.num_boxes
    assert every.num_images <= samples.mean_ap50.num_images
    no_truth = SampledScore(value=None, resampled=np.full(60, np.nan), num_images=0, num_boxes=0)
    known = next(score for score in samples.ap50 if score.value is not None)
    assert mean_over_classes([no_truth, known]).value == known.value
    assert mean_over_classes([no_truth, no_truth]).value is None
    assert difference(no_truth, mean_over_classes([no_truth])).value is None
    assert difference(known, mean_over_classes([no_truth, known])).value == 0


def coverage(
    *, num_samples: int, num_images: int, num_resamples: int, population_images: int, **population: Any
) -> tuple[float, float, float]:
    """Share of 95 % intervals that hold the AP of the population: of mAP50, of the classes' AP50 and AP."""
    whole = resample_scores(random_population(0, num_images=population_images, **population), num_resamples=2)
    true_ap, true_ap50 = values(whole.ap), values(whole.ap50)
    held: list[list[bool]] = [[], [], []]
    for seed in range(1, num_samples + 1):
        overlaps = random_population(seed, num_images=num_images, **population)
        samples = resample_scores(overlaps, num_resamples=num_resamples, seed=seed)
        for shares, scores, truths in zip(
            held,
            [(samples.mean_ap50,), samples.ap50, samples.ap],
            [[np.mean(true_ap50)], true_ap50, true_ap],
            strict=True,
        ):
            for score, truth in zip(scores, truths, strict=True):
                actual = interval(score)
                assert actual is not None
                shares.append(bool(actual.low <= truth <= actual.high))
    return float(np.mean(held[0])), float(np.mean(held[1])), float(np.mean(held[2]))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    of_mean, of_ap50, of_ap = coverage(
        num_samples=60,
        num_images=60,
        num_resamples=100,
        population_images=20_000,
        class_shares=(0.5, 0.5),
        false_per_image=2.0,
    )
    assert of_mean > 0.85  # 3.5 standard errors of 60 at 0.95
    assert of_ap50 > 0.88
    assert of_ap > 0.85


CASES = {
    "medium": {"class_shares": (1 / 6,) * 6},
    "one small class": {"class_shares": (0.05, *(0.19,) * 5)},
    "high": {
        "class_shares": (1 / 6,) * 6,
        "actual_log_odds": 4.5,
        "score_gap": 2.8,
        "box_quality": (14.0, 1.6),
        "false_per_image": 6.0,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_coverage(case: str) -> None:
    # The standard error of a share of 0.94 is 0.022 for 120 splits and 0.009 for the 720 numbers of classes.
    # The bounds are three of them below 0.94 (for AP below 0.935) and up to all, or three above 0.95.
    of_mean, of_ap50, of_ap = coverage(
        num_samples=120,
        num_images=205,
        num_resamples=200,
        population_images=100_000,
        **CASES[case],
    )
    assert of_mean >= 0.875
    assert 0.913 <= of_ap50 <= 0.975
    assert 0.908 <= of_ap <= 0.975


@pytest.mark.slow
def test_a_thousand_resamples_of_five_hundred_images_take_less_than_twenty_seconds() -> None:
    overlaps = random_population(0, num_images=500, class_shares=(1 / 6,) * 6, false_per_image=260.0)
    assert len(overlaps.detections) > 500 * 250
    start = time.perf_counter()
    resample_scores(overlaps, num_resamples=1000)
    assert time.perf_counter() - start < 20


def test_the_interval_of_a_mean_is_students() -> None:
    # The factors for 1 and 2 degrees of freedom are 12.706 and 4.303.
    pair, triple = mean_interval([0.1, 0.3]), mean_interval([1.0, 2.0, 3.0])
    assert (pair.low, pair.high) == pytest.approx((0.2 - 1.2706, 0.2 + 1.2706), abs=1e-4)
    assert (triple.low, triple.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
