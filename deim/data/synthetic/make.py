"""A synthetic surface-defect set in COCO format, identical for the same seed on any number of workers.

- About 78 % of the images show a part with one to six defects, each with a box.
- About 10 % show a part with a clean surface. One box of the normal class covers the visible surface.
- About 12 % show only a background, such as a belt or a table, and have no annotation.

Machining marks, reflections, screw heads and printed marks occur on all parts and are never annotated.

With backgrounds, the defects are drawn on parts of given images, and every image without defects has one box
of the normal class.
"""

import io
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from deim.config.checks import IMAGES, SEED, SIDE_PX, check, outside
from deim.data.synthetic.backgrounds import MIN_SIDE_PX, find_backgrounds, hash_backgrounds, open_scene
from deim.data.synthetic.defects import CATEGORY_IDS, CLASS_NAMES, DEFECT_KINDS, Patch, draw_defect
from deim.data.synthetic.surface import Floats, Scene, Window, make_scene, mask_window
from deim.errors import DataError
from deim.files import explain_full_disk, refuse_overwriting
from deim.parse import parse_json


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticOptions:
    """A generated defect set, written to `data.root` if that folder does not exist yet."""

    train_images: int = 300
    """Number of images of the training split."""
    val_images: int = 100
    """Number of images of the validation split."""
    test_images: int = 100
    """Number of images of the test split."""
    max_size_wh: tuple[int, int] = (1650, 1350)
    """Maximum width and height of an image in pixels, each at least 96."""
    seed: int = 0
    """Seed of the images, at least 0; the same seed gives the same files."""
    backgrounds: str | None = None
    """Folder of images without defects to draw the defects on, relative to the current folder; parts of them
    are taken, none is enlarged. null draws the surfaces too."""

    def __post_init__(self) -> None:
        is_small = min(self.max_size_wh) < 96
        check(
            [
                *outside(1, IMAGES, train_images=self.train_images, val_images=self.val_images),
                *outside(0, IMAGES, test_images=self.test_images),
                *outside(0, SEED, seed=self.seed),
                *outside(0, SIDE_PX, max_size_wh=self.max_size_wh),
                (is_small, f"max_size_wh: got {list(self.max_size_wh)}, each needs at least 96"),
            ]
        )


VISIBLE_CHANGE = 0.045
"""Minimum change of one channel, in [0, 1], for a pixel to belong to a defect."""

