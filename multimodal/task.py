"""From configuration to phase 2: the fused detector, and what its training needs."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from deim.config.loader import config_to_dict
from deim.config.schema import Config
from deim.data.augment.options import AugmentOptions
from deim.data.augment.pipeline import Augmentation
from deim.data.collate import Batch
from deim.data.loader import build_augmentation, build_train_dataset, load_batches
from deim.engine.checkpoints import INPUT_OPTIONS, TrainedDetector, build_detector
from deim.engine.checkpoints import load_trained as load_trained_of_phase_1
from deim.engine.device import select_device
from deim.engine.step import Precision, StepBatch
from deim.engine.task import BuildSubject, Setting, Subject, build_detector_subject
from deim.errors import CheckpointError, ConfigError
from deim.files import sha256_of_file
from deim.inference.predictor import Predictor
from deim.loss.build import build_matcher
from deim.model.build import build_model
from deim.model.detector import Detector
from deim.model.weights import hash_tensors
from multimodal.confused_pairs import ConfusedPair, confused_pairs, count_confusions
from multimodal.encoders.build import build_encoder
from multimodal.feature_cache import (
    DetectorOutputBatch,
    DetectorOutputLoader,
    open_store,
    run_detector_in_chunks,
)
from multimodal.fusion_head import FusionHead, parameter_groups
from multimodal.loss import FusionCriterion, FusionLossOptions
from multimodal.options import TextFusionOptions
from multimodal.prompts import load_prompts
from multimodal.text_bank import (
    TextBank,
    build_text_bank,
    check_classes,
    load_text_bank,
    text_bank_from_dict,
    text_bank_to_dict,
)
from multimodal.wrapper import TextFusedDetector, query_dim

logger = logging.getLogger(__name__)


def subject_builder(config: Config) -> BuildSubject:
    """Choose what a run trains: the detector, or in phase 2 the fusion on it.

    Args:
        config: The experiment.
    """
    return build_detector_subject if config.multimodal is None else build_fusion_subject


def load_trained(
    path: Path, *, device: torch.device | None = None, overrides: Sequence[str] = ()
) -> TrainedDetector:
    """Build the detector that a checkpoint of either phase holds; CLIP is not needed.

    Args:
        path: `best.pth` or `last.pth`.
        device: Where to put it; None for what the config says.
        overrides: `key.path=value` each, changes of the stored config.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or its weights do not fit its config.
        ConfigError: If the config, with its changes, is not valid in this version.
    """
    return load_trained_of_phase_1(path, device=device, overrides=overrides, build=_build_stored)


def load_detector(path: str | Path, *, device: str = "auto") -> Predictor:
    """Load a trained detector of either phase; nothing but the checkpoint is needed.

    Args:
        path: `best.pth` or `last.pth`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged.
        ConfigError: If there is no such device.
    """
    return Predictor(load_trained(Path(path), device=select_device(device)))


def detector_alone(trained: TrainedDetector) -> TrainedDetector:
    """The frozen detector within a fused one, with its own operating points.

    Args:
        trained: Of phase 2.
    """
    assert isinstance(trained.model, TextFusedDetector)
    assert trained.fusion is not None
    detector = trained.fusion["detector"]
    return replace(
        trained,
        model=trained.model.detector,
        config=replace(trained.config, multimodal=None),
        epoch=detector["epoch"],
        weights=detector["weights"],
        timeline=None,
        fusion=None,
        operating_points=detector["operating_points"],
    )


def build_fusion_subject(setting: Setting) -> Subject:
    """Build the fusion on a frozen detector, in training.

    Args:
        setting: Of the run.

    Raises:
        ConfigError: If the options contradict each other.
        CheckpointError: If the detector or the text bank is missing, damaged, or of other classes.
        DataError: If an image is damaged.
    """
    config, distributed = setting.config, setting.distributed
    options = _options(config)
    train = setting.splits.train
    trained = load_trained_of_phase_1(Path(options.detector), device=setting.device)
    _check_same_classes(trained, train.class_names, where=train.annotations_path.name)
    _check_same_input(trained, config)
    bank = _text_bank(options, train.class_names)
    assert isinstance(trained.model, Detector)
    model = build_fused(trained.model, bank, options).to(setting.device)
    loader, prepared = _loaders(setting, model)
    matcher = build_matcher(config.loss.matcher, change_epoch=config.epochs)
    num_classes = len(train.class_names)
    setting.batches.epoch = 0
    blank = FusionCriterion(matcher, FusionLossOptions(), num_classes=num_classes)
    bar = tqdm(
        prepared, desc="what the detector finds", total=len(setting.batches), leave=False, disable=None
    )
    counts = count_confusions(bar, blank, num_classes=num_classes, distributed=distributed)
    pairs = confused_pairs(counts, share=options.confusion_share)
    _log_pairs(pairs, train.class_names, share=options.confusion_share)
    groups = parameter_groups(
        model.head,
        config.recipe.lr,
        weight_decay=config.recipe.weight_decay,
        class_head_delta=model.class_head_delta,
        class_head_from_epoch=options.class_head_from_epoch or 0,
    )
    return Subject(
        model=model,
        criterion=FusionCriterion(
            matcher,
            options.loss,
            num_classes=num_classes,
            confused=[(pair.label, pair.predicted_as) for pair in pairs],
            mal_gamma=config.loss.mal_gamma,
        ),
        optimizer=torch.optim.AdamW(groups, lr=config.recipe.lr, betas=config.recipe.betas, fused=True),
        loader=loader,
        stored={"fusion": _fusion_entry(trained, bank, pairs)},
        fingerprints={
            "detector": hash_tensors(model.detector.state_dict()),
            "text": hash_tensors({"prompts": bank.prompts, "background": bank.background}),
        },
        must_beat_start=True,
    )


def build_fused(detector: Detector, bank: TextBank, options: TextFusionOptions) -> TextFusedDetector:
    """Put a new fusion head on a detector, which it freezes.

    Args:
        detector: Trained.
        bank: Text of its classes.
        options: The `multimodal` block.
    """
    head = FusionHead(
        bank.prompts,
        bank.background,
        query_dim=query_dim(detector),
        hidden_dim=options.hidden_dim,
        adapter_dim=options.adapter_dim,
    )
    train_class_head = options.class_head_from_epoch is not None
    return TextFusedDetector(detector, head, train_class_head=train_class_head)


def _build_stored(config: Config, tree: Mapping[str, Any], path: Path) -> nn.Module:
    if config.multimodal is None:
        return build_detector(config, tree, path)
    if "fusion" not in tree:
        raise CheckpointError(f"{path}: damaged, its config is of phase 2, but it holds no text.")
    bank = text_bank_from_dict(tree["fusion"]["text_bank"], where=str(path))
    detector = build_model(config.model, len(tree["class_names"]), channels=config.data.channels)
    return build_fused(detector, bank, config.multimodal)


def _options(config: Config) -> TextFusionOptions:
    """The `multimodal` block, if the rest of the experiment fits it.

    Raises:
        ConfigError: If it does not; one line for each problem.
    """
    options = config.multimodal
    assert options is not None
    views, augments = options.cached_views, _augments(config.augment)
    start = options.class_head_from_epoch
    problems = [
        (
            options.cache and views > 1 and not augments,
            f"multimodal.cached_views: got {views}, but without augmentation they are all the same. Use 1, "
            f"or set augment.horizontal_flip.",
        ),
        (
            start is not None and start >= config.epochs,
            f"multimodal.class_head_from_epoch: got {start}, but the run has {config.epochs} epochs. Use "
            f"an earlier one, or null.",
        ),
    ]
    problems += [
        (
            getattr(config.augment, name) > 0,
            f"augment.{name}: got {getattr(config.augment, name)}, but phase 2 keeps what the detector finds "
            f"in single images. Set it to 0.",
        )
        for name in ("mix_up", "copy_blend", "multi_scale")
    ]
    wrong = [message for is_wrong, message in problems if is_wrong]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return options


def _augments(augment: AugmentOptions) -> bool:
    flips_and_colors = max(augment.horizontal_flip, augment.vertical_flip, augment.photometric)
    parts = max(augment.mosaic, augment.zoom_out, augment.crop)
    return max(flips_and_colors, parts) > 0 or augment.industrial is not None


def _check_same_classes(trained: TrainedDetector, class_names: Sequence[str], *, where: str) -> None:
    if trained.class_names != tuple(class_names):
        raise ConfigError(
            f"{where}: has the classes {', '.join(class_names)}, the detector {trained.path} "
            f"{', '.join(trained.class_names)}. Phase 2 needs the same, in the same order of their ids: use "
            f"the annotations that the detector was trained on."
        )


def _check_same_input(trained: TrainedDetector, config: Config) -> None:
    """Refuse images prepared otherwise than the detector has learned them; warn of another size."""
    own = trained.config
    here: Any = config_to_dict(config)["data"]
    there: Any = config_to_dict(own)["data"]
    wrong = [
        f"data.{name}: got {_in_words(here[name])}, the detector was trained with {_in_words(there[name])}. "
        f"Leave it out."
        for block, _, name in (option.partition(".") for option in INPUT_OPTIONS)
        if block == "data" and here[name] != there[name]
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
    if own.image_size_hw != config.image_size_hw:
        logger.warning(
            "image_size: %dx%d, the detector was trained at %dx%d; all that is said of the detector alone is "
            "for the new size",
            *config.image_size_hw,
            *own.image_size_hw,
        )


def _in_words(value: object) -> str:
    return "null" if value is None else str(value)


def _text_bank(options: TextFusionOptions, class_names: Sequence[str]) -> TextBank:
    if options.text_bank is not None:
        return load_text_bank(Path(options.text_bank), class_names=class_names)
    encoder = build_encoder(options.encoder)
    bank = build_text_bank(load_prompts(options.prompts), encoder, class_names, where=options.prompts)
    check_classes(bank, class_names, where=options.prompts)
    logger.info("text: %s, by %s", options.prompts, bank.encoder)
    return bank


def _loaders(
    setting: Setting, model: TextFusedDetector
) -> tuple[Iterable[StepBatch], Iterable[DetectorOutputBatch]]:
    """The batches of training, and the same with what the detector finds in them."""
    config = setting.config
    options = _options(config)
    augmentation = _augmentation(setting)
    dataset = build_train_dataset(config, setting.splits.train, augmentation=augmentation)
    if not options.cache:
        images = load_batches(dataset, setting.batches, num_workers=config.data.num_workers)
        at_once = config.data.eval_batch_size
        return images, _UncachedOutputs(model, images, setting.device, setting.precision, at_once)
    if augmentation is not None and options.cached_views == 1:
        logger.warning("multimodal.cached_views: 1 view an image, so that augmentation is drawn only once")
    store = open_store(Path(options.cache_dir), dataset, model, setting.precision)
    views = [(view, index) for view in range(options.cached_views) for index in range(len(dataset))]
    num_there = sum(map(store.has, views))
    logger.info("feature cache: %s holds %d of %d views of images", store.folder, num_there, len(views))
    cached = DetectorOutputLoader(
        model,
        dataset,
        setting.batches,
        store=store,
        num_views=options.cached_views,
        device=setting.device,
        precision=setting.precision,
        images_at_once=config.data.eval_batch_size,
        num_workers=config.data.num_workers,
    )
    return cached, cached


def _augmentation(setting: Setting) -> Augmentation | None:
    config = setting.config
    if not _augments(config.augment):
        return None
    options = _options(config)
    # Of cached views the number stands for the epoch.
    stop_epoch = options.cached_views if options.cache else config.epochs
    return build_augmentation(config.augment, start_epoch=0, stop_epoch=stop_epoch)


class _UncachedOutputs:
    """Batches of images as batches of what the detector finds in them."""

    def __init__(
        self,
        model: TextFusedDetector,
        images: Iterable[Batch],
        device: torch.device,
        precision: Precision,
        images_at_once: int,
    ) -> None:
        self.model = model
        self.images = images
        self.device = device
        self.precision = precision
        self.images_at_once = images_at_once

    def __iter__(self) -> Iterator[DetectorOutputBatch]:
        for batch in self.images:
            on_device = batch.to(self.device)
            found = run_detector_in_chunks(self.model, on_device.images, self.images_at_once, self.precision)
            yield DetectorOutputBatch(images=found, targets=on_device.targets)


def _fusion_entry(trained: TrainedDetector, bank: TextBank, pairs: Sequence[ConfusedPair]) -> dict[str, Any]:
    """What a checkpoint holds beside weights: text and where the detector came from, in plain types."""
    return {
        "text_bank": text_bank_to_dict(bank),
        "detector": {
            "path": str(trained.path),
            "sha256": sha256_of_file(trained.path),
            "epoch": trained.epoch,
            "weights": trained.weights,
            "operating_points": None if trained.operating_points is None else dict(trained.operating_points),
        },
        "confused": [
            {"label": pair.label, "predicted_as": pair.predicted_as, "share": pair.share} for pair in pairs
        ],
    }


def _log_pairs(pairs: Sequence[ConfusedPair], class_names: Sequence[str], *, share: float) -> None:
    if not pairs:
        logger.info("no class is taken for another in more than %.0f %% of its training boxes", 100 * share)
    for pair in pairs:
        logger.info(
            "the detector takes %.0f %% of the training boxes of %s for %s",
            100 * pair.share,
            class_names[pair.label],
            class_names[pair.predicted_as],
        )
