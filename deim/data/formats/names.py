"""The names of the formats. They stand alone, so that commands offer them without importing any reader."""

from typing import Final, Literal, get_args

Format = Literal["coco", "yolo", "voc"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
"""Formats that are read."""

WrittenFormat = Literal["coco", "yolo", "voc"]
WRITTEN_FORMATS: Final[tuple[WrittenFormat, ...]] = get_args(WrittenFormat)
"""Formats that `deim data` also writes."""

CONTENTS: Final[dict[Format, str]] = {
    "coco": "annotations/*.json and images/",
    "yolo": "a data.yaml",
    "voc": "Annotations/*.xml and JPEGImages/",
}
"""Files by which a folder of each format is recognized, for messages."""
