"""Detect defects in images: write COCO results and a copy of each image with its boxes.

The folder of the output holds

  predictions.json  the detections, COCO results with file and class names
  images.json       every image: id, file name, and num_detections, or the error of one that cannot be used
  annotated/        a copy of each image with its boxes, in the same subfolders

The two lists are whole after each image. Lists of an earlier command stay until the new ones are complete,
which are predictions.unfinished.json and images.unfinished.json until then, also after a stop. An image that
cannot be used does not stop the others; the exit code is then 1.

Examples:
  deim predict outputs/quickstart/best.pth data/quickstart/images --output outputs/predictions
  deim predict outputs/quickstart lots --no-recursive --score-threshold 0.2
"""

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deim.cli.arguments import add_override_argument, new_parser
from deim.errors import ConfigError, DataError, DeimError
from deim.files import JsonListFile, count, is_utf8, looked_in, refuse_overwriting

if TYPE_CHECKING:
    from deim.inference.predictor import Predictor
    from deim.structures import Detections

LONGEST_SIDE_PX = {
    **dict.fromkeys((".jpg", ".jpeg"), 65_535),
    **dict.fromkeys((".png", ".bmp", ".tif", ".tiff"), 2**31 - 1),
    ".webp": 16_383,
}
"""Formats in which annotated copies are written, and their limits; copies of others and larger are PNG."""
BAD_NAME = "its name is not text in UTF-8, which no list of results can hold. Rename the file."
MAX_NAME_BYTES = 255
"""Length of a file's name in most file systems."""


def build_parser() -> ArgumentParser:
    """Return the parser of `deim predict`."""
    parser = new_parser("predict", __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="Run folder, or a checkpoint such as best.pth.")
    add("images", type=Path, help="An image, or a folder of images.")
    add("--output", type=Path, default=Path("outputs/predictions"), help="Folder to write to.")
    what = "Predict the images in the folders below, too. Hidden files are always left out."
    add("--recursive", action=BooleanOptionalAction, default=True, help=what)
    what = "COCO file: predict only the images that it lists, with their ids; without it, ids count from 1."
    add("--annotations", type=Path, help=what)
    what = "Lowest score of a detection, 0 for raw detections; without it, the thresholds in the checkpoint."
    add("--score-threshold", type=float, help=what)
    add_override_argument(parser, "runtime.device=cpu evaluation.draw_threshold=0.3")
    return parser


def run(args: Namespace) -> int:
    """Write `predictions.json`, `images.json` and an annotated copy of each image; return the exit code."""
    from deim.engine.log import progress_bar
    from deim.engine.trained_detector import load_trained
    from deim.inference.predictor import Predictor

    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold: got {args.score_threshold:g}, needs [0, 1]")
    images = list_images(args.images, recursive=args.recursive)
    annotated = args.output / "annotated"
    given = (path for path in (args.images, args.checkpoint, args.annotations) if path is not None)
    refuse_overwriting(
        outputs=[args.output / "predictions.json", args.output / "images.json", annotated],
        inputs=[*given, *images.linked_places()],
    )
    image_ids, num_absent = number_images(images, args.annotations)
    predictor = Predictor(load_trained(args.checkpoint, overrides=args.set))
    writer = _Writer(
        predictor,
        args.output,
        annotated=annotated,
        names=image_ids.keys(),
        score_threshold=args.score_threshold,
    )
    usable = {name: image_id for name, image_id in image_ids.items() if is_utf8(name)}
    for name in image_ids.keys() - usable.keys():
        writer.fail(name, image_ids[name], BAD_NAME)
    paths = (images.folder / name for name in usable)
    results = predictor.stream(paths, score_threshold=args.score_threshold)
    with progress_bar("images", total=len(usable)) as advance:
        for (name, image_id), result in zip(usable.items(), results, strict=True):
            writer.write(images.folder, name, image_id, result)
            advance("")
    writer.finish()
    print(
        f"{count('detection', writer.num_detections)} in {count('image', writer.num_images)}"
        f"\nkept       {describe_thresholds(predictor, args.score_threshold)}"
    )
    for line in images.describe_skipped():
        print(f"skipped    {line}")
    if len(image_ids) < len(images.names):
        unlisted = count("image", len(images.names) - len(image_ids))
        print(f"skipped    {unlisted} that {args.annotations} does not list")
    if num_absent:
        print(f"missing    {count('image', num_absent)} of {args.annotations}, not in {images.folder}")
    if writer.num_empty:
        print(f"empty      {count('image', writer.num_empty)} without a detection, named in images.json")
    if writer.failed:
        print(f"failed     {count('image', len(writer.failed))}: {', '.join(writer.failed)}")
    print(f"results    {args.output / 'predictions.json'}\nimages     {args.output / 'images.json'}")
    print(f"annotated  {annotated}")
    for reason in writer.failed.values():
        print(reason, file=sys.stderr)
    return 1 if writer.failed else 0


