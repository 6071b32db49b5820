"""Check, convert, split and describe a dataset of any format that can be read, or preview its training.

Examples:
  deim data check data/defects --image-size 1024
  deim data convert data/defects --to yolo --output data/defects_yolo
  deim data split data/all --group-regex '^(part[0-9]+)_' --output data/defects
  deim data stats data/defects --image-size 1024
  deim data preview -c deimv2_1024
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deim.cli.arguments import add_config_argument, add_override_argument, new_parser, whole
from deim.config.catalog import find_config
from deim.config.checks import IMAGE_PX, PROCESSES, REPEATS, SEED, SIDE_PX
from deim.data.formats.names import FORMATS
from deim.errors import DataError
from deim.files import count, refuse_overwriting, write_text

SHEET_COLUMNS = 4

if TYPE_CHECKING:
    from deim.curation.scan import ImageFacts
    from deim.data.formats.names import Format
    from deim.data.formats.split import CocoSplit, RawSplit
    from deim.data.images.input_format import InputFormat
    from deim.data.images.pixel_format import PixelFormat


def build_parser() -> ArgumentParser:
    """Return the parser of `deim data`."""
    parser = new_parser("data", __doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (_, summary) in ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary)
        if name != "preview":
            action.add_argument("root", type=Path, help="Folder of the dataset, or its data.yaml.")
            what = "Format of the dataset; without it, the format that its files have."
            action.add_argument("--format", choices=FORMATS, help=what)
            what = "Take regions marked iscrowd or difficult as objects, such as those of CVAT's brush."
            action.add_argument("--crowd-as-objects", action="store_true", help=what)
            what = "Read files outside the folder, too, if the dataset names any; only for data you trust."
            action.add_argument("--allow-outside", action="store_true", help=what)
        _add_options(action, name)
    return parser


def run(args: Namespace) -> int:
    """Run the action and return the exit code."""
    if args.action != "preview":
        root = args.root.parent if args.root.is_file() else args.root
        tables = [table for table in [getattr(args, "group_csv", None)] if table is not None]
        refuse_overwriting(outputs=[args.output / FIRST_FILES[args.action]], inputs=[root, *tables])
    return ACTIONS[args.action][0](args) or 0


def check(args: Namespace) -> int:
    """Print the issues and write them as JSON; return 1 if there are errors."""
    from deim.curation.check import check_dataset, describe_check, read_for_check
    from deim.curation.groups import find_groups
    from deim.data.formats.read import find_dataset
    from deim.data.formats.split import take_crowds
    from deim.engine.log import progress_bar

    dataset = find_dataset(args.root, args.format, allow_outside=args.allow_outside)
    raws, unread = read_for_check(dataset)
    if args.crowd_as_objects:
        raws = {name: take_crowds(raw) for name, raw in raws.items()}
    names = [image["file_name"] for raw in raws.values() for image in raw.images]
    groups = find_groups(names, pattern=args.group_regex, table=args.group_csv)
    with progress_bar("images", total=len(names)) as advance:
        report = check_dataset(
            raws,
            input_format=_input_format(args),
            decode=not args.quick,
            groups=groups,
            unread=unread,
            workers=args.workers,
            progress=lambda _: advance(""),
        )
    print("\n".join(describe_check(report)))
    _write_json(args.output, root=str(args.root), format=dataset.format, **report.to_dict())
    print(f"issues  {args.output}")
    return 1 if report.num_errors else 0


def convert(args: Namespace) -> None:
    """Write the dataset in another format."""
    from deim.curation.convert import describe_losses, refuse_existing, write_dataset
    from deim.data.formats.read import to_splits

    refuse_existing(args.output)
    data_format, raws = _read_all(args)
    splits = to_splits(raws)
    write_dataset(splits, args.to, args.output)
    images, boxes = sum(map(len, splits.values())), sum(len(split.boxes_xywh) for split in splits.values())
    size = f"{count('image', images)} and {count('box', boxes)}"
    print(f"{data_format} to {args.to}: {size} in {', '.join(splits)}")
    print("\n".join([*describe_losses(raws, args.to), f"dataset  {args.output}"]))


def split(args: Namespace) -> None:
    """Write the dataset with new splits."""
    from deim.curation.convert import describe_losses, refuse_existing, write_dataset
    from deim.curation.groups import find_groups
    from deim.curation.split import describe_division, divide, pool_splits
    from deim.data.formats.read import to_splits

    source_format, raws = _read_all(args)
    data_format = args.to or source_format
    refuse_existing(args.output)
    pool, names = pool_splits(to_splits(raws))
    groups = find_groups(names, pattern=args.group_regex, table=args.group_csv, paths=pool.file_names)
    facts = _scan(pool, args)
    division = divide(pool, names, facts=facts, groups=groups, ratios=args.ratios, seed=args.seed)
    write_dataset(division.splits(), data_format, args.output, names=division.new_names())
    print("\n".join([*describe_division(division), *describe_losses(raws, data_format)]))
    print(f"dataset  {args.output}")


def stats(args: Namespace) -> None:
    """Print statistics of the dataset and draw charts."""
    from deim.curation.charts import draw_stats
    from deim.curation.preview import sample_rows
    from deim.curation.stats import compute_stats, describe_stats
    from deim.data.formats.read import to_splits
    from deim.report.draw import panel_sheet, write_image

    _, raws = _read_all(args)
    splits = to_splits(raws)
    statistics = compute_stats(
        splits,
        {name: _scan(part, args) for name, part in splits.items()},
        input_format=_input_format(args),
    )
    charts = draw_stats(statistics, args.output, seed=args.seed)
    rows = sample_rows(statistics, splits, seed=args.seed)
    charts.append(args.output / "samples.png")
    write_image(panel_sheet(rows, title="Random samples", columns=SHEET_COLUMNS), charts[-1])
    _write_json(args.output / "stats.json", **statistics.to_dict())
    print("\n".join(f"{name}: {split.count_boxes().describe()}" for name, split in splits.items()))
    print("\n".join(describe_stats(statistics)))
    print(f"charts   {', '.join(path.name for path in charts)}\nnumbers  stats.json\nfolder   {args.output}")


def preview(args: Namespace) -> None:
    """Draw the first batches of each stage of a training run as the network receives them."""
    from deim.config.loader import load_config
    from deim.curation.preview import batch_rows
    from deim.data.splits import Splits, data_places, prepare_root, read_split
    from deim.engine.build import prepare_run
    from deim.engine.detection_task import build_detection_loader
    from deim.report.draw import panel_sheet, write_image

    config = load_config(find_config(args.config), [*args.set, "data.num_workers=0"])
    refuse_overwriting(outputs=[args.output / FIRST_FILES["preview"]], inputs=data_places(config.data))
    prepare_root(config.data)
    train = read_split(config.data, "train")
    # The validation split is not used, so that it may be missing.
    loader = build_detection_loader(prepare_run(config, Splits(train=train, val=train)))
    args.output.mkdir(parents=True, exist_ok=True)
    for old in args.output.glob("stage_*.png"):
        old.unlink()
    for number, stage in enumerate(loader.pipeline.stages(config.epochs), start=1):
        loader.set_epoch(stage.first_epoch)
        input_format = loader.dataset.input_format
        rows = batch_rows(loader, train.class_names, input_format=input_format, num_images=args.images)
        path = args.output / f"stage_{number}.png"
        title = f"stage {number}, {stage.describe()}"
        write_image(panel_sheet(rows, title=title, columns=SHEET_COLUMNS), path)
        print(f"stage {number}  {stage.describe()}\n         {path}")


ACTIONS = {
    "check": (check, "Find errors in files, sizes, boxes, classes and splits; exit code 1 if any."),
    "convert": (convert, "Write the dataset in another format with the same boxes and categories."),
    "split": (split, "Divide all images anew by class and by group."),
    "stats": (stats, "Describe classes, sizes, positions and brightness in numbers and charts."),
    "preview": (preview, "Draw what the network receives in each stage of a training run."),
}
"""Function and summary of each action."""


FIRST_FILES = {"check": "", "convert": "", "split": "", "stats": "stats.json", "preview": "stage_1.png"}
"""One of the files that each action writes to its folder; others may lie beside them."""


def _add_options(action: ArgumentParser, name: str) -> None:
    add = action.add_argument
    if name in ("check", "stats"):
        what = "Input size of the network in pixels: one side, or height and width."
        add("--image-size", type=whole(1, SIDE_PX), nargs="+", default=(1024,), metavar="PX", help=what)
        add(
            "--tile-size",
            type=whole(32, IMAGE_PX),
            metavar="PX",
            help="Side of the tiles; without it, no tiles.",
        )
        what = "How images are fitted to the input size."
        add("--resize", choices=["stretch", "letterbox"], default="stretch", help=what)
    if name in ("check", "split"):
        add("--group-regex", help="Regular expression; its parentheses match the group in a file name.")
        add("--group-csv", type=Path, help="CSV file with the columns file_name and group.")
    if name in ("split", "stats"):
        add(
            "--seed", type=whole(0, SEED), default=0, help="Random seed; the same seed gives the same result."
        )
    if name in ("check", "split", "stats"):
        what = "Largest image that is decoded, in millions of pixels; without it, data.max_image_megapixels."
        add("--max-image-megapixels", type=float, metavar="MP", help=what)
        what = "Number of images decoded at the same time."
        add("--workers", type=whole(1, PROCESSES), default=2, help=what)
    new_folder = "Folder to make; it must not exist yet."
    match name:
        case "check":
            add("--quick", action="store_true", help="Read only headers: skip damage and near duplicates.")
            path = Path("outputs/data_check.json")
            add("--output", type=Path, default=path, help="JSON file of the issues.")
        case "convert":
            add("--to", choices=FORMATS, required=True, help="Format to write.")
            add("--output", type=Path, required=True, help=new_folder)
        case "split":
            names = ("TRAIN", "VAL", "TEST")
            what = "Shares of the splits."
            add("--ratios", type=float, nargs=3, default=(80, 10, 10), metavar=names, help=what)
            what = "Format to write; without it, the format of the dataset."
            add("--to", choices=FORMATS, help=what)
            add("--output", type=Path, required=True, help=new_folder)
        case "stats":
            add("--output", type=Path, default=Path("outputs/data_stats"), help="Folder of the charts.")
        case "preview":
            add_config_argument(action)
            add_override_argument(action, "augment.mosaic=0.3")
            add("--images", type=whole(1, REPEATS), default=12, help="Number of images on a sheet.")
            add("--output", type=Path, default=Path("outputs/data_preview"), help="Folder of the sheets.")


def _read_all(args: Namespace) -> "tuple[Format, dict[str, RawSplit]]":
    """Return the format and all splits of the dataset, and print what the reader did to make sense of it."""
    from deim.data.formats.read import find_dataset, read_all
    from deim.data.formats.split import take_crowds

    dataset = find_dataset(args.root, args.format, allow_outside=args.allow_outside)
    raws = read_all(dataset)
    for name, raw in raws.items():
        for note in raw.notes:
            print(f"note  {name}: {note}")
    if args.crowd_as_objects:
        raws = {name: take_crowds(raw) for name, raw in raws.items()}
    return dataset.format, raws


def _input_format(args: Namespace) -> "InputFormat":
    from deim.data.images.input_format import InputFormat
    from deim.data.images.tiling import TilesOptions

    size = args.image_size
    if len(size) > 2:
        raise DataError(f"--image-size: got {' '.join(map(str, size))}. Give one side, or height and width.")
    tiles = None if args.tile_size is None else TilesOptions(size=args.tile_size)
    return InputFormat(size_hw=(size[0], size[-1]), resize=args.resize, tiles=tiles, pixels=_pixels(args))


def _pixels(args: Namespace) -> "PixelFormat":
    from deim.data.images.pixel_format import PixelFormat

    limit = args.max_image_megapixels
    if limit is None:
        return PixelFormat()
    if not limit > 0:
        raise DataError(f"--max-image-megapixels: got {limit:g}, needs more than 0. Give millions of pixels.")
    return PixelFormat(max_megapixels=limit)


def _scan(part: "CocoSplit", args: Namespace) -> "list[ImageFacts]":
    from deim.curation.scan import scan_images
    from deim.engine.log import progress_bar

    paths = [part.image_path(index) for index in range(len(part))]
    with progress_bar("images", total=len(paths)) as advance:
        return scan_images(
            paths, decode=True, pixels=_pixels(args), workers=args.workers, progress=lambda _: advance("")
        )


def _write_json(path: Path, **content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1))
