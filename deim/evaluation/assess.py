"""From a checkpoint and a split to a report and a picture."""

import datetime
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deim.boxes import xywh_to_xyxy
from deim.data.coco import CocoSplit
from deim.data.transforms import read_image
from deim.engine.checkpoint import TrainedDetector
from deim.engine.run_state import Validation
from deim.errors import DataError
from deim.evaluation.coco_metrics import CocoMetrics, worst_class
from deim.evaluation.evaluator import Evaluation, Evaluator
from deim.evaluation.plots import SheetEntry, contact_sheet
from deim.evaluation.report import (
    CheckpointInfo,
    DatasetInfo,
    ModelInfo,
    TimePerImage,
    build_report,
    installed_versions,
    sha256_of_file,
    write_report,
)

SHEET_SAMPLES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What `assess` found and wrote."""

    evaluation: Evaluation
    report_path: Path
    sheet_path: Path


def assess(
    trained: TrainedDetector,
    evaluator: Evaluator,
    *,
    split_name: str,
    report_path: Path,
) -> Assessment:
    """Score a trained detector on a split, write the report and a contact sheet of predictions.

    Args:
        trained: The detector.
        evaluator: Of the split to score on.
        split_name: `train`, `val` or `test`, for the report.
        report_path: The report; the picture gets its name with `_predictions.png`.

    Raises:
        DataError: If an image is damaged, or `report_path` is a folder.
    """
    config, split = trained.config, evaluator.split
    report_path.parent.mkdir(parents=True, exist_ok=True)
    if report_path.is_dir():
        raise DataError(f"{report_path}: is a folder. Give the report the name of a file.")
    evaluation = evaluator.evaluate(trained.model)
    seconds = evaluation.predictions
    report = build_report(
        evaluation.metrics,
        created=datetime.datetime.now(datetime.UTC),
        split=split_name,
        dataset=DatasetInfo(
            annotations_file=split.annotations_path.name, sha256=sha256_of_file(split.annotations_path)
        ),
        checkpoint=CheckpointInfo(
            path=str(trained.path),
            sha256=sha256_of_file(trained.path),
            epoch=trained.epoch,
            weights=trained.weights,
        ),
        model=ModelInfo(
            name=config.model.name,
            parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        ),
        image_size_hw=config.image_size_hw,
        resize=config.data.resize,
        time_per_image_ms=TimePerImage(
            network=1000 * seconds.network_seconds / len(split),
            total=1000 * seconds.total_seconds / len(split),
        ),
        device=str(trained.device),
        versions=installed_versions(),
        max_detections=evaluator.max_detections,
    )
    write_report(report, report_path)
    sheet_path = report_path.with_name(f"{report_path.stem}_predictions.png")
    sheet = prediction_sheet(
        evaluation,
        split,
        class_names=trained.class_names,
        title=f"{config.model.name}, epoch {trained.epoch + 1}: {split_name}",
        score_threshold=config.evaluation.draw_threshold,
    )
    sheet.save(sheet_path)
    return Assessment(evaluation=evaluation, report_path=report_path, sheet_path=sheet_path)


def prediction_sheet(
    evaluation: Evaluation,
    split: CocoSplit,
    *,
    class_names: tuple[str, ...],
    title: str,
    score_threshold: float,
) -> Image.Image:
    """Draw ground truth and predictions of a fixed random choice of images.

    Args:
        evaluation: Of the split.
        split: Where the images are.
        class_names: The detector's classes, by index.
        title: First line of the sheet.
        score_threshold: Detections with a lower score are not drawn.
    """
    chosen = random.Random(0).sample(range(len(split)), min(SHEET_SAMPLES, len(split)))
    index_of_id = {category_id: index for index, category_id in enumerate(evaluation.category_ids)}
    samples = []
    for index in sorted(chosen):
        rows = slice(split.first_box[index], split.first_box[index + 1])
        boxes = torch.from_numpy(split.boxes_xywh[rows]).float()
        image = read_image(split.image_path(index))
        samples.append(
            SheetEntry(
                image=Image.fromarray(image.permute(1, 2, 0).numpy()),
                caption=split.file_names[index],
                boxes_xyxy=xywh_to_xyxy(boxes),
                labels=torch.tensor(
                    [index_of_id[int(category)] for category in split.box_category_ids[rows]],
                    dtype=torch.int64,
                ),
                detections=evaluation.predictions.by_image[int(split.image_ids[index])],
            )
        )
    return contact_sheet(samples, title=title, class_names=class_names, score_threshold=score_threshold)


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
        picture=None if picture is None else np.asarray(picture),
    )
