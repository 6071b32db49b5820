"""A synthetic surface-defect set in COCO format, the same for the same seed on any number of workers.

What an image shows decides what is annotated, so the annotations never contradict one another:

- About 78 % of the images show a part with one to six defects. Each defect has a box; NORMAL has none.
- About 10 % show a part with a clean surface. One NORMAL box covers the whole visible surface: the frame, or
  the plate where the part lies on a background.
- About 12 % show no part at all, only a belt, a table or another background. They have no annotation.

Machining marks, reflections, screw heads and printed marks occur on all parts and are never annotated.
"""

import io
import json
import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from deim.data.synthetic.defects import DefectKind, Patch, Window, draw_defect
from deim.data.synthetic.surface import Floats, Scene, make_scene
from deim.errors import DataError

CATEGORIES = (
    "NORMAL",
    "DEFORMACIONES",
    "ROTURA_FRACTURA",
    "RAYONES_ARANAZOS",
    "PERFORACIONES",
    "CONTAMINACION",
)
"""Category names in the order of their ids, which start at 1."""

MIN_SIDE_PX = 64
"""No image is narrower or lower than this."""

VISIBLE_CHANGE = 0.045
"""A pixel belongs to a defect if one of its channels changed by more than this, of [0, 1]."""

ImageKind = Literal["defective", "normal", "empty"]

_logger = logging.getLogger(__name__)

DEFECTS: tuple[tuple[DefectKind, int], ...] = (
    ("dent", 2),
    ("crack", 3),
    ("scratch", 4),
    ("hole", 5),
    ("stain", 6),
)
SPLITS = ("train", "val", "test")
SHARES_BY_NUMBER = (0.2, 0.22, 0.2, 0.16, 0.12, 0.1)
"""Probability of one defect on a part, of two, and so on: three on average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledBox:
    """One annotation before it has an id."""

    category_id: int
    """1-based, see `CATEGORIES`."""
    bbox_xywh: Window
    """Left, top, width, height, in pixels inside the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImage:
    """An image file and what is annotated on it."""

    file_name: str
    """Name inside the images folder."""
    size_hw: tuple[int, int]
    """Height and width, in pixels."""
    jpeg: bytes
    """The encoded image; empty once it is written."""
    boxes: tuple[LabelledBox, ...]
    """Annotations; empty if no part is shown."""


def make_synthetic_dataset(
    root: Path,
    *,
    train_images: int,
    val_images: int,
    test_images: int,
    max_size_wh: tuple[int, int],
    seed: int,
    workers: int = 2,
) -> None:
    """Write a synthetic defect set: `images/{split}_00000.jpg` and `annotations/{train,val,test}.json`.

    The files appear under `root` only when all of them are complete.

    Args:
        root: Folder to make; its parents are made too.
        train_images: Images of the training split, at least 0.
        val_images: Images of the validation split, at least 0.
        test_images: Images of the test split, at least 0.
        max_size_wh: Largest width and height, in pixels, each at least 64.
        seed: At least 0; the same seed gives the same files, whatever `workers` is.
        workers: Images made at a time. Threads, since almost all time is spent outside the interpreter lock.

    Raises:
        DataError: If `root` exists, or a number is out of its range.
    """
    counts = {"train": train_images, "val": val_images, "test": test_images}
    _check_request(root, counts, max_size_wh=max_size_wh, seed=seed)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
        draft = Path(scratch) / "dataset"
        (draft / "images").mkdir(parents=True)
        (draft / "annotations").mkdir()
        with ThreadPoolExecutor(max_workers=workers) as pool:
            for split, count in counts.items():
                make = partial(_make_file, draft / "images", split, max_size_wh=max_size_wh, seed=seed)
                images = list(pool.map(make, range(count)))
                write_annotations(draft / "annotations" / f"{split}.json", images)
                _logger.info("%s: %d images made", split, count)
        try:
            draft.rename(root)
        except OSError as error:
            raise DataError(
                f"{root}: appeared while the dataset was made, and is kept as it is. "
                "Remove it and try again, or use what is there."
            ) from error


