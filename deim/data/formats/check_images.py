"""Comparison of image files with what the annotations say about them."""

from collections.abc import Sequence

from deim.data.formats.split import CocoSplit
from deim.data.images.pixel_format import RGB8, PixelFormat
from deim.data.images.read import read_fitting_header, read_header
from deim.errors import DataError
from deim.files import raise_listed


def check_images(split: CocoSplit, pixels: PixelFormat | None = RGB8) -> None:
    """Check the header of every image of a split; damage in its pixels shows only when it is decoded.

    Args:
        split: Any split.
        pixels: Expected channels and depth; None accepts anything.

    Raises:
        DataError: If a file is not an image, has another size than the annotations say, or an unexpected
            depth or number of channels; all problems are listed.
    """
    problems = []
    for index, listed_hw in enumerate(split.sizes_hw.tolist()):
        try:
            path = split.image_path(index)
            header = read_header(path) if pixels is None else read_fitting_header(path, pixels)
        except DataError as error:
            problems.append(str(error))
            continue
        if list(header.size_hw) != listed_hw:
            where, name = split.annotations_path.name, split.file_names[index]
            problems.append(describe_size_difference(where, name, listed_hw, header.size_hw))
    raise_listed(problems)


def describe_size_difference(where: str, name: str, listed_hw: Sequence[int], file_hw: Sequence[int]) -> str:
    """Return the message about an image whose file has another size than listed; sizes in pixels."""
    return (
        f"{where}: image {name!r} is listed as {listed_hw[1]}x{listed_hw[0]} px, the upright file has "
        f"{file_hw[1]}x{file_hw[0]} px. Boxes would be misplaced: correct the size, and the boxes if they "
        f"were drawn on a rotated view."
    )
