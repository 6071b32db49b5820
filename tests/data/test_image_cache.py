"""Images kept between epochs: the same bits, within the bound, whatever happens to processes and files."""

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deim.config.schema import Config
from deim.data import image_cache
from deim.data.dataset import DetectionDataset
from deim.data.formats.coco import read_coco
from deim.data.formats.split import CocoSplit
from deim.data.image_cache import HEADER_BYTES, DiskCache, MemoryCache, ResizedImage
from deim.data.loader import build_disk_cache, build_eval_loader
from deim.errors import DataError
from deim.structures import Placement
from tests.data.building import make_format, read_input_of

CLASSES = {3: 0, 7: 1, 90: 2}
SHAPE = (3, 64, 96)
STEP = 3 * 64 * 96 + HEADER_BYTES
"""Bytes of an image of SHAPE."""


def make_resized(seed: int, *, is_float: bool = False) -> ResizedImage:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=generator)
    placement = Placement(orig_size_hw=(100 + seed, 37), span_hw=(100.125, 1 / 3), shift_yx=(-0.1, 0.0))
    return (image.float() / 255 if is_float else image), placement


def is_same(actual: ResizedImage | None, expected: ResizedImage) -> bool:
    return actual is not None and torch.equal(actual[0], expected[0]) and actual[1] == expected[1]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    actual = [tmp_path / f"image_{index}.jpg" for index in range(4)]
    for index, path in enumerate(actual):
        path.write_bytes(bytes(10 + index))
    return actual


def open_cache(paths: list[Path], *, images: float = 4, name: str = "train", **changes) -> DiskCache:
    options = {
        "key": "stretch",
        "image_bytes": 3 * 64 * 96,
        "max_bytes": int(images * STEP),
        **changes,
    }
    return DiskCache(paths[0].parent / "cache", paths, name=name, **options)


def test_memory_holds_no_more_than_its_bound() -> None:
    cache = MemoryCache(2 * 3 * 64 * 96 + 1)
    fitted = [make_resized(seed) for seed in range(3)]
    for index in (0, 0, 1, 2):
        cache.put(index, fitted[index])
    assert [cache.get(index) is not None for index in range(3)] == [True, True, False]
    assert is_same(cache.get(1), fitted[1])
    assert cache.free_bytes == 1
    empty = MemoryCache(0)
    empty.put(0, fitted[0])
    assert empty.get(0) is None


@pytest.mark.parametrize("is_float", [False, True])
def test_what_comes_back_is_what_was_put_in(paths: list[Path], is_float: bool) -> None:
    kind = {"image_bytes": 3 * 64 * 96 * (4 if is_float else 1), "max_bytes": 10**6}
    cache = open_cache(paths, **kind)
    fitted = [make_resized(seed, is_float=is_float) for seed in range(4)]
    assert [cache.get(index) for index in range(4)] == [None] * 4
    for index in (2, 0):
        cache.put(index, fitted[index])
    again = open_cache(paths, **kind)
    copied = pickle.loads(pickle.dumps(again))
    for item in (cache, again, copied):
        assert is_same(item.get(0), fitted[0])
        assert is_same(item.get(2), fitted[2])
        assert item.get(1) is item.get(3) is None


def test_changes_of_what_came_back_do_not_reach_the_file(paths: list[Path]) -> None:
    cache, fitted = open_cache(paths), make_resized(0)
    cache.put(0, fitted)
    cache.get(0)[0].zero_()
    assert is_same(cache.get(0), fitted)


@pytest.mark.parametrize(("images", "capacity"), [(0, 0), (0.9, 0), (1, 1), (2.5, 2), (4, 4), (99, 4)])
def test_a_cache_holds_no_more_than_its_bound(paths: list[Path], images: float, capacity: int) -> None:
    cache = open_cache(paths, images=images)
    for index in range(4):
        cache.put(index, make_resized(index))
    assert [cache.get(index) is not None for index in range(4)] == [index < capacity for index in range(4)]
    files = list(paths[0].parent.glob("cache/*/*"))
    assert len(files) == capacity
    assert sum(path.stat().st_size for path in files) <= images * STEP


@pytest.mark.parametrize(
    "change",
    [
        {"key": "letterbox"},
        {"image_bytes": 3 * 32 * 96},
        {"name": "val"},
        {"images": 3},
    ],
    ids=str,
)
def test_what_was_made_otherwise_is_never_found(paths: list[Path], change: dict[str, object]) -> None:
    open_cache(paths).put(0, make_resized(0))
    assert open_cache(paths).get(0) is not None
    assert open_cache(paths, **change).get(0) is None


