"""From a trained detector and a split to operating points and a report."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deim.data.formats.coco import to_split
from deim.data.options import DataOptions
from deim.data.splits import read_raw_split, read_split
from deim.engine.checkpoints import TrainedDetector, store_operating_points
from deim.engine.validation import Validation
from deim.errors import DataError
from deim.files import sha256_of_file
from deim.inference.detection_table import SplitResults, split_results
from deim.inference.evaluator import Evaluation, Evaluator, evaluator_of
from deim.inference.nms import candidate_rules
from deim.inference.predictor import is_asked_for, stored_points
from deim.metrics.choose_thresholds import OperatingPoints, choose_operating_points
from deim.metrics.coco import CocoMetrics, worst_class
from deim.metrics.convergence import analyze_convergence, read_curve
from deim.report.build import convergence_entry
from deim.report.files import (
    ImageFolder,
    ReportFiles,
    Scored,
    check_report_path,
    prediction_sheet,
    write_report_files,
)
from deim.report.provenance import (
    CheckpointInfo,
    DatasetInfo,
    ModelInfo,
    Provenance,
    TimePerImage,
    installed_versions,
)

logger = logging.getLogger(__name__)

VAL = "val"
"""The split that thresholds are chosen on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What `assess` found and wrote."""

    evaluation: Evaluation
    report: dict[str, Any]
    """See `report.REPORT_KEYS`."""
    files: ReportFiles
    """Where it lies, with all that belongs to it."""


def assess(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, report_path: Path
) -> Assessment:
    """Score a trained detector on a split and write its report.

    On the validation split the operating points are chosen anew and stored in the checkpoint. On any other
    the stored ones hold. If there are none, they are chosen first; if they were chosen for another goal or on
    another annotation file than the config says, others are chosen for this report alone.

    Args:
        trained: The detector.
        evaluator: Of the split to score on.
        split_name: `train`, `val` or `test`, for the report.
        report_path: The JSON report; the other files lie beside it, see `report_files`.

    Raises:
        DataError: If an image is damaged, or `report_path` is a folder.
    """
    check_report_path(report_path)
    evaluation, scored = score(trained, evaluator, split_name=split_name)
    report = write_report_files(scored, report_path)
    return Assessment(evaluation=evaluation, report=report, files=ReportFiles(report=report_path))


def score(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, store_points: bool = True
) -> tuple[Evaluation, Scored]:
    """Score a trained detector on a split, with operating points chosen as by `assess`; write no report.

    Args:
        trained: The detector.
        evaluator: Of the split to score on.
        split_name: `train`, `val` or `test`, for the report.
        store_points: Write new operating points into the checkpoint.

    Raises:
        DataError: If an image is damaged.
    """
    points = None if split_name == VAL else _points_for(trained, store=store_points)
    evaluation = evaluator.evaluate(trained.model)
    if points is None:
        points = _choose(trained, evaluator, evaluation)
        if store_points:
            _store(trained, points)
    return evaluation, Scored(
        metrics=evaluation.metrics,
        ground_truth=evaluation.ground_truth,
        predictions=evaluation.results,
        points=points,
        provenance=_provenance(trained, evaluator, evaluation, split_name),
        num_resamples=trained.config.evaluation.bootstrap_resamples,
        convergence=_convergence(trained),
    )


def results_of(evaluation: Evaluation, *, normal_class: str | None) -> SplitResults:
    """The arrays of an evaluation, for analyzes.

    Args:
        evaluation: Of a split.
        normal_class: Name of the class that marks a good surface.
    """
    return split_results(evaluation.ground_truth, evaluation.results, normal_class=normal_class)


def _points_for(trained: TrainedDetector, *, store: bool) -> OperatingPoints:
    """Operating points for another split than the validation split."""
    config = trained.config
    stored = stored_points(trained)
    if stored is not None and is_asked_for(stored, config) and not trained.changed_inputs:
        if _sha256_of_val(config.data) in (None, stored.annotations_sha256):
            return stored
        logger.warning("%s: its thresholds were chosen on other annotations of val", trained.path)
    logger.info("%s: no thresholds for this goal, input and data, choosing them on val first", trained.path)
    try:
        split = read_split(config.data, VAL)
    except DataError as error:
        raise DataError(
            f"{trained.path}: holds no thresholds for this goal, input and data, and there is no validation "
            f"split to choose them on. Name the best.pth of a finished run, or mend this:\n{error}"
        ) from None
    evaluator = evaluator_of(trained, split)
    points = _choose(trained, evaluator, evaluator.evaluate(trained.model))
    if stored is None and store:
        _store(trained, points)
    return points


def _sha256_of_val(config: DataOptions) -> str | None:
    """Of the validation split's annotations; None if it is not here."""
    try:
        if config.format == "coco":
            return sha256_of_file(Path(config.root) / config.val_annotations)
        return to_split(read_raw_split(config, VAL)).annotations_sha256()
    except (DataError, OSError):
        return None


