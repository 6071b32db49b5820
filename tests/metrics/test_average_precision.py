"""Average precision from an assignment, against the metrics of the report."""

import numpy as np
import pytest

from deim.metrics.average_precision import average_precisions
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
