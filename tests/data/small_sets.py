"""A clean dataset of five noisy pictures in COCO format, to be spoiled in one place at a time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
NAMES = {"train": ("t0.png", "t1.png", "t2.png"), "val": ("v0.png", "v1.png")}
CATEGORIES = [{"id": 7, "name": "scratch"}, {"id": 3, "name": "pit"}, {"id": 40, "name": "vein"}]


def make_contents() -> dict[str, dict[str, Any]]:
    """Train with an image without boxes, val without; two boxes of each class in both, at least."""
    contents: dict[str, dict[str, Any]] = {}
    for split, names in NAMES.items():
        images = [
            {"id": 50 + index, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for index, name in enumerate(names)
        ]
        annotations = []
        for index in range(2):
            for place, category_id in enumerate((3, 7, 40)):
                box = [1.5 + 12 * place, 2 + index, 10.25, 12 + place]
                number = len(annotations) + 11
                annotations.append(
                    {"id": number, "image_id": 50 + index, "category_id": category_id, "bbox": box}
                )
        contents[split] = {"images": images, "annotations": annotations, "categories": [*CATEGORIES]}
    return contents


def noise(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture like no other of another seed, coarse enough to be seen in a thumbnail."""
    cells = np.random.default_rng(seed).integers(40, 200, size=(6, 8, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def write_images(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    for split, names in NAMES.items():
        for index, name in enumerate(names):
            noise(len(split) * 10 + index).save(root / "images" / name)


def write_contents(root: Path, contents: dict[str, dict[str, Any]]) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, content in contents.items():
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def write_small_set(root: Path) -> Path:
    write_images(root)
    write_contents(root, make_contents())
    return root