def _choose(trained: TrainedDetector, evaluator: Evaluator, evaluation: Evaluation) -> OperatingPoints:
    """Choose the operating points that the config asks for, on the validation split."""
    options = trained.config.evaluation
    return choose_operating_points(
        results_of(evaluation, normal_class=trained.config.data.normal_class),
        goal=options.goal,
        rules=candidate_rules(options.nms),
        split_name=VAL,
        annotations_sha256=evaluator.split.annotations_sha256(),
        default_threshold=options.draw_threshold,
        max_escape_rate=options.max_escape_rate,
    )


def _store(trained: TrainedDetector, points: OperatingPoints) -> None:
    if points.to_dict() == trained.operating_points:
        return
    problem = store_operating_points(trained, points.to_dict())
    if problem:
        logger.warning("%s: thresholds not stored, %s", trained.path, problem)
    else:
        logger.info("%s: thresholds stored, chosen on val for %s", trained.path, points.goal)


def _provenance(
    trained: TrainedDetector, evaluator: Evaluator, evaluation: Evaluation, split_name: str
) -> Provenance:
    config, split, seconds = trained.config, evaluator.split, evaluation.predictions
    return Provenance(
        split=split_name,
        dataset=DatasetInfo(
            annotations_file=split.annotations_path.name,
            sha256=split.annotations_sha256(),
            image_dir=str(split.image_dir),
            normal_class=config.data.normal_class,
        ),
        checkpoint=CheckpointInfo(
            path=str(trained.path),
            sha256=sha256_of_file(trained.path),
            epoch=trained.epoch,
            weights=trained.weights,
        ),
        model=ModelInfo(
            name=_model_name(trained),
            parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        ),
        image_size_hw=config.image_size_hw,
        resize=config.data.resize,
        tiles=None if config.data.tiles is None else asdict(config.data.tiles),
        time_per_image_ms=TimePerImage(
            network=1000 * seconds.network_seconds / len(split),
            total=1000 * seconds.total_seconds / len(split),
        ),
        device=str(trained.device),
        versions=installed_versions(),
        max_detections=evaluator.max_detections,
    )


def _model_name(trained: TrainedDetector) -> str:
    name = trained.config.model.name
    return name if trained.task == "detection" else f"{name} with {trained.task.replace('_', ' ')}"


def _convergence(trained: TrainedDetector) -> dict[str, Any] | None:
    """Of the run whose folder the checkpoint lies in, if its log is there too."""
    log = trained.path.parent / "metrics.jsonl"
    if not log.is_file():
        return None
    curve = read_curve(log)
    found = analyze_convergence(curve, trained.timeline, planned_epochs=trained.config.epochs)
    return None if found is None else convergence_entry(found, curve)


def to_validation(metrics: CocoMetrics, picture: Image.Image | None = None) -> Validation:
    """What the trainer needs to know of an evaluation.

    Args:
        metrics: Of the evaluation.
        picture: Some images with their predictions, for TensorBoard.
    """
    summary = metrics.summary
    worst = worst_class(metrics)
    return Validation(
        ap=summary.ap,
        ap50=summary.ap50,
        worst_class=None if worst is None else worst.name,
        worst_class_ap50=None if worst is None else worst.ap50,
        summary={name: getattr(summary, name) for name in summary.__dataclass_fields__},
        class_ap50={row.name: row.ap50 for row in metrics.classes},
        image=None if picture is None else np.asarray(picture),
    )


def validation_sheet(evaluation: Evaluation, evaluator: Evaluator, *, score_threshold: float) -> Image.Image:
    """Draw some images of a validation during training, when no thresholds have been chosen yet.

    Args:
        evaluation: Of the split.
        evaluator: Of the same split.
        score_threshold: Detections with a lower score are left out.
    """
    results = results_of(evaluation, normal_class=None)
    images = ImageFolder(evaluator.split.image_dir, results.file_names)
    shown = results.with_found(results.found.scores >= score_threshold)
    return prediction_sheet(shown, images.read, title=f"validation, score >= {score_threshold:.2f}")