class _Writer:
    """Writes the results image by image, and counts them."""

    def __init__(
        self,
        predictor: "Predictor",
        output: Path,
        *,
        annotated: Path,
        names: Collection[str],
        score_threshold: float | None,
    ) -> None:
        output.mkdir(parents=True, exist_ok=True)
        annotated.mkdir(exist_ok=True)
        self.predictor, self.annotated, self._names = predictor, annotated, names
        # Hundreds of raw detections, which --score-threshold 0 keeps, would cover the image.
        draw_threshold = predictor.trained.config.evaluation.draw_threshold
        self._draw_from = 0.0 if score_threshold is None else draw_threshold
        self._results = JsonListFile(output / "predictions.json")
        self._images = JsonListFile(output / "images.json")
        self.num_images = self.num_detections = self.num_empty = 0
        self.failed: dict[str, str] = {}
        """Why each image that cannot be used cannot, by name."""

    def fail(self, name: str, image_id: int | str, reason: str) -> None:
        """Write why an image cannot be used; bytes of its name that are no text are escaped."""
        shown = name.encode("utf-8", "backslashreplace").decode()
        self.failed[shown] = reason if shown == name else f"{shown}: {reason}"
        self._images.add([{"id": image_id, "file_name": shown, "error": self.failed[shown]}])

    def write(self, folder: Path, name: str, image_id: int | str, result: "Detections | DeimError") -> None:
        """Write the detections of an image and its annotated copy, or why there are none."""
        from deim.inference.detection_table import DetectionTable

        if isinstance(result, DeimError):
            self.fail(name, image_id, str(result))
            return
        self._copy(folder, name, result)
        names = dict(zip(self.predictor.category_ids, self.predictor.class_names, strict=True))
        rows = [
            {**row, "image_id": image_id, "file_name": name, "category_name": names[row["category_id"]]}
            for row in DetectionTable.from_detections({0: result}).to_coco([0], self.predictor.category_ids)
        ]
        self._results.add(rows)
        self._images.add([{"id": image_id, "file_name": name, "num_detections": len(rows)}])
        self.num_images += 1
        self.num_detections += len(rows)
        self.num_empty += not rows

    def finish(self) -> None:
        """Give the lists, which are complete, their names."""
        self._results.finish()
        self._images.finish()

    def _copy(self, folder: Path, name: str, detections: "Detections") -> None:
        """Draw the detections on a copy of the image; say once if the file has more images than this."""
        from deim.data.images.load import read_preview
        from deim.data.images.read import read_header
        from deim.report.draw import detections_panel, draw_panel, write_image

        pages = read_header(folder / name).pages
        if pages > 1:
            print(f"{folder / name}: has {pages} pages or frames; only the first is used.")
        shown = detections.take(detections.scores >= self._draw_from)
        panel = detections_panel(shown, class_names=self.predictor.class_names)
        drawn = draw_panel(read_preview(folder / name), panel)
        path = self.annotated / self._copy_name(name, longest_side=max(drawn.size))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(drawn, path)

    def _copy_name(self, name: str, *, longest_side: int) -> str:
        """Return the name of the annotated copy of an image of a size in pixels."""
        if longest_side <= LONGEST_SIDE_PX.get(Path(name).suffix.lower(), 0):
            return name
        copy = Path(f"{name}.png")
        if len(copy.name.encode()) > MAX_NAME_BYTES:
            copy = Path(name).with_suffix(".png")
        while copy.as_posix() in self._names:  # the copy of another image
            copy = copy.with_name(f"_{copy.name}")
        return copy.as_posix()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageList:
    """The images to predict, and what lies beside them."""

    folder: Path
    names: tuple[str, ...]
    """Paths relative to the folder, with `/`, in alphabetical order."""
    num_deeper: int = 0
    """Number of images in the folders below that are not wanted."""
    others: tuple[str, ...] = ()
    """Files that are not images, as `names`."""

    def linked_places(self) -> list[Path]:
        """Return the folders below with images, and the images that are links: both may lie elsewhere."""
        folders = {name.rpartition("/")[0] for name in self.names if "/" in name}
        links = (path for name in self.names if (path := self.folder / name).is_symlink())
        return [*(self.folder / folder for folder in sorted(folders)), *links]

    def describe_skipped(self) -> Iterator[str]:
        """Yield a line about each kind of file that is left out."""
        if self.num_deeper:
            yield f"{count('image', self.num_deeper)} in the folders below, because of --no-recursive"
        if self.others:
            kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in self.others)
            listed = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
            yield f"{count('file', len(self.others))} of other types: {listed}"


def list_images(path: Path, *, recursive: bool) -> ImageList:
    """List an image, or the images of a folder and of those below, except hidden ones.

    Raises:
        DataError: If there is none.
    """
    from deim.data.images.folder import walk_files
    from deim.data.images.read import IMAGE_SUFFIXES

    if path.is_file():
        return ImageList(folder=path.parent, names=(path.name,))
    if not path.is_dir():
        raise DataError(f"{path}: no such image or folder{looked_in(path)}.")
    files = sorted(walk_files(path))
    images = [name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    names = tuple(name for name in images if recursive or "/" not in name)
    if not names:
        below = f" {count('image', len(images))} lie in the folders below: leave out --no-recursive."
        raise DataError(
            f"{path}: there is no image. Give an image, or a folder of {', '.join(sorted(IMAGE_SUFFIXES))}."
            f"{below if images else ''}"
        )
    others = tuple(name for name in files if Path(name).suffix.lower() not in IMAGE_SUFFIXES)
    return ImageList(folder=path, names=names, num_deeper=len(images) - len(names), others=others)


def number_images(images: ImageList, annotations: Path | None) -> tuple[dict[str, int | str], int]:
    """Return the id of each image, and the number of images that are listed and not there.

    The ids are 1, 2, 3, …, or those of a COCO file for the images that it lists.

    Raises:
        DataError: If the COCO file cannot be read, lists none of the images, or an image twice.
    """
    if annotations is None:
        return {name: number for number, name in enumerate(images.names, start=1)}, 0
    from deim.data.formats.coco import read_image_ids
    from deim.data.images.folder import ImageIndex

    ids, num_absent = read_image_ids(annotations, ImageIndex(images.folder, images.names))
    listed = {name: ids[name] for name in images.names if name in ids}
    if not listed:
        raise DataError(
            f"{annotations}: lists none of the {len(images.names)} images, such as {images.names[0]!r}. Give "
            f"images that it lists, or leave out --annotations."
        )
    return listed, num_absent


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
