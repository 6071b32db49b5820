"""Stages, and what a batch gets in them, whatever loads it: workers, processes, a run that goes on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deim.config.catalog import shipped_configs_dir
from deim.config.loader import load_block, load_config
from deim.config.schema import Config
from deim.data.augment.copy_blend import CopyBlend
from deim.data.augment.industrial import IndustrialOptions
from deim.data.augment.mix_up import MixUp
from deim.data.augment.options import AugmentOptions
from deim.data.augment.pipeline import AugmentEpochs, build_pipeline, compute_sizes
from deim.data.augment.transform import ImageSource, Sample
from deim.data.batch import Batch, resize_batch
from deim.data.formats.coco import read_coco
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import InputFormat
from deim.engine.schedule import resolve_schedule
from tests.data.building import make_pipeline, make_train_loader

FULL = (
    "augment={mosaic: 0.5, zoom_out: 0.5, crop: 0.8, photometric: 0.5, mix_up: 0.5, copy_blend: 0.5, "
    "multi_scale: 0.5, multi_scale_repeat: 1, vertical_flip: 0.5}"
)


def read(root: Path) -> CocoSplit:
    return read_coco(root / "annotations" / "train.json", root / "images")


def epoch_of(
    config: Config, split: CocoSplit, *, epoch: int, rank: int = 0, num_ranks: int = 1, first_batch: int = 0
) -> list[Batch]:
    loader = make_train_loader(config, split, start=1, mix_end=5, stop=9, rank=rank, num_ranks=num_ranks)
    loader.set_epoch(epoch, first_batch)
    return list(loader)


def equal(first: Batch, second: Batch) -> bool:
    return torch.equal(first.images, second.images) and all(
        item["image_id"] == other["image_id"]
        and item["noise_seed"] == other["noise_seed"]
        and all(torch.equal(item[name], other[name]) for name in ("boxes", "labels", "area"))
        for item, other in zip(first.targets, second.targets, strict=True)
    )


@pytest.mark.parametrize("preset", ["full", "conservative", "none", "industrial"])
def test_presets_load(preset: str) -> None:
    augment = load_block(shipped_configs_dir() / f"_base_/augment_{preset}.yml", "augment", AugmentOptions)
    mixes = max(augment.mosaic, augment.zoom_out, augment.crop, augment.mix_up, augment.copy_blend) > 0
    assert mixes == (preset == "full")
    assert (augment.industrial is not None) == (preset == "industrial")
    assert (augment.horizontal_flip == 0) == (preset == "none")


def test_the_preset_none_switches_everything_of_the_others_off(tmp_path: Path) -> None:
    bases = [
        shipped_configs_dir() / "_base_" / f"augment_{name}.yml" for name in ("full", "industrial", "none")
    ]
    path = tmp_path / "x.yml"
    path.write_text(f"_base_: [{', '.join(map(str, bases))}]\n", encoding="utf-8")
    actual = load_block(path, "augment", AugmentOptions)
    pipeline = make_pipeline(augment=actual, stop=20)
    assert not pipeline.mixes_images
    assert not pipeline.changes_images
    assert [stage.names for stage in pipeline.stages(30)] == [()]


def test_the_full_preset_has_the_stages_of_the_reference() -> None:
    path = shipped_configs_dir() / "deimv2_1024.yml"
    full = load_block(shipped_configs_dir() / "_base_/augment_full.yml", "augment", AugmentOptions)
    config = replace(load_config(path), augment=full)
    # The reference's M: 102 epochs, 12 of them without pipeline, policy [4, 49, 90].
    schedule = replace(config.schedule, no_aug_epochs=12, warmup_steps="auto", flat_epochs="auto")
    timeline = resolve_schedule(schedule, epochs=102, steps_per_epoch=100)
    epochs = AugmentEpochs(
        start=timeline.augment_start_epoch, mix_end=timeline.mix_end_epoch, stop=timeline.no_aug_epoch
    )
    pipeline = build_pipeline(full, epochs=epochs, image_size_hw=config.image_size_hw)
    assert [stage.describe() for stage in pipeline.stages(102)] == [
        "epochs 1 to 4: flips, several sizes",
        "epochs 5 to 49: mosaic, zoom-out, crop, colors, flips, mix-up, copy-blend, several sizes",
        "epochs 50 to 90: zoom-out, crop, colors, flips, copy-blend, several sizes",
        "epochs 91 to 102: flips",
    ]
    assert pipeline.sizes_hw.count((1024, 1024)) == 6
    assert len(pipeline.sizes_hw) == 22
    assert pipeline.largest_size_hw == (1280, 1280)
    # Four images in a mosaic, two mosaics mixed, and the copies.
    assert pipeline.max_boxes(5) == 2 * 4 * 5 + full.copy_blend_objects


def test_mixing_cannot_reach_into_the_final_stage() -> None:
    schedule = load_config(shipped_configs_dir() / "deimv2_640.yml").schedule
    run = resolve_schedule(replace(schedule, mix_end_epoch=95), epochs=100, steps_per_epoch=1000)
    assert run.mix_end_epoch == 49 < run.no_aug_epoch == 90


@pytest.mark.parametrize(
    ("side", "repeat", "expected"),
    [
        (640, 3, [480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800]),
        (1024, 6, [*range(768, 1024, 32), *[1024] * 6, *range(1056, 1281, 32)]),
        (64, 1, []),
    ],
)
def test_sizes(side: int, repeat: int, expected: list[int]) -> None:
    actual = compute_sizes((side, side), 0.25, repeat=repeat)
    assert sorted(actual) == [(value, value) for value in expected]


def test_sizes_keep_the_shape_of_the_input() -> None:
    for height, width in compute_sizes((640, 320), 0.25, repeat=2):
        assert height % 32 == width % 32 == 0
        assert abs(width - height / 2) <= 16
    assert compute_sizes((640, 320), 0.0, repeat=2) == ()


def test_areas_follow_a_new_size() -> None:
    target = {"boxes": torch.rand(2, 4), "labels": torch.tensor([0, 1]), "area": torch.tensor([10.0, 20.0])}
    images, (actual,) = resize_batch(torch.zeros(1, 3, 32, 64), [target], (64, 96))
    assert images.shape == (1, 3, 64, 96)
    assert actual["area"].tolist() == [30, 60]
    assert torch.equal(actual["boxes"], target["boxes"])
    assert target["area"].tolist() == [10, 20]


def test_batches_change_by_stage(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    split = read(tiny_set)
    full = tiny_config(tiny_set, tiny_set / "run", FULL, "image_size=128")
    plain = tiny_config(
        tiny_set, tiny_set / "run", "augment={photometric: 0, vertical_flip: 0.5}", "image_size=128"
    )
    sizes = set()
    for epoch in range(9):
        sizes |= {batch.images.shape[-1] for batch in epoch_of(full, split, epoch=epoch)}
    assert sizes == {64, 96, 128, 160, 192}
    before = epoch_of(replace(full, augment=replace(full.augment, multi_scale=0.0)), split, epoch=0)
    pairs = list(zip(before, epoch_of(plain, split, epoch=0), strict=True))
    assert all(equal(item, other) for item, other in pairs)  # flips alone, the same as without the others
    final = zip(epoch_of(full, split, epoch=9), epoch_of(plain, split, epoch=9), strict=True)
    assert all(torch.allclose(item.images, other.images) for item, other in final)


def test_boxes_of_changed_batches_lie_inside(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(tiny_set, tiny_set / "run", FULL, "image_size=96")
    for epoch in (1, 2, 6):
        for batch in epoch_of(config, read(tiny_set), epoch=epoch):
            assert torch.isfinite(batch.images).all()
            height, width = batch.images.shape[-2:]
            for target in batch.targets:
                low, high = target["boxes"][:, :2] - target["boxes"][:, 2:] / 2, target["boxes"][:, 2:]
                assert (low >= -1e-5).all()
                assert (low + high <= 1 + 1e-5).all()
                assert len(target["labels"]) == len(target["area"]) == len(target["boxes"])
                area = target["boxes"][:, 2] * target["boxes"][:, 3] * height * width
                torch.testing.assert_close(area, target["area"], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_number_of_workers_changes_no_batch(
    num_workers: int, tiny_set: Path, tiny_config: Callable[..., Config]
) -> None:
    pytest.importorskip("albumentations")
    options = (FULL, "image_size=96", "augment.industrial={noise: 1.0, rotation: 1.0}")
    split = read(tiny_set)
    alone = tiny_config(tiny_set, tiny_set / "run", *options)
    several = tiny_config(tiny_set, tiny_set / "run", *options, f"data.num_workers={num_workers}")
    pairs = zip(epoch_of(alone, split, epoch=2), epoch_of(several, split, epoch=2), strict=True)
    assert all(equal(item, other) for item, other in pairs)


def test_processes_share_the_same_batches(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    config, split = tiny_config(tiny_set, tiny_set / "run", FULL, "image_size=96"), read(tiny_set)
    for epoch in (1, 3, 6):
        whole = epoch_of(config, split, epoch=epoch)
        parts = [epoch_of(config, split, epoch=epoch, rank=rank, num_ranks=2) for rank in (0, 1)]
        for batch, first, second in zip(whole, *parts, strict=True):
            both = Batch(
                images=torch.cat([first.images, second.images]), targets=[*first.targets, *second.targets]
            )
            assert equal(batch, both)


def test_an_epoch_goes_on_with_the_same_batches(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    config, split = tiny_config(tiny_set, tiny_set / "run", FULL, "image_size=96"), read(tiny_set)
    whole = epoch_of(config, split, epoch=3)
    rest = epoch_of(config, split, epoch=3, first_batch=1)
    assert len(rest) == len(whole) - 1
    assert all(equal(item, other) for item, other in zip(whole[1:], rest, strict=True))


def test_epochs_and_seeds_differ(tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    split = read(tiny_set)
    config = tiny_config(tiny_set, tiny_set / "run", FULL, "image_size=96")
    other = tiny_config(tiny_set, tiny_set / "run", FULL, "image_size=96", "seed=1")
    first, next_epoch, seeded = (
        epoch_of(config, split, epoch=2),
        epoch_of(config, split, epoch=3),
        epoch_of(other, split, epoch=2),
    )
    assert not all(map(equal_or_shaped, first, next_epoch))
    assert not all(map(equal_or_shaped, first, seeded))


def equal_or_shaped(first: Batch, second: Batch) -> bool:
    return first.images.shape == second.images.shape and torch.equal(first.images, second.images)


def test_mixes_are_as_frequent_as_asked_for() -> None:
    pipeline = make_pipeline(mix_up=0.5, copy_blend=0.5, start=4, mix_end=9, stop=20)
    rng = np.random.default_rng(0)
    for epoch, expected in ((3, (0, 0)), (4, (0.5, 0.25)), (9, (0, 0.5)), (20, (0, 0))):
        draws = [type(pipeline.draw_batch(epoch=epoch, rng=rng)[1]) for _ in range(2000)]
        shares = (draws.count(MixUp) / 2000, draws.count(CopyBlend) / 2000)
        assert shares == pytest.approx(expected, abs=0.05)


def test_balanced_copies_come_from_the_whole_split(
    tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 12, "val": 1, "test": 1})
    split = read(root)
    # One image alone shows another class.
    largest = int(split.boxes_xywh[:, 2:].min(axis=1).argmax())
    categories = np.full_like(split.box_category_ids, split.category_ids[0])
    categories[largest] = split.category_ids[1]
    split = replace(split, box_category_ids=categories)
    shares = []
    for balanced in (False, True):
        options = f"augment={{copy_blend: 1, copy_blend_objects: 1, copy_blend_balanced: {balanced}}}"
        config = tiny_config(root, tmp_path / "run", options)
        plain = tiny_config(root, tmp_path / "run")
        copies: list[int] = []
        for epoch in range(1, 9):
            both = zip(epoch_of(config, split, epoch=epoch), epoch_of(plain, split, epoch=epoch), strict=True)
            for batch, new in both:
                for target, alone in zip(batch.targets, new.targets, strict=True):
                    copies += target["labels"][len(alone["labels"]) :].tolist()
        shares.append(copies.count(1) / len(copies))
    assert shares[0] < 0.2
    assert 0.35 < shares[1] < 0.65


def test_a_split_without_boxes_has_nothing_to_copy(
    tiny_set: Path, tiny_config: Callable[..., Config]
) -> None:
    split = read(tiny_set)
    split = replace(split, is_crowd=np.ones_like(split.is_crowd))
    options = "augment={copy_blend: 1, copy_blend_balanced: true}"
    for batch in epoch_of(tiny_config(tiny_set, tiny_set / "run", options), split, epoch=2):
        assert all(len(target["labels"]) == 0 for target in batch.targets)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["uint8", "fractions"])
def test_every_change_takes_every_kind_of_image(channels: int, kind: str) -> None:
    pytest.importorskip("albumentations")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(channels, 70, 90, generator=generator)
    image = pixels if kind == "fractions" else (pixels * 255).to(torch.uint8)
    sample = Sample(image=image, boxes_xyxy=torch.tensor([[20.0, 20, 60, 50]]), labels=torch.tensor([1]))
    every = dict.fromkeys(("rotation", "perspective", "lighting", "exposure", "blur", "noise", "jpeg"), 1.0)
    for first in ({"mosaic": 1.0}, {"zoom_out": 1.0, "crop": 1.0}):
        config = AugmentOptions(photometric=1.0, industrial=IndustrialOptions(**every), **first)
        pipeline = make_pipeline(augment=config, stop=1)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            form = InputFormat(size_hw=(64, 96), resize="letterbox")
            source = ImageSource(index=0, read=lambda _: sample, num_images=4, input_format=form)
            made = pipeline.compose(source, epoch=0, rng=rng)
            assert made is not None
            changed = pipeline.change(made, epoch=0, rng=rng)
            assert changed.image.shape == (channels, 64, 96)
            assert changed.image.dtype == image.dtype
            if kind == "fractions":
                assert 0 <= changed.image.min() < changed.image.max() <= 1


def test_a_zoomed_out_image_changes_colors_and_its_canvas_stays_black() -> None:
    white = Sample(
        image=torch.full((3, 64, 64), 200, dtype=torch.uint8),
        boxes_xyxy=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
    )
    config = AugmentOptions(photometric=1.0, zoom_out=1.0, zoom_out_max_scale=4.0, horizontal_flip=0.0)
    pipeline = make_pipeline(augment=config, stop=1)
    changed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        form = InputFormat(size_hw=(64, 64))
        source = ImageSource(index=0, read=lambda _: white, num_images=1, input_format=form)
        made = pipeline.compose(source, epoch=0, rng=rng)
        assert made is not None
        image = pipeline.change(made, epoch=0, rng=rng).image
        canvas = image.amax(dim=0) < 30
        assert (image[:, canvas] == 0).all()
        changed += int(((image[:, ~canvas] < 195) | (image[:, ~canvas] > 205)).any())
    assert changed > 10


def test_mosaics_keep_to_the_sampler() -> None:
    sample = Sample(
        image=torch.zeros(3, 8, 8, dtype=torch.uint8),
        boxes_xyxy=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
    )
    pipeline = make_pipeline(mosaic=1.0, stop=1)
    shares = np.array([0.1, 0.6, 0.3, 0.0])
    read_ones: list[int] = []

    def read_single(index: int) -> Sample:
        read_ones.append(index)
        return sample

    for seed in range(300):
        rng = np.random.default_rng(seed)
        first = len(read_ones)
        source = ImageSource(
            index=3,
            read=read_single,
            num_images=4,
            input_format=InputFormat(size_hw=(64, 64)),
            sampling_shares=shares,
        )
        pipeline.compose(source, epoch=0, rng=rng)
        assert read_ones[first] == 3
        del read_ones[first]
    assert np.bincount(read_ones, minlength=4) / len(read_ones) == pytest.approx(shares, abs=0.05)


@pytest.mark.parametrize("balanced", [False, True])
def test_good_surfaces_are_never_copied(
    balanced: bool, tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 8, "val": 1, "test": 1})
    split = read(root)
    good = split.class_names[0]
    options = (
        f"augment={{copy_blend: 1, copy_blend_balanced: {balanced}}}",
        f"data.normal_class={good}",
    )
    config, plain = tiny_config(root, tmp_path / "run", *options), tiny_config(root, tmp_path / "run")
    copies: list[int] = []
    for epoch in range(1, 5):
        both = zip(epoch_of(config, split, epoch=epoch), epoch_of(plain, split, epoch=epoch), strict=True)
        for batch, new in both:
            for target, alone in zip(batch.targets, new.targets, strict=True):
                copies += target["labels"][len(alone["labels"]) :].tolist()
    assert len(copies) > 20
    assert 0 not in copies
