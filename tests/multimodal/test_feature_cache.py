"""The feature cache: filled once, read afterwards, the same weights, and never a stale number."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from deim.data.augment.options import AugmentOptions
from deim.data.augment.pipeline import AugmentEpochs
from deim.data.dataset import DetectionDataset
from deim.data.loader import build_sampler, build_train_loader
from deim.data.sampling import FixedBatches
from deim.data.splits import read_split
from deim.engine.checkpoints import read_checkpoint
from deim.engine.step import Precision
from deim.engine.trained_detector import load_trained
from deim.errors import DataError
from multimodal.feature_cache import (
    DetectorOutputBatch,
    DetectorOutputLoader,
    DetectorOutputStore,
    open_store,
)
from multimodal.wrapper import TextFusedDetector
from tests.multimodal.fused import random_text, small_head

FLOAT32 = Precision(device_type="cpu", dtype=None, scaler=torch.amp.GradScaler("cpu", enabled=False))
BATCHES = [[(0, 4), (0, 1), (0, 0)], [(0, 2), (0, 5), (0, 3)]]


NO_CHANGES = AugmentOptions(horizontal_flip=0.0, photometric=0.0)


@pytest.fixture
def fused(tiny_run) -> TextFusedDetector:
    return TextFusedDetector(load_trained(tiny_run / "best.pth").model, small_head(random_text(3)))


@pytest.fixture
def dataset_of(tiny_config, tmp_path):
    def build(root: Path, *overrides: str, augment: AugmentOptions = NO_CHANGES) -> DetectionDataset:
        config = tiny_config(root, tmp_path / "run", *overrides)
        split, size_hw = read_split(config.data, "train"), config.image_size_hw
        sampler = build_sampler(config.data, split, seed=config.seed, batch_size=3, image_size_hw=size_hw)
        return build_train_loader(
            sampler,
            split,
            data=config.data,
            augment=augment,
            image_size_hw=size_hw,
            seed=config.seed,
            epochs=AugmentEpochs(start=0, mix_end=9, stop=9),
        ).dataset

    return build


def loader_of(fused, dataset, store, batches=BATCHES, *, num_views: int = 1) -> DetectorOutputLoader:
    return DetectorOutputLoader(
        model=fused,
        dataset=dataset,
        sampler=FixedBatches(batches),
        store=store,
        num_views=num_views,
        device=torch.device("cpu"),
        precision=FLOAT32,
        images_at_once=8,
        num_workers=0,
    )


def assert_equal(item: DetectorOutputBatch, other: DetectorOutputBatch) -> None:
    for part in dataclasses.fields(item.images):
        assert torch.equal(getattr(item.images, part.name), getattr(other.images, part.name))
    for a, b in zip(item.targets, other.targets, strict=True):
        assert torch.equal(a["boxes"], b["boxes"])
        assert torch.equal(a["labels"], b["labels"])
        assert (a["image_id"], a["file_name"], a["placement"]) == (
            b["image_id"],
            b["file_name"],
            b["placement"],
        )


def test_what_is_read_is_what_was_found(fused, dataset_of, tiny_set, tmp_path, monkeypatch):
    dataset = dataset_of(tiny_set, "data.resize=letterbox")
    store = DetectorOutputStore(tmp_path / "cache")
    actual = list(loader_of(fused, dataset, store))
    for batch, items in zip(actual, BATCHES, strict=True):
        images = dataset.load_items(items)
        direct = fused.run_detector(images.images)
        assert_equal(batch, DetectorOutputBatch(images=direct, targets=images.targets))
    monkeypatch.setattr(DetectionDataset, "read", lambda *_: pytest.fail("an image was loaded"))
    for epoch in (1, 2):
        batches = [[(epoch, index) for _, index in items] for items in BATCHES]
        for item, other in zip(actual, loader_of(fused, dataset, store, batches), strict=True):
            assert_equal(item, other)


def test_tiles_are_found_and_read_like_images(fused, dataset_of, tiny_set, tmp_path):
    dataset = dataset_of(tiny_set, "data.tiles={size: 48}", "data.resize=letterbox")
    last = len(dataset) - 1
    assert dataset.image_index(last) == 5 < last
    store = DetectorOutputStore(tmp_path / "cache")
    batches = [[(0, 1), (0, last)], [(0, 6), (0, 0)]]
    actual, again = (list(loader_of(fused, dataset, store, batches)) for _ in range(2))
    assert {target["placement"].tile_xyxy is None for batch in actual for target in batch.targets} == {False}
    for item, other in zip(actual, again, strict=True):
        assert_equal(item, other)


def test_views_take_turns(fused, dataset_of, tiny_set, tmp_path):
    flips = AugmentOptions(horizontal_flip=0.5, vertical_flip=0.5, photometric=0.0)
    dataset = dataset_of(tiny_set, augment=flips)
    store = DetectorOutputStore(tmp_path / "cache")
    batches = [[(epoch, index) for index in (0, 1, 2)] for epoch in range(6)]
    actual = list(loader_of(fused, dataset, store, batches, num_views=3))
    for epoch in range(3):
        assert_equal(actual[epoch], actual[epoch + 3])
    assert not torch.equal(actual[0].images.query_features, actual[1].images.query_features)
    assert sorted(path.name for path in store.folder.iterdir()) == ["view0", "view1", "view2"]


def test_a_part_that_is_missing_or_damaged_is_found_again(fused, dataset_of, tiny_set, tmp_path):
    dataset, store = dataset_of(tiny_set), DetectorOutputStore(tmp_path / "cache")
    actual = list(loader_of(fused, dataset, store))
    store.path((0, 1)).unlink()
    damaged = store.path((0, 5))
    damaged.write_bytes(damaged.read_bytes()[:100])
    for _ in range(2):
        for item, other in zip(actual, loader_of(fused, dataset, store), strict=True):
            assert_equal(item, other)
        assert store.read((0, 1)) is not None
        assert store.read((0, 5)) is not None


def test_a_batch_is_cut_into_its_images(fused, dataset_of, tiny_set, tmp_path):
    batch, _ = loader_of(fused, dataset_of(tiny_set), DetectorOutputStore(tmp_path / "cache"))
    pieces = batch.split(2)
    assert [len(part.targets) for part in pieces] == [2, 1]
    for part in dataclasses.fields(batch.images):
        joined = torch.cat([getattr(item.images, part.name) for item in pieces])
        assert torch.equal(joined, getattr(batch.images, part.name))
    assert [target for part in pieces for target in part.targets] == batch.targets


def test_every_change_leads_to_another_store(fused, dataset_of, tiny_set, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(tiny_set, root)

    def name(*overrides: str, **options) -> str:
        dataset = dataset_of(root, *overrides, **options)
        return open_store(tmp_path / "cache", dataset, fused, FLOAT32).folder.name

    flips = AugmentOptions(horizontal_flip=0.5, photometric=0.0)
    first = name()
    names = {
        first,
        name("data.resize=letterbox"),
        name("image_size=96"),
        name("data.mean=[0.5, 0.5, 0.5]"),
        name("data.tiles={size: 48}"),
        name(augment=flips),
        name("seed=1", augment=flips),
    }
    assert len(names) == 7
    assert name("seed=1", "data.cache_mb=1") == first  # without augmentation the seed decides nothing
    # Other pixels in a file of the same length; then back.
    path = root / "images" / "train_0.png"
    original = path.read_bytes()
    image = Image.open(path)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(path.with_suffix(".bmp"))
    bitmap = bytearray(path.with_suffix(".bmp").read_bytes())
    path.write_bytes(bitmap)
    before = name()
    bitmap[-1] ^= 255
    path.write_bytes(bitmap)
    assert len({before, name(), first}) == 3
    path.write_bytes(original)
    assert name() == first
    annotations = root / "annotations" / "train.json"
    annotations.write_text(annotations.read_text().replace('"category_id": 3', '"category_id": 7', 1))
    assert name() != first
    shutil.copy(tiny_set / "annotations" / "train.json", annotations)
    assert name() == first
    with torch.no_grad():
        fused.detector.decoder.dec_score_head[-1].bias += 1e-6
    assert name() != first


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(fused, dataset_of, tiny_set, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    loader = loader_of(fused, dataset_of(tiny_set), DetectorOutputStore(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cannot be stored .* switch the cache off with cache=false\.$"):
        list(loader)


@pytest.mark.slow
def test_the_cache_does_not_change_the_weights(phase2_config, build_phase2, tmp_path):
    options = ["epochs=4", "task.class_head_from_epoch=2"]
    runs = {
        cache: build_phase2(phase2_config(*options, f"task.cache={cache}", f"output_dir={tmp_path / cache}"))
        for cache in ("true", "false")
    }
    for trainer in runs.values():
        trainer.train()
    cached, plain = (read_checkpoint(trainer.checkpoints.last_path).model for trainer in runs.values())
    assert any(torch.count_nonzero(value) for name, value in cached.items() if "class_head_delta" in name)
    for name, value in cached.items():
        torch.testing.assert_close(value, plain[name], rtol=0, atol=1e-5)
    stored = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(stored) == 6