ImageKind = Literal["defective", "normal", "empty"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SHARES_BY_NUMBER = (0.2, 0.22, 0.2, 0.16, 0.12, 0.1)
"""Probability of one defect on a part, of two, and so on; the mean is three."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledBox:
    """One annotation before it has an id."""

    category_id: int
    window: Window


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledImage:
    """An image file and its annotations."""

    file_name: str
    size_hw: tuple[int, int]
    boxes: tuple[LabeledBox, ...]
    """Annotations; empty if no part is shown."""


def make_synthetic_dataset(root: Path, options: SyntheticOptions, *, workers: int = 2) -> None:
    """Write a synthetic defect set: `images/{split}_00000.jpg` and `annotations/{train,val,test}.json`.

    The files appear under `root`, whose parents are made too, only when all of them are complete. The number
    of worker threads changes nothing in them.

    Raises:
        DataError: If `root` exists or lies in the folder of the backgrounds, or these cannot be used.
    """
    refuse_backgrounds_within(root, options)
    if root.exists():
        raise DataError(
            f"{root}: exists already. A synthetic dataset is only written to a new folder. "
            "Remove it or choose another root."
        )
    counts = dict(zip(SPLITS, (options.train_images, options.val_images, options.test_images), strict=True))
    backgrounds: dict[str, tuple[Path, ...]] = {}
    digest = None
    if options.backgrounds is not None:
        digest = hash_backgrounds(Path(options.backgrounds))
        backgrounds = find_backgrounds(Path(options.backgrounds), counts, seed=options.seed)
    root.parent.mkdir(parents=True, exist_ok=True)
    with (
        explain_full_disk(root),
        tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch,
    ):
        draft = Path(scratch) / "dataset"
        (draft / "images").mkdir(parents=True)
        (draft / "annotations").mkdir()

        def write_image(split: str, index: int) -> LabeledImage:
            image, jpeg = make_image(
                split,
                index,
                max_size_wh=options.max_size_wh,
                seed=options.seed,
                backgrounds=backgrounds.get(split, ()),
            )
            (draft / "images" / image.file_name).write_bytes(jpeg)
            return image

        with ThreadPoolExecutor(max_workers=workers) as pool:
            for split, count in counts.items():
                images = list(pool.map(partial(write_image, split), range(count)))
                path = draft / "annotations" / f"{split}.json"
                write_annotations(path, images, backgrounds_sha256=digest)
                logger.info("%s: %d images made", split, count)
        try:
            draft.rename(root)
        except OSError as error:
            raise DataError(
                f"{root}: appeared while the dataset was made, and is kept as it is. "
                "Remove it and try again, or use it."
            ) from error


def refuse_backgrounds_within(root: Path, options: SyntheticOptions) -> None:
    """Refuse a folder of backgrounds that holds the set, or lies in it.

    Raises:
        DataError: If it does.
    """
    if options.backgrounds is not None:
        folder = Path(options.backgrounds)
        refuse_overwriting(outputs=[root], inputs=[folder], option="data.root, or --root")


def make_image(
    split: str, index: int, *, max_size_wh: tuple[int, int], seed: int, backgrounds: Sequence[Path] = ()
) -> tuple[LabeledImage, bytes]:
    """Make image `index` of a split, a JPEG, which depends on the arguments only; sizes are in pixels.

    The images take the `backgrounds` in turn; without any, their surfaces are drawn.

    Raises:
        DataError: If a background is damaged.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    # 43 to 100 % of the maximum width, 52 to 100 % of the maximum height.
    width = max(round(max_size_wh[0] * rng.uniform(0.43, 1.0)), MIN_SIDE_PX)
    size_hw = max(round(max_size_wh[1] * rng.uniform(0.52, 1.0)), MIN_SIDE_PX), width
    kind = _image_kind(split, index, seed)
    if backgrounds:
        scene = open_scene(rng, backgrounds[index % len(backgrounds)], size_hw)
        pixels, boxes = render_scene(rng, scene, "normal" if kind == "empty" else kind)
    else:
        pixels, boxes = render_image(rng, size_hw, kind)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=int(rng.integers(84, 96)))
    image = LabeledImage(file_name=f"{split}_{index:05d}.jpg", size_hw=pixels.shape[:2], boxes=boxes)
    return image, buffer.getvalue()


def render_image(
    rng: Generator, size_hw: tuple[int, int], kind: ImageKind
) -> tuple[NDArray[np.uint8], tuple[LabeledBox, ...]]:
    """Draw a surface, or only a background, and render it as `render_scene`."""
    return render_scene(rng, make_scene(rng, size_hw, has_part=kind != "empty"), kind)


def render_scene(
    rng: Generator, scene: Scene, kind: ImageKind
) -> tuple[NDArray[np.uint8], tuple[LabeledBox, ...]]:
    """Render a scene (H, W, 3) in RGB with its annotations; defects change its canvas in place."""
    boxes: tuple[LabeledBox, ...] = ()
    if kind == "defective":
        boxes = add_defects(rng, scene)
    elif kind == "normal":
        boxes = (LabeledBox(category_id=CATEGORY_IDS["normal"], window=scene.region),)
    return _expose(rng, scene.canvas), boxes


def add_defects(rng: Generator, scene: Scene) -> tuple[LabeledBox, ...]:
    """Damage the surface of a scene in place; returns one to six boxes, which overlap by an IoU below 0.2."""
    boxes: list[LabeledBox] = []
    number = 1 + int(rng.choice(len(SHARES_BY_NUMBER), p=SHARES_BY_NUMBER))
    for _ in range(60):
        defect = DEFECT_KINDS[rng.integers(len(DEFECT_KINDS))]
        for _ in range(6):
            patch = draw_defect(rng, defect, scene)
            window = blend_patch(scene, patch, taken=[box.window for box in boxes])
            if window is not None:
                boxes.append(LabeledBox(category_id=CATEGORY_IDS[defect], window=window))
                break
        if len(boxes) == number:
            break
    assert boxes, "no defect could be placed in 360 trials"
    return tuple(boxes)