def test_other_or_changed_files_are_never_found(paths: list[Path]) -> None:
    cache = open_cache(paths, images=9)
    for index in range(4):
        cache.put(index, make_resized(index))
    assert open_cache(paths[::-1], images=9).get(0) is None
    os.utime(paths[1], ns=(0, 12345))
    paths[2].write_bytes(b"another length")
    paths[3].unlink()
    # In the middle of a run, and for the next one; there is nothing to be kept of a file that has changed.
    cache.put(1, make_resized(7))
    assert [cache.get(index) is not None for index in range(4)] == [True, False, False, False]
    assert [open_cache(paths).get(index) for index in range(4)] == [None] * 4


def test_other_caches_of_the_split_make_room_the_oldest_first(paths: list[Path]) -> None:
    for number in range(3):
        cache = open_cache(paths, images=9, key=str(number))
        for index in range(4):
            cache.put(index, make_resized(index))
        os.utime(cache.folder, (number, number))
    other = open_cache(paths, images=9, name="val")
    assert len(list(other.folder.parent.iterdir())) == 3  # two of four images within room for nine, and val's
    kept = [open_cache(paths, images=9, key=str(number)).folder for number in (1, 2)]
    assert {other.folder, *kept} == set(other.folder.parent.iterdir())


@pytest.mark.parametrize("length", [0, 16, 5000])
def test_a_damaged_image_is_never_returned(paths: list[Path], length: int) -> None:
    cache, resized = open_cache(paths), make_resized(0)
    cache.put(0, resized)
    (path,) = cache.folder.iterdir()
    path.write_bytes(path.read_bytes()[:length])
    again = open_cache(paths)
    assert again.get(0) is None
    again.put(0, resized)
    assert is_same(again.get(0), resized)


def test_a_flipped_bit_is_noticed_wherever_it_is(paths: list[Path]) -> None:
    cache = open_cache(paths)
    cache.put(0, make_resized(0))
    (path,) = cache.folder.iterdir()
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(content), size=200).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert open_cache(paths).get(0) is None
    path.write_bytes(content)
    assert is_same(open_cache(paths).get(0), make_resized(0))


def test_a_cache_that_another_run_has_removed_is_no_error(paths: list[Path]) -> None:
    cache = open_cache(paths)
    shutil.rmtree(cache.folder)
    cache.put(0, make_resized(0))
    assert cache.get(0) is None


def _fill_for_ever(paths: list[Path], first: int) -> None:
    cache = open_cache(paths)
    number = first
    while True:
        cache.put(number % 4, make_resized(number % 4))
        number += 1


def test_writers_that_are_killed_leave_whole_images_or_none(paths: list[Path]) -> None:
    expected = [make_resized(index) for index in range(4)]
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        # Two at a time, at the same images.
        writers = [context.Process(target=_fill_for_ever, args=(paths, first)) for first in (0, 0)]
        for writer in writers:
            writer.start()
        until = time.monotonic() + 0.03 * (attempt + 1)
        while time.monotonic() < until:
            reader = open_cache(paths)
            actual = [reader.get(index) for index in range(4)]
            assert all(item is None or is_same(item, expected[index]) for index, item in enumerate(actual))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    reader = open_cache(paths)
    assert all(is_same(reader.get(index), expected[index]) for index in range(4))


def test_a_full_disk_is_reported_at_the_start(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(paths[0].parent)._replace(free=1000)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"the disk is full; the cache of the split needs 1 MiB\. Free"):
        open_cache(paths)


def test_a_folder_that_cannot_be_written_is_named(paths: list[Path]) -> None:
    (paths[0].parent / "cache").write_text("a file")
    with pytest.raises(
        DataError, match=r"cannot be written \(.*\)\. .*name another folder .* data\.disk_cache_mb=0\."
    ):
        open_cache(paths)


