"""The box on top of a report's page."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deim.report.schema import Report
from deim.report.verdict import judge
from tests.metrics.random_results import random_split, split_tables
from tests.report.random_reports import inputs_of, report_of


def report_with(*, escape_rate: float | None = 0.1, ap50: float | None = 0.5, limit: float = 0.05) -> Report:
    """A report of which the verdict's numbers are set."""
    base = report_of(inputs_of(split_tables(*random_split(0)), Path(), num_resamples=0))
    here = replace(base.image_level.at_operating_points, escape_rate=escape_rate)
    return replace(
        base,
        summary=replace(base.summary, ap50=ap50),
        image_level=replace(base.image_level, at_operating_points=here),
        operating_points=replace(base.operating_points, max_escape_rate=limit),
    )


@pytest.mark.parametrize(
    ("numbers", "kind", "headline"),
    [
        ({"escape_rate": 0.2}, "bad", "Too many defects escape: 20.0% .* limit 5.0%"),
        ({"escape_rate": 0.031, "limit": 0.03}, "bad", "Too many defects escape: 3.1% .* limit 3.0%"),
        ({"escape_rate": 0.05}, "good", "within the limit: 5.0%"),
        ({"escape_rate": 0.0, "limit": 0.0}, "good", "within the limit: 0.0%"),
        ({"ap50": 0.009}, "bad", "learned next to nothing: mAP50 is 0.009. Train for more epochs"),
        ({"ap50": 0.0, "escape_rate": 0.0}, "bad", "learned next to nothing"),
        ({"ap50": None}, "caution", "no ground-truth box"),
        ({"escape_rate": None}, "caution", "no defective image"),
    ],
)
def test_the_verdict_compares_escapes_with_their_limit(
    numbers: dict[str, Any], kind: str, headline: str
) -> None:
    verdict = judge(report_with(**numbers))
    assert verdict.kind == kind
    assert re.search(headline, verdict.headline)
    assert [number.name for number in verdict.numbers] == ["escapes", "overkill", "recall", "precision"]
    assert "after NMS" in verdict.basis


@pytest.mark.parametrize("options", [{"empty": True}, {"num_images": 1}])
def test_numbers_that_do_not_exist_are_dashes(options: dict[str, Any]) -> None:
    verdict = judge(report_of(inputs_of(split_tables(*random_split(0, **options)), Path(), num_resamples=0)))
    assert not any("None" in number.value or "nan" in number.value for number in verdict.numbers)
