"""Names of formats and splits. They stand alone, so that commands offer them without importing any reader."""

import re
from collections.abc import Iterable
from typing import Final, Literal, get_args

Format = Literal["coco", "yolo", "voc"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
"""Formats that are read."""

CONTENTS: Final[dict[Format, str]] = {
    "coco": "annotations/*.json and images/, or a JSON file in each split's folder",
    "yolo": "a data.yaml, an obj.data, or a classes.txt and a text file for each image",
    "voc": "XML files in Annotations/ or beside the images",
}
"""Files by which a folder of each format is recognized, for messages."""

SPLITS = ("train", "val", "test")
"""Usual names of the splits, in the order in which they are listed."""
UNSPLIT = "all"
"""Name of a dataset that is not divided into splits."""
WORDS: Final = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "default": UNSPLIT,
    "all": UNSPLIT,
}
"""Words for splits in the names of files and folders."""


def name_splits(given: Iterable[str]) -> dict[str, str]:
    """Recognize splits by the names of their files or folders, such as `instances_Train2017` or `valid`.

    Args:
        given: Names without suffix.

    Returns:
        Given name of each split, train, val and test first. A name keeps itself where it has no word for a
        split, or where another name fits the same split at least as well.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(given, key=_rank):
        known = split_words(name)
        groups.setdefault(known.pop() if len(known) == 1 else name, []).append(name)
    splits: dict[str, str] = {}
    for split, names in groups.items():
        is_clear = len(names) == 1 or _rank(names[0]) < min(_rank(names[1]), 2)
        splits |= {split if is_clear and name == names[0] else name: name for name in names}
    order = {split: place for place, split in enumerate(SPLITS)}
    return dict(sorted(splits.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def split_words(name: str) -> set[str]:
    """Return the splits that the words of a name stand for."""
    return {WORDS[word] for word in _words(name) if word in WORDS}


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z]+", name.lower()) if word]


def _rank(name: str) -> int:
    """Return how well a name fits a split: 0 for a word alone, 1 for the instances of COCO, 2 otherwise."""
    words = _words(name)
    return 0 if len(words) == 1 else 1 if words[:1] == ["instances"] else 2
