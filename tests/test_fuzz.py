"""Damaged and hostile files of every kind: each is read or ends in a message, never in a traceback, soon."""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from deim.curation.check import check_dataset, read_for_check
from deim.data.formats.read import find_dataset
from deim.data.images.input_format import InputFormat
from deim.data.images.load import read_input
from deim.errors import DeimError
from tests.data.small_sets import noise, write_small_set
from tests.hostile import spoil

MAX_SECONDS = 4.0
"""A small file may take 2 s; the machine may be busy."""


@dataclass(frozen=True)
class Target:
    """A kind of file: how a good one is made, and what reads it."""

    name: str
    kind: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    """Takes the path that `make` returned."""


FORMAT = InputFormat(size_hw=(64, 64))


def check(root: Path) -> None:
    raws, unread = read_for_check(find_dataset(root))
    check_dataset(raws, unread=unread, input_format=FORMAT, decode=False)


def make_coco(root: Path) -> Path:
    write_small_set(root)
    return root / "annotations" / "train.json"


def make_yolo(root: Path) -> Path:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    noise(1).save(root / "images" / "a.png")
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.2\n1 0.25 0.25 0.1 0.1\n")
    (root / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames:\n  0: pit\n  1: scratch\n")
    return root / "data.yaml"


def make_labels(root: Path) -> Path:
    make_yolo(root)
    return root / "labels" / "a.txt"


def make_voc(root: Path) -> Path:
    root.mkdir(parents=True)
    noise(1).save(root / "a.png")
    (root / "a.xml").write_text(
        "<annotation>\n<filename>a.png</filename>\n<size><width>40</width><height>30</height></size>\n<object>\n"
        "<name>pit</name>\n<bndbox><xmin>4</xmin><ymin>6</ymin><xmax>14</xmax><ymax>18</ymax></bndbox>\n"
        "</object>\n</annotation>\n"
    )
    return root / "a.xml"


def make_image(suffix: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        root.mkdir(parents=True)
        exif = Image.Exif()
        exif[274], exif[282] = 6, 72.0
        noise(1).save(root / f"a{suffix}", exif=exif)
        return root / f"a{suffix}"

    return make


TARGETS = [
    Target("coco", "json", make_coco, lambda path: check(path.parents[1])),
    Target("yolo", "yaml", make_yolo, lambda path: check(path.parent)),
    Target("labels", "text", make_labels, lambda path: check(path.parents[1])),
    Target("voc", "xml", make_voc, lambda path: check(path.parent)),
    *(
        Target(f"image{suffix}", "binary", make_image(suffix), lambda path: read_input(path, FORMAT))
        for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp")
    ),
]


def run_trials(target: Target, root: Path, *, trials: int, seed: int) -> None:
    path = target.make(root / "set")
    good = path.read_bytes()
    target.read(path)
    rng = random.Random(f"{target.name} {seed}")
    for trial in range(trials):
        content = spoil(good, target.kind, rng)
        path.write_bytes(content)
        start = time.monotonic()
        try:
            target.read(path)
        except DeimError as error:
            str(error).encode("utf-8")
        except BaseException as error:
            kept = Path(os.environ.get("FUZZ_KEEP", str(root))) / f"{target.name}_{seed}_{trial}"
            kept.write_bytes(content)
            raise AssertionError(f"{target.name}, trial {trial}: {error!r}; the file is {kept}") from error
        seconds = time.monotonic() - start
        assert seconds < MAX_SECONDS, f"{target.name}, trial {trial}: {seconds:.1f} s, {content[:200]!r}"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_damaged_file_ends_in_a_traceback(target: Target, tmp_path: Path) -> None:
    run_trials(target, tmp_path, trials=150, seed=6)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_ten_thousand_damaged_files_end_in_no_traceback(target: Target, tmp_path: Path) -> None:
    run_trials(target, tmp_path, trials=10_000 // len(TARGETS), seed=6)


def test_json_with_every_hostile_value_is_made(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [spoil(b'{"a": [1, {"b": 2}]}', "json", rng) for _ in range(400)]
    assert any(b"9999" in text for text in texts)
    assert any(b"[[[[[[[[" in text for text in texts)
    assert any(b"\\ud800" in text for text in texts)
    assert json.loads('{"a": 1}') == {"a": 1}