def make_image(split: str, index: int, *, max_size_wh: tuple[int, int], seed: int) -> LabelledImage:
    """Make one image, from nothing but the arguments.

    Args:
        split: `train`, `val` or `test`.
        index: Number of the image within its split, from 0.
        max_size_wh: Largest width and height, in pixels.
        seed: Seed of the dataset.

    Returns:
        The encoded image and its annotations.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    size_hw = _draw_size(rng, max_size_wh)
    pixels, boxes = render_image(rng, size_hw, _image_kind(split, index, seed))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=int(rng.integers(84, 96)))
    return LabelledImage(
        file_name=f"{split}_{index:05d}.jpg", size_hw=size_hw, jpeg=buffer.getvalue(), boxes=boxes
    )


def render_image(
    rng: Generator, size_hw: tuple[int, int], kind: ImageKind
) -> tuple[NDArray[np.uint8], tuple[LabelledBox, ...]]:
    """Compose, damage and photograph one scene.

    Args:
        rng: Source of randomness.
        size_hw: Height and width, in pixels.
        kind: What is shown; see the module's docstring.

    Returns:
        (H, W, 3) RGB and the annotations.
    """
    scene = make_scene(rng, size_hw, "empty" if kind == "empty" else "part")
    boxes: tuple[LabelledBox, ...] = ()
    match kind:
        case "defective":
            boxes = add_defects(rng, scene)
        case "normal":
            boxes = (LabelledBox(category_id=1, bbox_xywh=_mask_box(scene.surface > 0.5)),)
        case "empty":
            pass
    return _photograph(rng, scene.canvas), boxes


def add_defects(rng: Generator, scene: Scene) -> tuple[LabelledBox, ...]:
    """Damage the surface of a scene in place.

    Returns:
        At least one box, and at most six; boxes overlap by an IoU below 0.2.
    """
    boxes: list[LabelledBox] = []
    wanted = 1 + int(rng.choice(len(SHARES_BY_NUMBER), p=SHARES_BY_NUMBER))
    left, top, width, height = _mask_box(scene.surface > 0.5)
    region_xyxy = (left, top, left + width, top + height)
    for _ in range(60):
        defect, category_id = DEFECTS[rng.integers(len(DEFECTS))]
        for _ in range(6):
            patch = draw_defect(
                rng, defect, canvas=scene.canvas, region_xyxy=region_xyxy, light_xy=scene.light_xy
            )
            bbox_xywh = blend_patch(scene, patch, taken_xywh=[box.bbox_xywh for box in boxes])
            if bbox_xywh is not None:
                boxes.append(LabelledBox(category_id=category_id, bbox_xywh=bbox_xywh))
                break
        if len(boxes) == wanted:
            break
    assert boxes, "no defect could be placed in 360 trials"
    return tuple(boxes)


def blend_patch(scene: Scene, patch: Patch, *, taken_xywh: list[Window]) -> Window | None:
    """Put a patch on the surface of a scene if the result is a fair annotation.

    Args:
        scene: Its canvas is changed in place, unless the patch is refused.
        patch: The drawn defect.
        taken_xywh: Boxes that are there already.

    Returns:
        The box (xywh) of all visibly changed pixels, or None if the patch was refused: too little of it lies
        on the surface, it can hardly be seen, or it overlaps a box that is there.
    """
    x0, y0, x1, y1 = patch.window
    before = scene.canvas[y0:y1, x0:x1]
    on_surface = scene.surface[y0:y1, x0:x1]
    wanted = np.abs(patch.pixels - before).max(axis=2)
    changed = wanted * on_surface
    visible = changed > VISIBLE_CHANGE
    if visible.sum() < max(12, 0.85 * (wanted > VISIBLE_CHANGE).sum()):
        return None
    if np.quantile(changed[visible], 0.8) < 2.2 * VISIBLE_CHANGE:
        return None
    left, top, width, height = _mask_box(visible)
    if min(width, height) < max(3, round(4 * scene.unit)):
        return None
    bbox_xywh = (left + x0, top + y0, width, height)
    # A third of the smaller box, so an IoU below 0.2, and no defect hides under another.
    if any(_covered_share(bbox_xywh, other) >= 1 / 3 for other in taken_xywh):
        return None
    before += (patch.pixels - before) * on_surface[..., None]
    return bbox_xywh


def _photograph(rng: Generator, canvas: Floats) -> NDArray[np.uint8]:
    """What a camera makes of a scene: slight blur and sensor noise; (H, W, 3) RGB."""
    sharp = Image.fromarray((canvas * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    radius = rng.uniform(0.1, 0.8) * min(max(canvas.shape[:2]) / 1024, 1.0)
    blurred = np.asarray(sharp.filter(ImageFilter.BoxBlur(radius)))
    noise = rng.standard_normal(canvas.shape[:2], dtype=np.float32) * np.float32(rng.uniform(1.0, 3.5))
    noisy = blurred.astype(np.int16) + np.rint(noise).astype(np.int16)[..., None]
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _draw_size(rng: Generator, max_size_wh: tuple[int, int]) -> tuple[int, int]:
    """A random height and width: 43 to 100 % of the largest width, 52 to 100 % of the largest height."""
    width = round(max_size_wh[0] * rng.uniform(0.43, 1.0))
    height = round(max_size_wh[1] * rng.uniform(0.52, 1.0))
    return max(height, MIN_SIDE_PX), max(width, MIN_SIDE_PX)


def _image_kind(split: str, index: int, seed: int) -> ImageKind:
    """What image `index` shows; golden-ratio steps keep the shares right in every run of images."""
    start = np.random.default_rng([seed, SPLITS.index(split)]).random()
    share = (start + index * 0.618033988749895) % 1
    if share < 0.78:
        return "defective"
    return "normal" if share < 0.88 else "empty"


def _mask_box(mask: NDArray[np.bool_]) -> Window:
    """Box (xywh, pixels) of the true pixels of a (H, W) mask that has some."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1] - cols[0]) + 1, int(rows[-1] - rows[0]) + 1