def test_a_failed_write_is_reported(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(paths)

    def fail(path: Path, write: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_cache, "write_atomically", fail)
    with pytest.raises(DataError, match="the disk is full"):
        cache.put(0, make_resized(0))
    monkeypatch.undo()
    assert cache.get(0) is None


def plain_dataset(config: Config, split: CocoSplit) -> DetectionDataset:
    form = make_format(config)
    cache = build_disk_cache(config.data, split, form)
    return DetectionDataset(split, CLASSES, input_format=form, disk_cache=cache)


def read(root: Path, name: str = "train") -> CocoSplit:
    return read_coco(root / "annotations" / f"{name}.json", root / "images")


@pytest.mark.parametrize(
    "extra", [(), ("data.scaling={type: window, low: 0, high: 255}",)], ids=["uint8", "window"]
)
def test_batches_are_the_same_with_and_without_caches(
    tiny_set: Path, tmp_path: Path, tiny_config: Callable[..., Config], extra: tuple[str, ...]
) -> None:
    actual = []
    cache_dir = f"data.disk_cache_dir={tmp_path / 'cache'}"
    for workers, caches in (
        (0, ()),
        (0, ("cache_mb=1",)),
        (2, ("disk_cache_mb=1",)),
        (0, ("disk_cache_mb=1",)),
    ):
        options = [f"data.{option}" for option in caches]
        config = tiny_config(
            tiny_set, tmp_path / "run", *options, cache_dir, *extra, f"data.num_workers={workers}"
        )
        loader = build_eval_loader(
            read(tiny_set), CLASSES, input_format=make_format(config), data=config.data
        )
        for _ in range(2):
            actual.append(torch.cat([batch.images.clone() for batch in loader]))
    assert all(torch.equal(item, actual[0]) for item in actual)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    plain = DetectionDataset(read(tiny_set), CLASSES, input_format=make_format(config))
    assert torch.equal(
        torch.stack([read_input_of(plain, 0, index)[0] for index in range(len(plain))]), actual[0]
    )


def test_the_second_run_decodes_nothing(
    tiny_set: Path, tmp_path: Path, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        tiny_set, tmp_path / "run", "data.disk_cache_mb=4", f"data.disk_cache_dir={tmp_path / 'cache'}"
    )
    split, form = read(tiny_set), make_format(config)
    for is_first in (True, False):
        cache = build_disk_cache(config.data, split, form)
        dataset = DetectionDataset(split, CLASSES, input_format=form, disk_cache=cache)
        for index in range(len(split)):
            dataset.read((0, index))
        if is_first:
            monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was decoded"))


def test_the_name_of_the_file_follows_from_the_options(
    tiny_set: Path, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    def name(*options: str) -> str:
        config = tiny_config(
            tiny_set, tmp_path / "run", "data.disk_cache_mb=4", f"data.disk_cache_dir={tmp_path}", *options
        )
        cache = build_disk_cache(config.data, read(tiny_set), make_format(config))
        assert cache is not None
        return cache.folder.name

    other = [
        "image_size=[64,96]",
        "data.resize=letterbox",
        "data.reduced_decode=true",
        "data.scaling={type: window, low: 0, high: 250}",
    ]
    assert len({name(), *(name(option) for option in other)}) == len(other) + 1
    assert name() == name("data.mean=[0.5,0.5,0.5]", "data.num_workers=3")
    assert np.unique([name(option).split("-")[0] for option in other]).size == 1


def test_splits_of_one_file_do_not_make_room_for_each_other(
    tiny_set: Path, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", *cached_options(tmp_path))
    train, val = read(tiny_set), read(tiny_set, "val")
    val = replace(val, annotations_path=train.annotations_path)  # as of YOLO, which has a data.yaml for all
    names = [
        cache.folder.name.split("-")[0]
        for split in (train, val)
        if (cache := build_disk_cache(config.data, split, make_format(config)))
    ]
    assert len(set(names)) == 2


def test_tiles_are_kept_as_tiles(tiny_set: Path, tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    split = read(tiny_set)
    tiles = "data.tiles={size: 48}"
    plain = tiny_config(tiny_set, tmp_path / "run", tiles)
    cached = tiny_config(tiny_set, tmp_path / "run", tiles, *cached_options(tmp_path))
    new, kept = (plain_dataset(config, split) for config in (plain, cached))
    assert len(new) > len(split)
    for _ in range(2):
        for index in range(len(new)):
            (image, target), (kept_image, kept_target) = new.read((0, index)), kept.read((0, index))
            assert torch.equal(image, kept_image)
            assert target["placement"] == kept_target["placement"]
    whole = tiny_config(tiny_set, tmp_path / "run", *cached_options(tmp_path))
    assert torch.equal(
        plain_dataset(whole, split).read((0, 0))[0],
        plain_dataset(tiny_config(tiny_set, tmp_path / "run"), split).read((0, 0))[0],
    )


def cached_options(folder: Path) -> tuple[str, str]:
    return "data.disk_cache_mb=50", f"data.disk_cache_dir={folder / 'cache'}"