def blend_patch(scene: Scene, patch: Patch, *, taken: list[Window]) -> Window | None:
    """Put a patch on the canvas of a scene, in place, if its annotation would be fair.

    Returns:
        The box of all visibly changed pixels, or None if the patch was rejected: too little of it lies on the
        surface, it is hardly visible, or it overlaps a box that is taken.
    """
    (x0, y0, x1, y1), after = patch
    before = scene.canvas[y0:y1, x0:x1]
    on_surface = scene.surface[y0:y1, x0:x1]
    difference = np.abs(after - before).max(axis=2)
    changed = difference * on_surface
    visible = changed > VISIBLE_CHANGE
    if visible.sum() < max(12, 0.85 * (difference > VISIBLE_CHANGE).sum()):
        return None
    if np.quantile(changed[visible], 0.8) < 2.2 * VISIBLE_CHANGE:
        return None
    left, top, right, bottom = mask_window(visible)
    if min(right - left, bottom - top) < max(3, round(4 * scene.unit)):
        return None
    window = (left + x0, top + y0, right + x0, bottom + y0)
    # A third of the smaller box, so an IoU below 0.2, and no defect hides under another.
    if any(_covered_share(window, other) >= 1 / 3 for other in taken):
        return None
    before += (after - before) * on_surface[..., None]
    return window


def _expose(rng: Generator, canvas: Floats) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB of a scene with the slight blur and the noise of a camera."""
    sharp = Image.fromarray((canvas * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    radius = rng.uniform(0.1, 0.8) * min(max(canvas.shape[:2]) / 1024, 1.0)
    blurred = np.asarray(sharp.filter(ImageFilter.BoxBlur(radius)))
    noise = rng.standard_normal(canvas.shape[:2], dtype=np.float32) * np.float32(rng.uniform(1.0, 3.5))
    noisy = blurred.astype(np.int16) + np.rint(noise).astype(np.int16)[..., None]
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _image_kind(split: str, index: int, seed: int) -> ImageKind:
    """Return the content of image `index`; golden-ratio steps keep the shares in every range of images."""
    start = np.random.default_rng([seed, SPLITS.index(split)]).random()
    share = (start + index * 0.618033988749895) % 1
    if share < 0.78:
        return "defective"
    return "normal" if share < 0.88 else "empty"


def _covered_share(window: Window, other: Window) -> float:
    """Return the intersection s of two windows over the smaller area; their IoU is at most s / (2 - s)."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = window, other
    shared = max(min(ax1, bx1) - max(ax0, bx0), 0) * max(min(ay1, by1) - max(ay0, by0), 0)
    return shared / min((ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0))


def read_backgrounds_sha256(root: Path) -> str | None:
    """Return the hash of the backgrounds that a set was made on; None for none, and for any other dataset."""
    try:
        match parse_json((root / "annotations" / f"{SPLITS[0]}.json").read_text(encoding="utf-8"), ""):
            case {"info": {"backgrounds_sha256": str(digest)}}:
                return digest
    except (OSError, UnicodeDecodeError, DataError):
        pass
    return None


def write_annotations(
    path: Path, images: list[LabeledImage], *, backgrounds_sha256: str | None = None
) -> None:
    """Write one COCO file; ids count from 1 in the order of the images."""
    boxes = [(image_id, box) for image_id, image in enumerate(images, start=1) for box in image.boxes]
    content: Mapping[str, object] = {
        **({} if backgrounds_sha256 is None else {"info": {"backgrounds_sha256": backgrounds_sha256}}),
        "images": [
            {"id": image_id, "file_name": image.file_name, "width": width, "height": height}
            for image_id, image in enumerate(images, start=1)
            for height, width in [image.size_hw]
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": box.category_id,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            for number, (image_id, box) in enumerate(boxes, start=1)
            for x0, y0, x1, y1 in [box.window]
        ],
        "categories": [{"id": CATEGORY_IDS[kind], "name": name} for kind, name in CLASS_NAMES.items()],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
