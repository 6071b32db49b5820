"""The numbers of an ablation as tables for the console."""

from deim.report.tables import DASH, format_table
from multimodal.ablation.schema import Ablation, Score
from multimodal.ablation.verdict import Delta


def format_models(ablation: Ablation) -> str:
    """Format a row for each model: mAP50 with interval and seeds, and the lead of the real text."""
    rows = [
        [
            model.description,
            *_score_cells(model.ap50),
            ", ".join(map(_number, model.ap50_of_seeds)),
            "" if model.name == "text" else _delta(model.text_delta),
        ]
        for model in ablation.models
    ]
    return format_table(["model", "mAP50", "95 % interval", "seeds", "real text above it"], rows)


def format_classes(ablation: Ablation) -> str:
    """Format a row for each class: AP50 by each model."""
    models = ablation.models
    rows = [
        [row.name, *(_number(model.classes[label].ap50.value) for model in models)]
        for label, row in enumerate(models[0].classes)
    ]
    return format_table(["AP50", *(model.name for model in models)], rows)


def _score_cells(score: Score) -> tuple[str, str]:
    ends = score.interval
    return _number(score.value), DASH if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _delta(delta: Delta | None) -> str:
    return DASH if delta is None else f"{delta.value:+.3f} ({delta.low:+.3f} to {delta.high:+.3f})"


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"
