"""Detect defects in images: COCO results and drawn pictures.

python tools/predict.py outputs/quickstart/best.pth data/quickstart/images --output outputs/predictions
"""

import argparse
import json
import sys
from pathlib import Path

from deim.data.images.load import read_preview
from deim.errors import ConfigError, DataError, DeimError
from deim.inference.detection_table import DetectionTable
from deim.inference.predictor import Predictor, above
from deim.report.draw import draw_detections
from multimodal.task import load_trained

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def list_images(path: Path) -> list[Path]:
    """The image itself, or the images of a folder by name.

    Args:
        path: A file or a folder.

    Raises:
        DataError: If there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(entry for entry in path.glob("*") if entry.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(
            f"{path}: no image there. Give an image, or a folder of {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return found


def number_images(paths: list[Path], annotations: Path | None) -> dict[Path, int]:
    """Image id of each path: 1, 2, 3, … or, for those that a COCO file lists, the id there.

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
            f"{annotations}: lists none of the {len(paths)} images, such as {paths[0].name!r}. Name images "
            f"that it lists, or leave out --annotations."
        )
    return listed


def describe_thresholds(detector: Predictor, score_threshold: float | None) -> str:
    """Which detections count, in a line."""
    if score_threshold is not None:
        return f"kept      every score from {score_threshold:g}"
    points = detector.operating_points
    if points is None:
        threshold = detector.trained.config.evaluation.draw_threshold
        return (
            f"kept      every score from {threshold:g}: the checkpoint has no thresholds yet, "
            f"tools/evaluate.py chooses them on the validation split"
        )
    thresholds = ", ".join(f"{entry.name} {entry.threshold:.3f}" for entry in points.classes)
    return (
        f"kept      by the thresholds for {points.goal}, chosen on {points.chosen_on}: {thresholds}; "
        f"nms of duplicates: {points.nms.describe()}"
    )


def main() -> int:
    """Parse, predict, report errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="best.pth or last.pth of a run")
    parser.add_argument("images", type=Path, help="an image, or a folder of images")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/predictions"), help="folder for the results"
    )
    parser.add_argument(
        "--annotations", type=Path, help="COCO file: only its images, with their ids; else 1, 2, 3, …"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="lowest score of all classes, 0 for raw detections; default: the thresholds in the checkpoint",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override stored options, such as runtime.device=cpu or evaluation.draw_threshold=0.3",
    )
    args = parser.parse_args()
    try:
        predict(args)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def predict(args: argparse.Namespace) -> None:
    """Write `predictions.json` and a drawn copy of each image."""
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold: got {args.score_threshold:g}, needs [0, 1]")
    paths = list_images(args.images)
    ids = number_images(paths, args.annotations)
    num_skipped = len(paths) - len(ids)
    paths = list(ids)
    detector = Predictor(load_trained(args.checkpoint, overrides=args.set))
    names = dict(zip(detector.category_ids, detector.class_names, strict=True))
    found = detector.predict(paths, score_threshold=args.score_threshold)
    file_names = {ids[path]: path.name for path in paths}
    table = DetectionTable.from_detections(dict(enumerate(found)))
    results = [
        entry | {"file_name": file_names[entry["image_id"]], "category_name": names[entry["category_id"]]}
        for entry in table.to_coco([ids[path] for path in paths], detector.category_ids)
    ]
    # A folder of their own: the pictures have the names of the images and must never replace them.
    pictures = args.output / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    # Raw detections are hundreds: with --score-threshold 0 they would cover the picture.
    draw_from = 0.0 if args.score_threshold is None else detector.trained.config.evaluation.draw_threshold
    for path, detections in zip(paths, found, strict=True):
        picture = read_preview(path)
        shown = above(detections, draw_from)
        drawn = draw_detections(picture, shown, class_names=detector.class_names)
        name = path.name if path.suffix.lower() in IMAGE_SUFFIXES else f"{path.name}.png"
        drawn.save(pictures / name)
    results_path = args.output / "predictions.json"
    results_path.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"{len(results)} detections in {len(paths)} images")
    print(describe_thresholds(detector, args.score_threshold))
    if num_skipped:
        print(f"skipped   {num_skipped} images that {args.annotations} does not list")
    print(f"results   {results_path}")
    print(f"pictures  {pictures}")


if __name__ == "__main__":
    sys.exit(main())
