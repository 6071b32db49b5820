"""Detect defects in images: write COCO results and a copy of each image with its boxes.

Example:
  deim predict outputs/quickstart/best.pth data/quickstart/images --output outputs/predictions
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from deim.cli.arguments import add_override_argument, new_parser
from deim.errors import ConfigError, DataError

if TYPE_CHECKING:
    from deim.inference.predictor import Predictor


def build_parser() -> ArgumentParser:
    """Return the parser of `deim predict`."""
    parser = new_parser("predict", __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="Checkpoint of a run, such as best.pth.")
    add("images", type=Path, help="An image, or a folder of images.")
    add("--output", type=Path, default=Path("outputs/predictions"), help="Folder to write to.")
    what = "COCO file: predict only the images that it lists, with their ids; without it, ids count from 1."
    add("--annotations", type=Path, help=what)
    what = "Lowest score of a detection, 0 for raw detections; without it, the thresholds in the checkpoint."
    add("--score-threshold", type=float, help=what)
    add_override_argument(parser, "runtime.device=cpu evaluation.draw_threshold=0.3")
    return parser


def run(args: Namespace) -> None:
    """Write `predictions.json` and an annotated copy of each image."""
    from deim.data.images.load import read_preview
    from deim.data.images.read import IMAGE_SUFFIXES
    from deim.engine.trained_detector import load_trained
    from deim.files import count, write_text
    from deim.inference.detection_table import DetectionTable
    from deim.inference.predictor import Predictor
    from deim.report.draw import detections_panel, draw_panel

    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold: got {args.score_threshold:g}, needs [0, 1]")
    paths = list_images(args.images)
    image_ids = number_images(paths, args.annotations)
    predictor = Predictor(load_trained(args.checkpoint, overrides=args.set))
    predictions = predictor.predict(list(image_ids), score_threshold=args.score_threshold)
    # A separate folder: the annotated copies have the names of the images and must never replace them.
    folder = args.output / "annotated"
    folder.mkdir(parents=True, exist_ok=True)
    # Hundreds of raw detections, which --score-threshold 0 keeps, would cover the image.
    draw_from = 0.0 if args.score_threshold is None else predictor.trained.config.evaluation.draw_threshold
    for path, detections in zip(image_ids, predictions, strict=True):
        shown = detections.take(detections.scores >= draw_from)
        panel = detections_panel(shown, class_names=predictor.class_names)
        annotated = draw_panel(read_preview(path), panel)
        annotated.save(folder / (path.name if path.suffix.lower() in IMAGE_SUFFIXES else f"{path.name}.png"))
    class_names = dict(zip(predictor.category_ids, predictor.class_names, strict=True))
    file_names = {image_id: path.name for path, image_id in image_ids.items()}
    table = DetectionTable.from_detections(dict(enumerate(predictions)))
    results = [
        {**row, "file_name": file_names[row["image_id"]], "category_name": class_names[row["category_id"]]}
        for row in table.to_coco(list(image_ids.values()), predictor.category_ids)
    ]
    results_path = args.output / "predictions.json"
    write_text(results_path, json.dumps(results, indent=1))
    print(f"{count('detection', len(results))} in {count('image', len(image_ids))}")
    print(f"kept       {describe_thresholds(predictor, args.score_threshold)}")
    if len(image_ids) < len(paths):
        skipped = count("image", len(paths) - len(image_ids))
        print(f"skipped    {skipped} that {args.annotations} does not list")
    print(f"results    {results_path}\nannotated  {folder}")


def list_images(path: Path) -> list[Path]:
    """Return the image, or the images of a folder sorted by name.

    Raises:
        DataError: If there is none.
    """
    from deim.data.images.read import IMAGE_SUFFIXES

    if path.is_file():
        return [path]
    images = sorted(entry for entry in path.glob("*") if entry.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(
            f"{path}: there is no image. Give an image, or a folder of {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return images


def number_images(paths: list[Path], annotations: Path | None) -> dict[Path, int]:
    """Return an image id for each path: 1, 2, 3, …, or the ids of a COCO file for the images that it lists.

    Raises:
        DataError: If the COCO file cannot be read or lists none of the images.
    """
    if annotations is None:
        return {path: number for number, path in enumerate(paths, start=1)}
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        ids = {Path(image["file_name"]).name: int(image["id"]) for image in images}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{annotations}: not a readable COCO file ({error!r}).") from None
    listed = {path: ids[path.name] for path in paths if path.name in ids}
    if not listed:
        raise DataError(
            f"{annotations}: lists none of the {len(paths)} images, such as {paths[0].name!r}. Give images "
            f"that it lists, or leave out --annotations."
        )
    return listed


def describe_thresholds(predictor: "Predictor", score_threshold: float | None) -> str:
    """Say in a line which detections were kept."""
    if score_threshold is not None:
        return f"every score from {score_threshold:g}"
    points = predictor.operating_points
    if points is None:
        threshold = predictor.trained.config.evaluation.draw_threshold
        return (
            f"every score from {threshold:g}: the checkpoint has no thresholds yet, `deim evaluate` chooses "
            f"them on the validation split"
        )
    thresholds = ", ".join(f"{entry.name} {entry.threshold:.3f}" for entry in points.classes)
    rest = f"{thresholds}; NMS: {points.nms.describe()}"
    return points.default_reason or f"thresholds for {points.describe_origin()}: {rest}"