def _covered_share(box_xywh: Window, other_xywh: Window) -> float:
    """Intersection of two xywh boxes over the area of the smaller; an IoU is at most s / (2 - s) of it."""
    x, y, w, h = box_xywh
    other_x, other_y, other_w, other_h = other_xywh
    shared_w = max(min(x + w, other_x + other_w) - max(x, other_x), 0)
    shared_h = max(min(y + h, other_y + other_h) - max(y, other_y), 0)
    return shared_w * shared_h / min(w * h, other_w * other_h)


def _make_file(
    folder: Path, split: str, index: int, *, max_size_wh: tuple[int, int], seed: int
) -> LabelledImage:
    """Make and write one image; returns what its annotation needs, without the encoded pixels."""
    image = make_image(split, index, max_size_wh=max_size_wh, seed=seed)
    (folder / image.file_name).write_bytes(image.jpeg)
    return replace(image, jpeg=b"")


def write_annotations(path: Path, images: list[LabelledImage]) -> None:
    """Write one COCO file; ids count from 1 in the order of the images."""
    image_rows: list[dict[str, Any]] = []
    annotation_rows: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        height, width = image.size_hw
        image_rows.append({"id": image_id, "file_name": image.file_name, "width": width, "height": height})
        for box in image.boxes:
            annotation_rows.append(
                {
                    "id": len(annotation_rows) + 1,
                    "image_id": image_id,
                    "category_id": box.category_id,
                    "bbox": list(box.bbox_xywh),
                    "area": box.bbox_xywh[2] * box.bbox_xywh[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, start=1)]
    content = {"images": image_rows, "annotations": annotation_rows, "categories": categories}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _check_request(root: Path, counts: dict[str, int], *, max_size_wh: tuple[int, int], seed: int) -> None:
    """Refuse what cannot be made, all reasons in one message."""
    problems = []
    if root.exists():
        problems.append(
            f"{root}: exists already. A synthetic dataset is only written to a new folder. "
            "Remove it or choose another root."
        )
    problems += [
        f"{root}: {split} images out of range, got {count}. At least 0 are valid."
        for split, count in counts.items()
        if count < 0
    ]
    if min(max_size_wh) < MIN_SIDE_PX:
        problems.append(
            f"{root}: largest image size too small, got {max_size_wh[0]} by {max_size_wh[1]} px. "
            f"Each side needs at least {MIN_SIDE_PX} px."
        )
    if seed < 0:
        problems.append(f"{root}: seed out of range, got {seed}. At least 0 is valid.")
    if problems:
        raise DataError("\n".join(problems))
