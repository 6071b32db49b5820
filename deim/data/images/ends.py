"""A look at the end of an image file, which finds files cut short without decoding them."""

import struct
from pathlib import Path
from typing import Final

import tifffile

from deim.data.images.read import DAMAGE, TIFF_MARKS

ENDS: Final = (
    (b"\xff\xd8", b"\xff\xd9"),
    (b"\x89PNG", b"IEND\xaeB`\x82"),
    (b"GIF8", b";"),
)
"""First and last bytes of JPEG, PNG and GIF."""
HEAD_BYTES, TAIL_BYTES = 32, 64


def has_usual_end(path: Path) -> bool:
    """Whether a file ends as its format says; false also for a format whose end is not known.

    A file with another end may still be decoded without a fault: only decoding shows that.

    Raises:
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read().rstrip(b"\0")
    for mark, end in ENDS:
        if head.startswith(mark):
            return tail.endswith(end)
    if head.startswith(b"RIFF") and len(head) >= 8:
        return int(struct.unpack("<I", head[4:8])[0]) + 8 <= size
    if head.startswith(b"BM") and len(head) >= 6:
        return 0 < int(struct.unpack("<I", head[2:6])[0]) <= size
    return head[:4] in TIFF_MARKS and _tiff_fits(path, size)


def _tiff_fits(path: Path, size: int) -> bool:
    """Whether the first image of a TIFF lies within the file."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            return all(
                offset + count <= size
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            )
    except DAMAGE:
        return False
