"""What a report says, in sentences."""

from deim.inference.nms import NmsRule
from deim.metrics.image_level import ImageLevel
from deim.report.schema import Report


def describe_report(report: Report) -> list[str]:
    """Return the main results as sentences for the console and the page."""
    lines = (
        _map_line(report),
        _points_line(report),
        f"Parts: {_describe_images(report.image_level.at_operating_points)}.",
        _escape_line(report),
        *(metric.describe() for metric in report.described_metrics if metric is not None),
        _duplicates_line(report),
        *(report.task_section.summary if report.task_section else ()),
    )
    return [line for line in lines if line]


def _map_line(report: Report) -> str:
    ap50, ap = report.summary.ap50, report.summary.ap
    if ap50 is None:
        return f"No AP: the split has no ground-truth box ({report.num_images} images)."
    spread = ""
    if report.intervals and report.intervals.ap50:
        ends = report.intervals.ap50
        spread = f", {report.intervals.level:.0%} interval {ends.low:.3f} to {ends.high:.3f}"
    return (
        f"mAP50 {ap50:.3f}{spread}; mAP {ap:.3f} (n = {report.num_images} images, {report.num_boxes} boxes)."
    )


def _points_line(report: Report) -> str:
    points, counts = report.operating_points, report.counts
    rates = "".join(
        f", {name} {value:.3f}"
        for name, value in (("precision", counts.precision), ("recall", counts.recall), ("F1", counts.f1))
        if value is not None
    )
    return (
        f"At the operating points ({points.goal}, chosen on {points.chosen_on}, {points.num_images} images): "
        f"{counts.tp} of {counts.num_boxes} boxes found, {counts.fp} false boxes{rates}."
    )


def _describe_images(level: ImageLevel) -> str:
    escapes = "no defective image, so no escape rate"
    if level.escape_rate is not None:
        escapes = (
            f"escape rate {level.escape_rate:.1%} ({level.num_escaped} of {level.num_defective} defective "
            f"images without a hit, {level.num_unmarked} without any box)"
        )
    overkill = "no good image, so no overkill rate"
    if level.overkill_rate is not None:
        overkill = (
            f"overkill rate {level.overkill_rate:.1%} ({level.num_overkilled} of {level.num_good} good "
            f"images), {level.fp_per_good_image:.2f} false boxes per good image"
        )
    return f"{escapes}; {overkill}"


def _escape_line(report: Report) -> str:
    points = report.operating_points
    limit = f"{points.max_escape_rate:.1%}"
    level = report.image_level.at_escape_threshold
    if level is None:
        lowest = points.lowest_escape_rate
        why = "there is no defective image"
        if lowest is not None:
            why = f"even with all detections {lowest:.1%} escape"
        return f"No threshold keeps escapes to {limit} on {points.chosen_on}: {why}."
    return (
        f"For escapes of at most {limit} on {points.chosen_on}, the threshold of all classes is "
        f"{points.escape_threshold:.3f}; here it gives {_describe_images(level)}."
    )


def _duplicates_line(report: Report) -> str:
    duplicates, rule = report.duplicates, report.operating_points.nms
    if duplicates.rate_before is None:
        return ""
    before = f"Duplicates: {duplicates.num_before} of the detections ({duplicates.rate_before:.1%})"
    if rule == NmsRule():
        return f"{before}; no NMS."
    ap50 = "" if duplicates.ap50 is None else f"; mAP50 with it {duplicates.ap50:.3f}"
    return f"{before}, {duplicates.num_after} with NMS ({rule.describe()}){ap50}."
