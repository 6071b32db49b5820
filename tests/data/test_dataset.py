"""Samples, their stages, and the loaders: the same seed gives the same samples, however they are loaded."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from deim.config.schema import Config
from deim.data.augment.transform import Sample
from deim.data.batch import Batch
from deim.data.dataset import DetectionDataset
from deim.data.formats.check_images import check_images
from deim.data.formats.coco import read_coco
from deim.data.formats.split import CocoSplit
from deim.data.loader import build_eval_loader
from deim.data.sampling import BatchRequest, EpochSampler, Item
from deim.errors import DataError, TrainingError
from tests.data.building import make_format, make_pipeline, make_train_loader, read_input_of

COLORS_ONLY = make_pipeline(photometric=1.0, start=2, stop=5)


def read(root: Path, name: str = "train") -> CocoSplit:
    return read_coco(root / "annotations" / f"{name}.json", root / "images")


def make_sample() -> Sample:
    return Sample(
        image=torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8),
        boxes_xyxy=torch.tensor([[1.0, 2.0, 10.0, 20.0]]),
        labels=torch.tensor([0]),
    )


def epoch_of(config: Config, split: CocoSplit, *, epoch: int) -> list[Batch]:
    loader = make_train_loader(config, split, batch_size=3)
    loader.set_epoch(epoch)
    return list(loader)


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        [t["image_id"] for t in a.targets] == [t["image_id"] for t in b.targets]
        and torch.equal(a.images, b.images)
        and all(torch.equal(s["boxes"], t["boxes"]) for s, t in zip(a.targets, b.targets, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_of_empty_images_collates(
    tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path, empty=["val"])
    config = tiny_config(root, tmp_path / "run")
    split = read(root, "val")
    loader = build_eval_loader(split, {3: 0, 7: 1, 90: 2}, input_format=make_format(config), data=config.data)
    batches = list(loader)
    assert sum(len(batch.targets) for batch in batches) == len(split) == split.num_empty
    for target in (target for batch in batches for target in batch.targets):
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == target["area"].shape == (0,)


def test_a_sample_says_where_it_comes_from(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    split = read(tiny_set)
    config = tiny_config(tiny_set, tiny_set / "run", "image_size=[64,96]")
    dataset = DetectionDataset(split, {3: 0, 7: 1, 90: 2}, input_format=make_format(config))
    image, target = read_input_of(dataset, 0, 1)
    assert image.shape == (3, 64, 96)
    assert image.dtype == torch.float32
    assert target["image_id"] == 11
    assert target["file_name"] == "train_1.png"
    assert len(target["boxes"]) == 2
    height, width = split.sizes_hw[1]
    left, top, box_width, box_height = split.boxes_xywh[split.first_box[1]]
    center = [(left + box_width / 2) / width, (top + box_height / 2) / height]
    expected = torch.tensor([*center, box_width / width, box_height / height])
    torch.testing.assert_close(target["boxes"][0], expected.float(), atol=1e-6, rtol=0)
    shares = target["boxes"][:, 2] * target["boxes"][:, 3]
    torch.testing.assert_close(target["area"], shares * 64 * 96, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_no_sample(
    num_workers: int, tiny_set: Path, tiny_config: Callable[..., Config]
) -> None:
    options = ("augment.photometric=0.8", "augment.vertical_flip=0.5")
    split = read(tiny_set)
    alone = tiny_config(tiny_set, tiny_set / "run", *options)
    several = tiny_config(tiny_set, tiny_set / "run", *options, f"data.num_workers={num_workers}")
    for epoch in (0, 3):
        assert equal(epoch_of(alone, split, epoch=epoch), epoch_of(several, split, epoch=epoch))


def test_epochs_and_seeds_differ(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    split = read(tiny_set)
    config = tiny_config(tiny_set, tiny_set / "run", "augment.photometric=0.8")
    other = tiny_config(tiny_set, tiny_set / "run", "augment.photometric=0.8", "seed=1")
    first = epoch_of(config, split, epoch=0)
    assert equal(first, epoch_of(config, split, epoch=0))
    assert not equal(first, epoch_of(config, split, epoch=1))
    assert not equal(first, epoch_of(other, split, epoch=0))


def items_of(sampler: EpochSampler, epoch: int, *, first_batch: int = 0) -> list[list[Item]]:
    return [list(batch.items[batch.part]) for batch in sampler.requests(epoch, first_batch=first_batch)]


def test_an_epoch_visits_every_image_once_in_another_order() -> None:
    sampler = EpochSampler(40, 12, seed=3)
    orders = []
    for epoch in range(3):
        batches = items_of(sampler, epoch)
        assert [len(batch) for batch in batches] == [12, 12, 12, 4]
        items = [item for batch in batches for item in batch]
        assert {item[0] for item in items} == {epoch}
        orders.append([item[1] for item in items])
        assert sorted(orders[-1]) == list(range(40))
    assert orders[0] != orders[1] != orders[2]
    assert len(sampler) == 4


def test_an_interrupted_epoch_continues_with_the_batches_that_are_left() -> None:
    sampler = EpochSampler(40, 12, seed=3)
    assert items_of(sampler, 2, first_batch=2) == items_of(sampler, 2)[2:]


@pytest.mark.parametrize(
    ("num_images", "sizes"), [(24, [8, 8, 8]), (21, [8, 8, 5]), (20, [8, 8, 4]), (17, [8, 8])]
)
def test_processes_share_each_batch_equally(num_images: int, sizes: list[int]) -> None:
    shares = [items_of(EpochSampler(num_images, 8, seed=0, rank=rank, num_ranks=2), 0) for rank in (0, 1)]
    together = [[*first, *second] for first, second in zip(*shares, strict=True)]
    # A single image at the end of an epoch is skipped, a different one in each epoch.
    assert [len(batch) for batch in together] == [size - size % 2 for size in sizes]
    assert all(len(first) == len(second) for first, second in zip(*shares, strict=True))
    alone = items_of(EpochSampler(num_images, 8, seed=0), 0)
    assert [sorted(batch) for batch in together[:2]] == [sorted(batch) for batch in alone[:2]]
    assert len({item for batch in together for item in batch}) == num_images - num_images % 2


@pytest.mark.parametrize(("epoch", "changes"), [(0, False), (1, False), (2, True), (4, True), (5, False)])
def test_colors_change_from_the_start_until_the_final_stage(epoch: int, changes: bool) -> None:
    sample = make_sample()
    changed = COLORS_ONLY.change(sample, epoch=epoch, rng=np.random.default_rng(0))
    assert torch.equal(changed.image, sample.image) is not changes


@pytest.mark.parametrize("epoch", [0, 3, 9])
@pytest.mark.parametrize(("horizontal", "vertical"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_flips_are_on_for_the_whole_run(epoch: int, horizontal: float, vertical: float) -> None:
    pipeline = make_pipeline(horizontal_flip=horizontal, vertical_flip=vertical, start=2, stop=5)
    sample = make_sample()
    actual = pipeline.change(sample, epoch=epoch, rng=np.random.default_rng(0))
    axes = [axis for axis, share in ((-1, horizontal), (-2, vertical)) if share]
    assert torch.equal(actual.image, sample.image.flip(axes))


def test_evaluation_changes_no_image(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(tiny_set, tiny_set / "run", "augment.horizontal_flip=1", "augment.photometric=1")
    split = read(tiny_set, "val")
    loader = build_eval_loader(split, {3: 0, 7: 1, 90: 2}, input_format=make_format(config), data=config.data)
    actual = torch.cat([batch.images for batch in loader])
    plain = DetectionDataset(split, {3: 0, 7: 1, 90: 2}, input_format=make_format(config))
    assert torch.equal(
        actual, torch.stack([read_input_of(plain, 0, index)[0] for index in range(len(split))])
    )


def test_images_of_another_size_than_listed_are_named_before_a_run(
    tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path)
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    sizes = [(image["width"], image["height"]) for image in content["images"][:2]]
    for image in content["images"][:2]:
        image |= {"width": image["width"] + 200, "height": image["height"] + 300}
    path.write_text(json.dumps(content))
    (root / "images" / "val_3.png").write_bytes(b"no image")
    check_images(read(root, "train"))
    with pytest.raises(DataError) as caught:
        check_images(read(root, "val"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    for index, (line, (width, height)) in enumerate(zip(lines, sizes, strict=False)):
        assert line.startswith(
            f"val.json: image 'val_{index}.png' is listed as {width + 200}x{height + 300} px, "
            f"the upright file has {width}x{height} px. Boxes would be misplaced:"
        )
    assert "val_3.png: the image is damaged" in lines[2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line(
    num_workers: int, tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path)
    path = root / "images" / "train_4.png"
    path.write_bytes(path.read_bytes()[:400])
    config = tiny_config(root, root / "run", f"data.num_workers={num_workers}")
    with pytest.raises(DataError) as caught:
        epoch_of(config, read(root), epoch=0)
    message = str(caught.value)
    assert message.startswith(f"{path}: the image is damaged or not an image (")
    assert message.endswith("Replace or remove it.")
    assert "\n" not in message
    # They hold the loader in a circle, and the garbage collector waits 5 s for each of its workers.
    for error in (caught.value, caught.value.__context__):
        traceback.clear_frames(error.__traceback__ if error else None)


def test_a_batch_keeps_the_order_of_its_items(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    form = make_format(tiny_config(tiny_set, tiny_set / "run"))
    dataset = DetectionDataset(read(tiny_set), {3: 0, 7: 1, 90: 2}, input_format=form)
    batch = dataset.load_items([(0, 3), (0, 0)])
    assert [target["image_id"] for target in batch.targets] == [13, 10]
    assert torch.equal(batch.images[1], read_input_of(dataset, 0, 0)[0])
    moved = batch.to(torch.device("cpu"))
    assert moved.targets[0]["file_name"] == "train_3.png"


def test_loading_processes_can_be_spawned(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(tiny_set, tiny_set / "run", "augment.mosaic=0.5", "data.disk_cache_mb=4")
    dataset = make_train_loader(config, read(tiny_set)).dataset
    copy = pickle.loads(pickle.dumps(dataset))
    request = BatchRequest(epoch=1, number=0, items=((1, 0), (1, 3)))
    loaded, again = dataset[request], copy[request]
    assert isinstance(loaded, Batch)
    assert isinstance(again, Batch)
    assert torch.equal(loaded.images, again.images)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "Caught it in a worker.\nRuntimeError: unable to allocate shared memory(shm) for file </t>"
        ),
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that …"),
        RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError(),
    ],
    ids=str,
)
def test_a_lost_loading_process_names_the_remedies(
    error: Exception, tiny_set: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    class Lost:
        num_workers = 2

        def __iter__(self) -> Iterator[Batch]:
            raise error

    config = tiny_config(tiny_set, tmp_path / "run")
    loader = make_train_loader(config, read(tiny_set), batch_size=3)
    loader._loader = Lost()
    with pytest.raises(
        TrainingError, match=r"^data\.num_workers: .*--shm-size=8g, or set data\.num_workers=0\.$"
    ):
        list(loader)


def test_another_error_of_the_loader_is_not_hidden(
    tiny_set: Path, tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Batch:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(DetectionDataset, "__getitem__", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(make_train_loader(tiny_config(tiny_set, tmp_path / "run"), read(tiny_set), batch_size=3))


SMALL_SHM = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {python} {script}"
LOAD = """
from pathlib import Path
import sys
import torch
from deim.data.batch import Batch
from deim.errors import TrainingError
from deim.data.loader import BatchLoader
from deim.data.sampling import FixedBatches

