"""Make a synthetic surface-defect dataset in COCO format.

Example: python tools/make_synthetic.py --root data/synthetic --train-images 300 --max-size 640 512
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from deim.data.synthetic.make import make_synthetic_dataset
from deim.data.synthetic.options import SyntheticOptions
from deim.errors import DeimError


def main() -> int:
    """Make the dataset and print where it is; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder to make; it must not exist yet")
    parser.add_argument("--train-images", type=int, default=300)
    parser.add_argument("--val-images", type=int, default=100)
    parser.add_argument("--test-images", type=int, default=100)
    parser.add_argument(
        "--max-size", type=int, nargs=2, default=(1650, 1350), metavar=("WIDTH", "HEIGHT"), help="in pixels"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    args = parser.parse_args()
    try:
        make_synthetic_dataset(
            args.root,
            SyntheticOptions(
                train_images=args.train_images,
                val_images=args.val_images,
                test_images=args.test_images,
                max_size_wh=(args.max_size[0], args.max_size[1]),
                seed=args.seed,
            ),
        )
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Dataset written to {args.root}")
    for path in (args.root / "annotations" / f"{split}.json" for split in ("train", "val", "test")):
        print(_summary(path))
    return 0


def _summary(path: Path) -> str:
    """Images, images without a box and boxes of each class of one COCO file, on one line."""
    content = json.loads(path.read_text(encoding="utf-8"))
    boxes = Counter(annotation["category_id"] for annotation in content["annotations"])
    with_boxes = {annotation["image_id"] for annotation in content["annotations"]}
    counts = ", ".join(f"{row['name']} {boxes[row['id']]}" for row in content["categories"])
    images = len(content["images"])
    return f"{path.stem}: {images} images, {images - len(with_boxes)} without a box; boxes: {counts}"


if __name__ == "__main__":
    sys.exit(main())
