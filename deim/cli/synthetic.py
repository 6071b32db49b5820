"""Make a synthetic dataset of surface defects in COCO format.

Examples:
  deim synthetic --root data/synthetic --train-images 300 --max-size 640 512
  deim synthetic --root data/pseudo --backgrounds photos
"""

import json
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path

from deim.cli.arguments import SPLITS, new_parser, whole
from deim.config.checks import IMAGES, SEED, SIDE_PX
from deim.files import count


def build_parser() -> ArgumentParser:
    """Return the parser of `deim synthetic`."""
    parser = new_parser("synthetic", __doc__)
    add = parser.add_argument
    add("--root", type=Path, required=True, help="Folder to make; it must not exist yet.")
    for split, number in zip(SPLITS, (300, 100, 100), strict=True):
        add(
            f"--{split}-images",
            type=whole(0, IMAGES),
            default=number,
            help=f"Number of images of the split {split}.",
        )
    size = ("WIDTH", "HEIGHT")
    add(
        "--max-size",
        type=whole(1, SIDE_PX),
        nargs=2,
        default=(1650, 1350),
        metavar=size,
        help="Largest size in pixels.",
    )
    add("--seed", type=whole(0, SEED), default=0, help="Random seed; the same seed gives the same files.")
    what = "Folder of images without defects to draw the defects on; without it, surfaces are drawn too."
    add("--backgrounds", metavar="FOLDER", help=what)
    return parser


def run(args: Namespace) -> None:
    """Make the dataset and print what it holds."""
    from deim.data.synthetic.make import SyntheticOptions, make_synthetic_dataset

    options = SyntheticOptions(
        train_images=args.train_images,
        val_images=args.val_images,
        test_images=args.test_images,
        max_size_wh=(args.max_size[0], args.max_size[1]),
        seed=args.seed,
        backgrounds=args.backgrounds,
    )
    make_synthetic_dataset(args.root, options)
    print(f"Dataset written to {args.root}")
    for split in SPLITS:
        print(_summarize(args.root / "annotations" / f"{split}.json"))


def _summarize(path: Path) -> str:
    """Count images, images without boxes and the boxes of each class of a COCO file, in one line."""
    content = json.loads(path.read_text(encoding="utf-8"))
    boxes = Counter(annotation["category_id"] for annotation in content["annotations"])
    with_boxes = {annotation["image_id"] for annotation in content["annotations"]}
    counts = ", ".join(f"{row['name']} {boxes[row['id']]}" for row in content["categories"])
    images = len(content["images"])
    without = images - len(with_boxes)
    return f"{path.stem}: {count('image', images)}, {without} without a box; boxes: {counts}"
