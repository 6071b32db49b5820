"""What a report says, in sentences."""

from collections.abc import Mapping
from typing import Any

from deim.inference.nms import NmsRule


def describe_report(report: Mapping[str, Any]) -> list[str]:
    """What a report says, in sentences for the console and the page.

    Args:
        report: From `build_report`.
    """
    return [
        line
        for line in (
            _map_line(report),
            _points_line(report),
            _parts_line(report),
            _escape_line(report),
            _confusion_line(report),
            _duplicates_line(report),
            *(report["fusion"] or {"in_words": []})["in_words"],
        )
        if line
    ]


def _map_line(report: Mapping[str, Any]) -> str:
    ap50, num_images = report["summary"]["ap50"], report["dataset"]["num_images"]
    if ap50 is None:
        return f"No AP: the split has no ground-truth box ({num_images} images)."
    ends = report["intervals"] and report["intervals"]["ap50"]
    spread = f", {report['intervals']['level']:.0%} interval {ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
    return (
        f"mAP50 {ap50:.3f}{spread}; mAP {report['summary']['ap']:.3f} "
        f"(n = {num_images} images, {report['dataset']['num_boxes']} boxes)."
    )


def _points_line(report: Mapping[str, Any]) -> str:
    points = report["operating_points"]
    counts = points["all_classes"]
    rates = ", ".join(
        f"{name} {counts[key]:.3f}"
        for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
        if counts[key] is not None
    )
    return (
        f"At the operating points ({points['goal']}, chosen on {points['chosen_on']}, "
        f"{points['num_images']} images): {counts['num_right']} of {counts['num_truth']} boxes found, "
        f"{counts['num_false']} false boxes{f'; {rates}' if rates else ''}."
    )


def _parts_line(report: Mapping[str, Any]) -> str:
    found = report["image_level"]["at_operating_points"]
    return f"Parts: {_parts(found)}."


def _parts(found: Mapping[str, Any]) -> str:
    parts = []
    if found["num_defective"]:
        parts.append(
            f"escape rate {found['escape_rate']:.1%} ({found['num_escaped']} of {found['num_defective']} "
            f"defective images without a hit, {found['num_unmarked']} without any box)"
        )
    else:
        parts.append("no defective image, so no escape rate")
    if found["num_good"]:
        parts.append(
            f"overkill rate {found['overkill_rate']:.1%} ({found['num_overkilled']} of {found['num_good']} "
            f"good images), {found['false_boxes_per_good_image']:.2f} false boxes a good image"
        )
    else:
        parts.append("no good image, so no overkill rate")
    return "; ".join(parts)


def _escape_line(report: Mapping[str, Any]) -> str:
    points = report["operating_points"]
    limit = f"{points['max_escape_rate']:.1%}"
    found = report["image_level"]["at_escape_threshold"]
    if found is None:
        lowest = points["lowest_escape_rate"]
        why = (
            "there is no defective image"
            if lowest is None
            else f"even with all detections {lowest:.1%} escape"
        )
        return f"No threshold keeps escapes to {limit} on {points['chosen_on']}: {why}."
    return (
        f"For escapes of at most {limit} on {points['chosen_on']}, the threshold of all classes is "
        f"{points['escape_threshold']:.3f}; here it gives {_parts(found)}."
    )


def _confusion_line(report: Mapping[str, Any]) -> str:
    pair = report["confusion"]["most_confused"]
    return f"Most confused: {pair}." if pair else "No box was taken for another class."


def _duplicates_line(report: Mapping[str, Any]) -> str:
    found, rule = report["duplicates"], NmsRule(**report["operating_points"]["nms"])
    if found["rate_before"] is None:
        return ""
    before = f"Duplicates: {found['num_before']} of the detections ({found['rate_before']:.1%})"
    if rule == NmsRule():
        return f"{before}; no nms."
    ap50 = "" if found["ap50"] is None else f"; mAP50 with it {found['ap50']:.3f}"
    return f"{before}, {found['num_after']} with nms ({rule.describe()}){ap50}."
