"""From a trained detector and a split to operating points and a report."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from deim.config.loader import option_values
from deim.data.formats.split import CocoSplit
from deim.data.splits import read_split
from deim.engine.task import load_task, report_function
from deim.engine.trained_detector import TrainedDetector, store_operating_points
from deim.engine.validation import Validation
from deim.errors import DataError
from deim.files import sha256_of_file
from deim.inference.evaluator import EvaluationResult, Evaluator, build_evaluator
from deim.inference.operating_points import OperatingPoints, candidate_rules
from deim.inference.predictor import match_config, stored_points
from deim.metrics.assignment import compute_overlaps
from deim.metrics.choose_thresholds import choose_operating_points
from deim.metrics.coco import compute_coco_metrics, worst_class
from deim.metrics.convergence import read_convergence
from deim.metrics.image_level import count_images
from deim.records import to_json
from deim.report.build import ReportInputs, installed_versions
from deim.report.files import ImageFolder, prediction_sheet, write_report_files
from deim.report.schema import (
    CheckpointInfo,
    DatasetInfo,
    ModelInfo,
    Provenance,
    Report,
    TimePerImage,
    check_report_path,
)

logger = logging.getLogger(__name__)

VAL = "val"
"""Split that thresholds are chosen on."""


def evaluate_run(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, report_path: Path
) -> Report:
    """Evaluate a detector of any task on a split and write its report, as `evaluate_checkpoint` does."""
    evaluate = report_function(trained.task, "evaluate_checkpoint", evaluate_checkpoint)
    report: Report = evaluate(trained, evaluator, split_name=split_name, report_path=report_path)
    return report


def evaluate_share(trained: TrainedDetector, evaluator: Evaluator) -> None:
    """Do a process's share of `evaluate_run` in the main process, with the same detector and split."""
    share = report_function(
        trained.task, "evaluate_share", lambda trained, evaluator: evaluator.evaluate(trained.model)
    )
    share(trained, evaluator)


def evaluate_checkpoint(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, report_path: Path
) -> Report:
    """Evaluate a trained detector on a split and write its report.

    On the run's own validation split the operating points are chosen anew and stored in the checkpoint. On
    any other split, and on other data, the stored ones hold. If there are none, or they were chosen for
    another goal or other inputs, they are chosen on the validation split that the config names; the
    checkpoint is only changed if that is the run's own and there were none.

    Args:
        trained: From `load_trained`.
        evaluator: Evaluator of the split.
        split_name: `train`, `val` or `test`.
        report_path: The JSON report; the other files lie beside it, see `deim.report.files`.

    Raises:
        DataError: If an image is damaged, or `report_path` is a folder.
    """
    check_report_path(report_path)
    return write_report_files(evaluate_split(trained, evaluator, split_name=split_name), report_path)


def evaluate_split(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, store_points: bool = True
) -> ReportInputs:
    """Evaluate as `evaluate_checkpoint`, without a report; new points are stored only with `store_points`."""
    is_val = split_name == VAL
    is_run_val = is_val and trained.is_run_split(evaluator.split, VAL)
    points = None if is_run_val else _points_that_hold(trained)
    result = evaluator.evaluate(trained.model)
    if points is None:
        val, val_result = (evaluator, result) if is_val else _evaluate_val(trained)
        points = _choose(trained, val, val_result)
        if store_points and (is_run_val or trained.operating_points is None):
            _store(trained, points, val.split)
    log = trained.path.parent / "metrics.jsonl"
    return ReportInputs(
        ground_truth=result.ground_truth,
        detections=result.detections,
        points=points,
        provenance=_provenance(trained, evaluator, result, split_name),
        num_resamples=trained.config.evaluation.bootstrap_resamples,
        convergence=read_convergence(log, planned_epochs=trained.config.epochs),
    )


def default_report_path(trained: TrainedDetector, split: CocoSplit, split_name: str) -> Path:
    """Return where the report on a split goes: beside the checkpoint, by another name for other data."""
    is_of_run = trained.is_run_split(split, split_name)
    suffix = "" if is_of_run else f"_{Path(trained.config.data.root).absolute().name}"
    return trained.path.parent / f"evaluation_{split_name}{suffix}.json"


def _points_that_hold(trained: TrainedDetector) -> OperatingPoints | None:
    """Return the stored operating points if they are of the goal and the inputs that the config asks for."""
    stored = stored_points(trained)
    is_valid = stored is not None and match_config(stored, trained.config) and not trained.changed_inputs
    return stored if is_valid else None


