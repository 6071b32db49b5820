"""What a report says, in sentences."""

from deim.inference.operating_points import NmsRule
from deim.language import ENGLISH, Language
from deim.metrics.image_level import ImageLevel
from deim.report.schema import Report


def describe_report(report: Report, language: Language = ENGLISH) -> list[str]:
    """Return the main results as sentences for the console and the page."""
    points, data = report.operating_points, describe_data(report, language)
    parts = _describe_images(report.image_level.at_operating_points, language)
    lines = (
        language.text("Data of {split}: {data}.", split=report.provenance.split, data=data),
        language.sentence(points.default_reason or ""),
        _overfull_line(report, language),
        _points_line(report, language),
        language.text("Parts: {parts}.", parts=parts),
        _escape_line(report, language),
        report.confusion.describe(language),
        _duplicates_line(report, language),
        _map_line(report, language),
        *map(language.sentence, report.task_section.summary if report.task_section else ()),
    )
    return [line for line in lines if line]


def _map_line(report: Report, language: Language) -> str:
    ap50, ap = report.summary.ap50, report.summary.ap
    images, boxes = language.count("image", report.num_images), language.count("box", report.num_boxes)
    if ap50 is None:
        return language.text("No AP: the split has no ground-truth box ({images}).", images=images)
    spread = ""
    if report.intervals and report.intervals.ap50:
        ends = report.intervals.ap50
        level = language.percent(report.intervals.level, 0)
        spread = language.text(
            ", {level} interval {low:.3f} to {high:.3f}", level=level, low=ends.low, high=ends.high
        )
    return language.text(
        "COCO, all raw detections before NMS and thresholds: mAP50 {ap50:.3f}{spread}; mAP {ap:.3f} "
        "(n = {images}, {boxes}).",
        ap50=ap50,
        spread=spread,
        ap=ap,
        images=images,
        boxes=boxes,
    )


def describe_data(report: Report, language: Language = ENGLISH) -> str:
    """Return the account of the images and boxes of the split; shorter for a report of an older version."""
    counts = report.provenance.dataset.box_counts
    if counts is not None:
        return counts.describe(language)
    return language.text(
        "{images} ({empty} without boxes), {boxes}",
        images=language.count("image", report.num_images),
        empty=report.num_images_without_boxes,
        boxes=language.count("box", report.num_boxes),
    )


def _overfull_line(report: Report, language: Language) -> str:
    source = report.provenance
    if not source.overfull_images:
        return ""
    return language.text(
        "{images} of the split with more boxes than detections: at most {made} are made for an image "
        "(model.decoder.num_queries) and {counted} of a class counted (evaluation.max_detections). The rest "
        "is missed.",
        images=language.count("image", source.overfull_images),
        made=source.max_detections,
        counted=source.counted_detections,
    )


def _points_line(report: Report, language: Language) -> str:
    points, counts = report.operating_points, report.counts
    rates = "".join(
        f", {language.text(name)} {value:.3f}"
        for name, value in (("precision", counts.precision), ("recall", counts.recall), ("F1", counts.f1))
        if value is not None
    )
    return language.text(
        "At the operating points ({origin}, {images}): {tp} of {boxes} found, {false_boxes}{rates}.",
        origin=points.describe_origin(language),
        images=language.count("image", points.num_images),
        tp=counts.tp,
        boxes=language.count("box", counts.num_boxes),
        false_boxes=language.count("false box", counts.fp),
        rates=rates,
    )


def _describe_images(level: ImageLevel, language: Language) -> str:
    escapes = language.text("no defective image, so no escape rate")
    if level.escape_rate is not None:
        escapes = language.text(
            "escape rate {rate} ({number} of {images} without a hit, {unmarked} without any box)",
            rate=language.percent(level.escape_rate),
            number=level.num_escaped,
            images=language.count("defective image", level.num_defective),
            unmarked=level.num_unmarked,
        )
    overkill = language.text("no good image, so no overkill rate")
    if level.overkill_rate is not None:
        overkill = language.text(
            "overkill rate {rate} ({number} of {images}), {false_boxes:.2f} false boxes per good image",
            rate=language.percent(level.overkill_rate),
            number=level.num_overkilled,
            images=language.count("good image", level.num_good),
            false_boxes=level.fp_per_good_image,
        )
    return f"{escapes}; {overkill}"


def _escape_line(report: Report, language: Language) -> str:
    points, level = report.operating_points, report.image_level.at_escape_threshold
    limit, split = language.percent(points.max_escape_rate), points.chosen_on
    if points.default_reason is not None:
        return ""
    if points.lowest_escape_rate is None:
        return language.text(
            "No threshold for an escape rate of {limit} or less: {split} has no defective image.",
            limit=limit,
            split=split,
        )
    if level is None:
        return language.text(
            "No threshold gives an escape rate of {limit} or less on {split}: even if every detection is "
            "kept, it is {lowest}.",
            limit=limit,
            split=split,
            lowest=language.percent(points.lowest_escape_rate),
        )
    return language.text(
        "To let at most {limit} of the defective images of {split} escape, use the threshold "
        "{threshold:.3f} for all classes. Here it gives: {result}.",
        limit=limit,
        split=split,
        threshold=points.escape_threshold,
        result=_describe_images(level, language),
    )


def _duplicates_line(report: Report, language: Language) -> str:
    duplicates, rule = report.duplicates, report.operating_points.nms
    if duplicates.rate_before is None:
        return ""
    before = language.text(
        "Duplicates: {detections} ({rate}) on a box that a better detection hits",
        detections=language.count("detection", duplicates.num_before),
        rate=language.percent(duplicates.rate_before),
    )
    if rule == NmsRule():
        return language.text("{before}; NMS is off.", before=before)
    ap50 = ""
    if duplicates.ap50 is not None:
        ap50 = language.text(", and mAP50 is {ap50:.3f}", ap50=duplicates.ap50)
    return language.text(
        "{before}. With NMS ({rule}), {after} remain{ap50}.",
        before=before,
        rule=rule.describe(language),
        after=duplicates.num_after,
        ap50=ap50,
    )
