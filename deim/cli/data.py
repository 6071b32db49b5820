"""Check, convert, split and describe a dataset in COCO, YOLO or Pascal VOC format; preview its training.

python tools/data.py check data/defects --image-size 1024
python tools/data.py convert data/defects --to yolo --output data/defects_yolo
python tools/data.py split data/all --group-regex '^(part[0-9]+)_' --output data/defects
python tools/data.py stats data/defects --image-size 1024
python tools/data.py preview -c configs/deimv2_1024.yml
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deim.config.loader import load_config
from deim.curation.charts import draw_stats
from deim.curation.check import check_dataset, describe_check, read_for_check
from deim.curation.convert import describe_losses, refuse_existing, write_dataset
from deim.curation.groups import find_groups, find_groups_of_splits
from deim.curation.preview import draw_sheet
from deim.curation.split import describe_division, divide, pool_splits
from deim.curation.stats import compute_stats, describe_stats
from deim.data.formats.read import FORMATS, detect_format, read_all, to_splits
from deim.data.images.scan import ImageFacts, scan_images
from deim.data.loader import input_format
from deim.data.splits import Splits, prepare_root, read_split
from deim.engine.detection_task import build_detection_loader
from deim.engine.prepare import prepare_run
from deim.errors import DataError, DeimError


def check(args: argparse.Namespace) -> int:
    """Print the issues and write them all as JSON; returns 1 if there are errors."""
    raws, unread = read_for_check(args.root, args.format)
    groups = find_groups_of_splits(raws, pattern=args.group_regex, table=args.group_csv)
    total = sum(len(raw.images) for raw in raws.values())
    with tqdm(total=total, desc="images", disable=None, leave=False) as bar:
        report = check_dataset(
            raws,
            input_size_hw=_size_hw(args.image_size),
            resize=args.resize,
            tile_size=args.tile_size,
            full=not args.quick,
            groups=groups,
            unread=unread,
            workers=args.workers,
            progress=lambda _: bar.update(),
        )
    print("\n".join(describe_check(report)))
    _write_json(args.output, {"root": str(args.root), "format": args.format, **report.to_dict()})
    print(f"issues  {args.output}")
    return 1 if report.num_errors else 0


def convert(args: argparse.Namespace) -> int:
    """Write the dataset in another format."""
    refuse_existing(args.output)
    raws = read_all(args.root, args.format)
    splits = to_splits(raws)
    write_dataset(splits, args.to, args.output)
    images, boxes = sum(map(len, splits.values())), sum(len(split.boxes_xywh) for split in splits.values())
    print(f"{args.format} to {args.to}: {images} images and {boxes} boxes in {', '.join(splits)}")
    print("\n".join([*describe_losses(raws, args.to), f"dataset  {args.output}"]))
    return 0


def split(args: argparse.Namespace) -> int:
    """Write the dataset anew with other splits."""
    refuse_existing(args.output)
    raws = read_all(args.root, args.format)
    pool, names = pool_splits(to_splits(raws))
    groups = find_groups(names, pattern=args.group_regex, table=args.group_csv, paths=pool.file_names)
    facts = _scan((pool.image_path(index) for index in range(len(pool))), args.workers)
    division = divide(pool, names, facts=facts, groups=groups, ratios=args.ratios, seed=args.seed)
    data_format = args.to or args.format
    write_dataset(division.splits(), data_format, args.output, names=division.new_names())
    print("\n".join([*describe_division(division), *describe_losses(raws, data_format)]))
    print(f"dataset  {args.output}")
    return 0


def stats(args: argparse.Namespace) -> int:
    """Print the numbers and draw the charts."""
    splits = to_splits(read_all(args.root, args.format))
    facts = {
        name: _scan((part.image_path(index) for index in range(len(part))), args.workers)
        for name, part in splits.items()
    }
    found = compute_stats(
        splits,
        facts,
        input_size_hw=_size_hw(args.image_size),
        resize=args.resize,
        tile_size=args.tile_size,
    )
    paths = draw_stats(found, splits, args.output, seed=args.seed)
    _write_json(args.output / "stats.json", found.to_dict())
    print("\n".join(describe_stats(found)))
    print(f"charts   {', '.join(path.name for path in paths)}\nnumbers  stats.json\nfolder   {args.output}")
    return 0


def preview(args: argparse.Namespace) -> int:
    """Draw the first batches of each stage of a run as the network gets them."""
    config = load_config(args.config, [*args.set, "data.num_workers=0"])
    prepare_root(config.data)
    train = read_split(config.data, "train")
    # Validation data are not shown.
    loader = build_detection_loader(prepare_run(config, Splits(train=train, val=train)))
    args.output.mkdir(parents=True, exist_ok=True)
    for old in args.output.glob("stage_*.png"):
        old.unlink()
    for number, stage in enumerate(loader.pipeline.stages(config.epochs), start=1):
        loader.set_epoch(stage.first_epoch)
        sheet = draw_sheet(
            loader,
            title=f"stage {number}, {stage.describe()}",
            class_names=train.class_names,
            input_format=input_format(config),
            num_images=args.images,
        )
        path = args.output / f"stage_{number}.png"
        sheet.save(path)
        print(f"stage {number}  {stage.describe()}\n         {path}")
    return 0


COMMANDS = {
    "check": (check, "find what is wrong: files, sizes, boxes, classes, duplicates; exit code 1 on errors"),
    "convert": (convert, "write the dataset in another format; boxes and categories stay the same"),
    "split": (split, "divide all images anew, by class and by group"),
    "stats": (stats, "describe classes, sizes, positions and brightness, in numbers and pictures"),
    "preview": (preview, "draw what the network sees in each stage of a training run"),
}


def main() -> int:
    """Parse, run the sub-command, report errors; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (run, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        command.set_defaults(run=run)
        _add_options(command, name)
    args = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        if args.command != "preview":
            args.format = args.format or detect_format(args.root)
        return args.run(args)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _add_options(command: argparse.ArgumentParser, name: str) -> None:
    add = command.add_argument
    if name == "preview":
        add("-c", "--config", required=True, help="experiment (YAML)")
        add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override options")
        add("--images", type=_at_least(1), default=12, help="images of a sheet; default: 12")
        add("--output", type=Path, default=Path("outputs/data_preview"), help="folder of the sheets")
        return
    add("root", type=Path, help="folder of the dataset, or its data.yaml")
    add("--format", choices=FORMATS, help="of the dataset; default: by what lies in the folder")
    if name in ("check", "stats"):
        add("--image-size", type=int, nargs="+", default=[1024], metavar="PX", help="height, or height width")
        add("--tile-size", type=_at_least(32), metavar="PX", help="data.tiles.size; default: whole images")
        add("--resize", choices=["stretch", "letterbox"], default="stretch", help="default: stretch")
    if name in ("check", "split"):
        add("--group-regex", help="group of an image: what the parentheses match in its file name")
        add("--group-csv", type=Path, help="table with the columns file_name and group")
    if name in ("split", "stats"):
        add("--seed", type=_at_least(0), default=0, help="the same seed gives the same result")
    if name != "convert":
        add("--workers", type=_at_least(1), default=2, help="images decoded at a time; default: 2")
    match name:
        case "check":
            add("--quick", action="store_true", help="read headers alone: no damage inside, no likenesses")
            add("--output", type=Path, default=Path("outputs/data_check.json"), help="JSON of all issues")
        case "convert":
            add("--to", choices=FORMATS, required=True)
            add("--output", type=Path, required=True, help="folder to make; it must not exist yet")
        case "split":
            add("--ratios", type=float, nargs=3, default=[80, 10, 10], metavar=("TRAIN", "VAL", "TEST"))
            add("--to", choices=FORMATS, help="format of the new dataset; default: that of the old one")
            add("--output", type=Path, required=True, help="folder to make; it must not exist yet")
        case "stats":
            add("--output", type=Path, default=Path("outputs/data_stats"), help="folder of the charts")


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"got {number}, needs at least {least}")
        return number

    return whole_number


def _size_hw(image_size: list[int]) -> tuple[int, int]:
    if len(image_size) > 2 or min(image_size) < 1:
        raise DataError(
            f"--image-size: got {' '.join(map(str, image_size))}. Give one side, or height and width."
        )
    return image_size[0], image_size[-1]


def _scan(paths: Iterable[Path], workers: int) -> list[ImageFacts]:
    every = list(paths)
    with tqdm(total=len(every), desc="images", disable=None, leave=False) as bar:
        return scan_images(every, decode=True, workers=workers, progress=lambda _: bar.update())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
