"""Detect defects in images: COCO results and drawn pictures.

    python tools/predict.py outputs/quickstart/best.pth data/quickstart/images --output outputs/predictions
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image

from deim.errors import DataError, DeimError
from deim.evaluation.plots import draw_detections
from deim.evaluation.predict import above, load_detector, to_coco_results
from deim.data.transforms import read_image

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
        raise DataError(f"{path}: no image there. Give an image, or a folder of {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found


def predict(
    checkpoint: Path, images: Path, *, output: Path, score_threshold: float, device: str, draw: bool
) -> int:
    """Write `predictions.json`, and a drawn copy of each image.

    Returns:
        The number of images.
    """
    paths = list_images(images)
    detector = load_detector(checkpoint, device=device)
    found = detector.predict(paths)
    results = []
    for number, (path, detections) in enumerate(zip(paths, found, strict=True), start=1):
        entries = to_coco_results(number, above(detections, score_threshold), detector.category_ids)
        names = dict(zip(detector.category_ids, detector.class_names, strict=True))
        results += [
            entry | {"file_name": path.name, "category_name": names[entry["category_id"]]} for entry in entries
        ]
    output.mkdir(parents=True, exist_ok=True)
    (output / "predictions.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    if draw:
        threshold = detector.trained.config.evaluation.draw_threshold
        for path, detections in zip(paths, found, strict=True):
            picture = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
            drawn = draw_detections(
                picture, detections, class_names=detector.class_names, score_threshold=threshold
            )
            drawn.save(output / f"{path.stem}.png")
    return len(paths)
