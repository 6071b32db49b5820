"""What a report says, in sentences."""

from deim.files import count
from deim.inference.operating_points import NmsRule
from deim.metrics.image_level import ImageLevel
from deim.report.schema import Report


def describe_report(report: Report) -> list[str]:
    """Return the main results as sentences for the console and the page."""
    lines = (
        f"Data of {report.provenance.split}: {describe_data(report)}.",
        report.operating_points.default_reason,
        _overfull_line(report),
        _points_line(report),
        f"Parts: {_describe_images(report.image_level.at_operating_points)}.",
        _escape_line(report),
        report.confusion.describe(),
        _duplicates_line(report),
        _map_line(report),
        *(report.task_section.summary if report.task_section else ()),
    )
    return [line for line in lines if line]


def _map_line(report: Report) -> str:
    ap50, ap = report.summary.ap50, report.summary.ap
    if ap50 is None:
        return f"No AP: the split has no ground-truth box ({count('image', report.num_images)})."
    spread = ""
    if report.intervals and report.intervals.ap50:
        ends = report.intervals.ap50
        spread = f", {report.intervals.level:.0%} interval {ends.low:.3f} to {ends.high:.3f}"
    size = f"{count('image', report.num_images)}, {count('box', report.num_boxes)}"
    return (
        f"COCO, all raw detections before NMS and thresholds: mAP50 {ap50:.3f}{spread}; mAP {ap:.3f} "
        f"(n = {size})."
    )


def describe_data(report: Report) -> str:
    """Return the account of the images and boxes of the split; shorter for a report of an older version."""
    counts = report.provenance.dataset.box_counts
    if counts is not None:
        return counts.describe()
    size = f"{count('image', report.num_images)} ({report.num_images_without_boxes} without boxes)"
    return f"{size}, {count('box', report.num_boxes)}"


def _overfull_line(report: Report) -> str:
    source = report.provenance
    if not source.overfull_images:
        return ""
    return (
        f"{count('image', source.overfull_images)} of the split with more boxes than detections: at most "
        f"{source.max_detections} are made for an image (model.decoder.num_queries) and "
        f"{source.counted_detections} of a class counted (evaluation.max_detections). The rest is missed."
    )


def _points_line(report: Report) -> str:
    points, counts = report.operating_points, report.counts
    rates = "".join(
        f", {name} {value:.3f}"
        for name, value in (("precision", counts.precision), ("recall", counts.recall), ("F1", counts.f1))
        if value is not None
    )
    source = f"{points.describe_origin()}, {count('image', points.num_images)}"
    return (
        f"At the operating points ({source}): {counts.tp} of {count('box', counts.num_boxes)} found, "
        f"{count('false box', counts.fp)}{rates}."
    )


def _describe_images(level: ImageLevel) -> str:
    escapes = "no defective image, so no escape rate"
    if level.escape_rate is not None:
        escapes = (
            f"escape rate {level.escape_rate:.1%} ({level.num_escaped} of "
            f"{count('defective image', level.num_defective)} without a hit, {level.num_unmarked} without "
            f"any box)"
        )
    overkill = "no good image, so no overkill rate"
    if level.overkill_rate is not None:
        overkill = (
            f"overkill rate {level.overkill_rate:.1%} ({level.num_overkilled} of "
            f"{count('good image', level.num_good)}), {level.fp_per_good_image:.2f} false boxes per "
            f"good image"
        )
    return f"{escapes}; {overkill}"


def _escape_line(report: Report) -> str:
    points, level = report.operating_points, report.image_level.at_escape_threshold
    limit, chosen_on = f"{points.max_escape_rate:.1%}", points.chosen_on
    if points.default_reason is not None:
        return ""
    if points.lowest_escape_rate is None:
        return f"No threshold for an escape rate of {limit} or less: {chosen_on} has no defective image."
    if level is None:
        return (
            f"No threshold gives an escape rate of {limit} or less on {chosen_on}: even if every detection "
            f"is kept, it is {points.lowest_escape_rate:.1%}."
        )
    return (
        f"To let at most {limit} of the defective images of {chosen_on} escape, use the threshold "
        f"{points.escape_threshold:.3f} for all classes. Here it gives: {_describe_images(level)}."
    )


def _duplicates_line(report: Report) -> str:
    duplicates, rule = report.duplicates, report.operating_points.nms
    if duplicates.rate_before is None:
        return ""
    before = (
        f"Duplicates: {count('detection', duplicates.num_before)} ({duplicates.rate_before:.1%}) on a box "
        f"that a better detection hits"
    )
    if rule == NmsRule():
        return f"{before}; NMS is off."
    ap50 = "" if duplicates.ap50 is None else f", and mAP50 is {duplicates.ap50:.3f}"
    return f"{before}. With NMS ({rule.describe()}), {duplicates.num_after} remain{ap50}."
