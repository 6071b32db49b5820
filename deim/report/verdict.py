"""The box on top of a report's page: a verdict, the numbers behind it, and what they are numbers of."""

from dataclasses import dataclass
from typing import Literal

from deim.files import count
from deim.report.schema import Report
from deim.report.tables import DASH

MIN_AP50 = 0.01
"""A detector below this has learned next to nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyNumber:
    """One number in large letters."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a reader should know first."""

    kind: Literal["good", "caution", "bad"]
    headline: str
    numbers: tuple[KeyNumber, ...]
    basis: str
    """Which detections all numbers of the page are about."""


def judge(report: Report) -> Verdict:
    """Judge a report by what its detector does to whole images; the limit is `evaluation.max_escape_rate`."""
    kind, headline = _headline(report)
    level, counts, points = report.image_level.at_operating_points, report.counts, report.operating_points
    defective, good = count("defective image", level.num_defective), count("good image", level.num_good)
    boxes = count("box", counts.num_boxes)
    return Verdict(
        kind=kind,
        headline=headline,
        numbers=(
            KeyNumber(
                name="escapes",
                value=percent(level.escape_rate),
                detail=f"{level.num_escaped} of {defective} without a hit",
            ),
            KeyNumber(
                name="overkill",
                value=percent(level.overkill_rate),
                detail=f"{level.num_overkilled} of {good} with a box",
            ),
            KeyNumber(name="recall", value=percent(counts.recall), detail=f"{counts.tp} of {boxes} found"),
            KeyNumber(
                name="precision",
                value=percent(counts.precision),
                detail=f"{counts.tp} of {count('detection', counts.num_detections)} correct",
            ),
        ),
        basis=(
            f"All numbers show the detector as it is delivered, after NMS ({points.nms.describe()}) and the "
            f"threshold of each class ({points.describe_origin()}). Curves, and the AP50 beside them, move "
            f"the threshold after the same NMS. Only what is called COCO is of all raw detections, before "
            f"both, as in publications."
        ),
    )


def percent(rate: float | None) -> str:
    """Return a rate in [0, 1] as a percentage; a dash for None."""
    return DASH if rate is None else f"{rate:.1%}"


def _headline(report: Report) -> tuple[Literal["good", "caution", "bad"], str]:
    ap50, limit = report.summary.ap50, report.operating_points.max_escape_rate
    rate = report.image_level.at_operating_points.escape_rate
    if ap50 is None:
        return "caution", "No verdict: the split has no ground-truth box."
    if ap50 < MIN_AP50:
        advice = "Train for more epochs, or start from trained weights."
        return "bad", f"The detector has learned next to nothing: mAP50 is {ap50:.3f}. {advice}"
    if rate is None:
        return "caution", "No verdict on escapes: the split has no defective image."
    share = f"{percent(rate)} of the defective images, limit {percent(limit)}."
    if rate > limit:
        return "bad", f"Too many defects escape: {share}"
    return "good", f"Escapes are within the limit: {share}"
