"""The box on top of a report's page: a verdict, the numbers behind it, and what they are numbers of."""

from dataclasses import dataclass
from typing import Literal

from deim.language import ENGLISH, Language
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


def judge(report: Report, language: Language = ENGLISH) -> Verdict:
    """Judge a report by what its detector does to whole images; the limit is `evaluation.max_escape_rate`."""
    kind, headline = _headline(report, language)
    level, counts, points = report.image_level.at_operating_points, report.counts, report.operating_points
    details = (
        (
            "escapes",
            level.escape_rate,
            language.text(
                "{number} of {images} without a hit",
                number=level.num_escaped,
                images=language.count("defective image", level.num_defective),
            ),
        ),
        (
            "overkill",
            level.overkill_rate,
            language.text(
                "{number} of {images} with a box",
                number=level.num_overkilled,
                images=language.count("good image", level.num_good),
            ),
        ),
        (
            "recall",
            counts.recall,
            language.text(
                "{number} of {boxes} found",
                number=counts.tp,
                boxes=language.count("box", counts.num_boxes),
            ),
        ),
        (
            "precision",
            counts.precision,
            language.text(
                "{number} of {detections} correct",
                number=counts.tp,
                detections=language.count("detection", counts.num_detections),
            ),
        ),
    )
    return Verdict(
        kind=kind,
        headline=headline,
        numbers=tuple(
            KeyNumber(name=language.text(name), value=percent(rate, language), detail=detail)
            for name, rate, detail in details
        ),
        basis=language.text(
            "All numbers show the detector as it is delivered, after NMS ({rule}) and the threshold of each "
            "class ({origin}). Curves, and the AP50 beside them, move the threshold after the same NMS. Only "
            "what is called COCO is of all raw detections, before both, as in publications.",
            rule=points.nms.describe(language),
            origin=points.describe_origin(language),
        ),
    )


def percent(rate: float | None, language: Language = ENGLISH) -> str:
    """Return a rate in [0, 1] as a percentage; a dash for None."""
    return DASH if rate is None else language.percent(rate)


def _headline(report: Report, language: Language) -> tuple[Literal["good", "caution", "bad"], str]:
    ap50, limit = report.summary.ap50, report.operating_points.max_escape_rate
    rate = report.image_level.at_operating_points.escape_rate
    if ap50 is None:
        return "caution", language.text("No verdict: the split has no ground-truth box.")
    if ap50 < MIN_AP50:
        return "bad", language.text(
            "The detector has learned next to nothing: mAP50 is {ap50:.3f}. Train for more epochs, or start "
            "from trained weights.",
            ap50=ap50,
        )
    if rate is None:
        return "caution", language.text("No verdict on escapes: the split has no defective image.")
    shares = {"rate": language.percent(rate), "limit": language.percent(limit)}
    if rate > limit:
        return "bad", language.text(
            "Too many defects escape: {rate} of the defective images, limit {limit}.", **shares
        )
    return "good", language.text(
        "Escapes are within the limit: {rate} of the defective images, limit {limit}.", **shares
    )