class Large(torch.utils.data.Dataset):
    def __getitem__(self, request):
        target = {"boxes": torch.zeros(BOXES), "labels": torch.zeros(0)}
        batch = Batch(images=torch.zeros(IMAGES), targets=[target])
        batch.share()
        return batch

if __name__ == "__main__":
    try:
        list(BatchLoader(Large(), FixedBatches([[(0, 0)]] * 4), num_workers=2))
    except TrainingError as error:
        print(error)
"""


@pytest.mark.parametrize(("images", "boxes"), [(2**20, 1), (1, 2**20)])
def test_a_small_shared_memory_ends_in_one_line(images: int, boxes: int, tmp_path: Path) -> None:
    """The mount is private to this process and gone with it."""
    unshare = shutil.which("unshare")
    command = [unshare or "unshare", "-m", "sh", "-c"]
    probe = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if not unshare or subprocess.run([*command, probe], capture_output=True, check=False).returncode:
        pytest.skip("needs a private mount")
    script = tmp_path / "load.py"
    script.write_text(LOAD.replace("IMAGES", str(images)).replace("BOXES", str(boxes)))
    line = SMALL_SHM.format(python=sys.executable, script=script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, line], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.stdout.startswith("data.num_workers: a loading process ended"), done.stderr
    assert "--shm-size" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
