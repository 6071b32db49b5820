"""Average precision from an assignment, against the metrics of the report."""

import numpy as np
import pytest

from deim.metrics.average_precision import CURVE_STEP, average_precisions, precision_recall_curves
from deim.metrics.choose_thresholds import count_classes
from tests.metrics.random_results import coco_metrics, random_split, split_tables


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_coco_metrics(seed: int, decimals: int) -> None:
    ground_truth, predictions = random_split(seed, decimals=decimals)
    ground_truth["images"] = ground_truth["images"][::-1]
    results = split_tables(ground_truth, predictions)
    actual = average_precisions(results.overlaps)
    metrics = coco_metrics(ground_truth, predictions)
    for label, row in enumerate(metrics.classes):
        if row.ap is None:
            assert np.isnan(actual[:, label]).all()
        else:
            assert actual[:, label].mean() == pytest.approx(row.ap, abs=1e-9)
            assert actual[0, label] == pytest.approx(row.ap50, abs=1e-9)
    assert np.nanmean(actual) == pytest.approx(metrics.summary.ap, abs=1e-9)


@pytest.mark.parametrize(("seed", "num_images"), [(5, 24), (6, 300)])
def test_the_counts_at_any_threshold_lie_on_the_curves(seed: int, num_images: int) -> None:
    results = split_tables(*random_split(seed, num_images=num_images, decimals=6))
    curves = precision_recall_curves(results.overlaps)
    for threshold in np.random.default_rng(seed).uniform(0.4, 0.95, 20):
        kept = results.keep(results.detections.score >= threshold)
        for curve, counts in zip(curves, count_classes(kept.overlaps), strict=True):
            above = [] if curve is None else np.flatnonzero(np.array(curve.thresholds) >= threshold)
            if curve is None or not len(above) or counts.precision is None:
                continue
            assert curve.precision[above[-1]] == pytest.approx(counts.precision, abs=CURVE_STEP)
            assert curve.recall[above[-1]] == pytest.approx(counts.recall, abs=CURVE_STEP)