def _evaluate_val(trained: TrainedDetector) -> tuple[Evaluator, EvaluationResult]:
    """Evaluate a detector on the validation split that its config names."""
    logger.info("%s: no thresholds for this goal, input and data, choosing them on val first", trained.path)
    try:
        split = read_split(trained.config.data, VAL)
    except DataError as error:
        raise DataError(
            f"{trained.path}: holds no thresholds for this goal, input and data, and there is no validation "
            f"split to choose them on. Name the best.pth of a finished run, or solve this problem:\n{error}"
        ) from None
    evaluator = build_evaluator(trained, split)
    return evaluator, evaluator.evaluate(trained.model)


def _choose(trained: TrainedDetector, evaluator: Evaluator, result: EvaluationResult) -> OperatingPoints:
    """Choose the operating points that the config asks for, on the validation split."""
    options = trained.config.evaluation
    return choose_operating_points(
        result.ground_truth,
        result.detections,
        goal=options.goal,
        rules=candidate_rules(options.nms),
        split_name=VAL,
        annotations_sha256=evaluator.split.annotations_sha256(),
        default_threshold=options.draw_threshold,
        max_escape_rate=options.max_escape_rate,
    )


def _store(trained: TrainedDetector, points: OperatingPoints, split: CocoSplit) -> None:
    """Store operating points in the checkpoint if the split they were chosen on is the run's own."""
    content = to_json(points)
    if content == trained.operating_points:
        return
    if not trained.is_run_split(split, VAL):
        problem: str | None = "they were chosen on other data than the run's validation split"
    elif not split.count_boxes().trainable:
        problem = "no image of the validation split has a box"
    else:
        problem = store_operating_points(trained, content)
    if problem:
        logger.warning("%s: thresholds not stored, %s", trained.path, problem)
    else:
        logger.info("%s: thresholds stored: %s", trained.path, points.describe_origin())


def _provenance(
    trained: TrainedDetector, evaluator: Evaluator, result: EvaluationResult, split_name: str
) -> Provenance:
    config, split, truth = trained.config, evaluator.split, result.ground_truth
    boxes_per_image = np.bincount(truth.image[~truth.is_crowd], minlength=truth.num_images)
    limit = min(evaluator.max_detections, evaluator.counted_detections)
    return Provenance(
        split=split_name,
        dataset=DatasetInfo(
            annotations_file=split.annotations_path.name,
            sha256=split.annotations_sha256(),
            image_dir=str(split.image_dir),
            normal_class=config.data.normal_class,
            box_counts=split.count_boxes(),
        ),
        checkpoint=CheckpointInfo(
            path=str(trained.path),
            sha256=sha256_of_file(trained.path),
            epoch=trained.epoch,
            weights=trained.weights,
        ),
        model=ModelInfo(
            name=load_task(trained.task).describe_model(config),
            parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        ),
        image_size_hw=config.image_size_hw,
        resize=config.data.resize,
        tiles=config.data.tiles,
        time_per_image_ms=TimePerImage(
            network=result.network_ms,
            total=result.total_ms,
            latency=evaluator.measure_latency_ms(trained.model),
        ),
        device=str(trained.device),
        versions=installed_versions(),
        max_detections=evaluator.max_detections,
        options=option_values(config),
        counted_detections=evaluator.counted_detections,
        overfull_images=int((boxes_per_image > limit).sum()),
    )


def to_validation(
    result: EvaluationResult, image: Image.Image | None = None, *, score_threshold: float = 0.0
) -> Validation:
    """Return what the trainer needs of an evaluation.

    Args:
        result: Of the validation split.
        image: For TensorBoard.
        score_threshold: Lowest score of the detections that escapes and overkill count.
    """
    metrics = compute_coco_metrics(
        result.ground_truth, result.detections, max_detections=result.max_detections
    )
    worst = worst_class(metrics)
    kept = result.detections.take(result.detections.score >= score_threshold)
    level = count_images(compute_overlaps(result.ground_truth, kept))
    return Validation(
        ap=metrics.summary.ap,
        ap50=metrics.summary.ap50,
        worst_class=None if worst is None else worst.name,
        worst_class_ap50=None if worst is None else worst.ap50,
        summary=to_json(metrics.summary),
        class_ap50={row.name: row.ap50 for row in metrics.classes},
        class_ap={row.name: row.ap for row in metrics.classes},
        escape_rate=level.escape_rate,
        overkill_rate=level.overkill_rate,
        loss=result.loss,
        image=None if image is None else np.asarray(image),
    )


def validation_sheet(
    result: EvaluationResult, evaluator: Evaluator, *, score_threshold: float
) -> Image.Image:
    """Draw some images of a validation during training, when no thresholds have been chosen yet."""
    images = ImageFolder(evaluator.split.image_dir, result.ground_truth.file_names)
    kept = result.detections.take(result.detections.score >= score_threshold)
    title = f"validation, score >= {score_threshold:.2f}"
    return prediction_sheet(result.ground_truth, kept, images=images, title=title)
