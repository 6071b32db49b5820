"""The task `text_fusion`: a head that fuses text into the class scores of a frozen detector."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deim.config.checks import check
from deim.config.loader import config_to_dict
from deim.config.schema import Config
from deim.data.augment.pipeline import AugmentEpochs, build_pipeline
from deim.data.formats.split import CocoSplit
from deim.data.loader import BatchLoader, build_train_loader
from deim.engine.checkpoints import OTHER_CHECKPOINT, Checkpoint, find_checkpoint, read_checkpoint
from deim.engine.context import RunContext
from deim.engine.progress import WeightKind
from deim.engine.task import (
    TaskDefaults,
    TaskLoader,
    TaskOptions,
    TaskProducts,
    TrainingTask,
    detection_options,
)
from deim.engine.trained_detector import INPUT_OPTIONS, TrainedDetector, load_trained
from deim.errors import CheckpointError, ConfigError
from deim.files import looked_in, sha256_of_file
from deim.loss.matcher import HungarianMatcher
from deim.model.detector import Detector
from deim.model.weights import hash_tensors
from deim.records import from_json, to_json
from multimodal.confused_pairs import ConfusedPair, find_confused_pairs
from multimodal.encoders.build import build_encoder
from multimodal.feature_cache import DetectorOutputLoader, open_store
from multimodal.fusion_head import FusionHead, parameter_groups
from multimodal.loss import FusionCriterion
from multimodal.options import TextFusionOptions
from multimodal.prompts import load_prompts
from multimodal.text_bank import TextBank, build_text_bank, load_text_bank
from multimodal.wrapper import TextFusedDetector, query_dim

logger = logging.getLogger(__name__)

SHARED_BLOCKS = ("model", "image_size", "data", "loss", "evaluation")
"""Options that an experiment takes from its detector unless it gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorOrigin:
    """The checkpoint of the frozen detector."""

    path: str
    sha256: str
    epoch: int
    weights: WeightKind
    operating_points: Mapping[str, Any] | None
    """Its thresholds, in plain JSON types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFusionState:
    """What a checkpoint stores beside weights: the text and the origin of the detector."""

    text_bank: TextBank
    detector: DetectorOrigin
    confused: tuple[ConfusedPair, ...]
    """Classes that the detector confuses on the training images."""


def read_state(stored: Checkpoint | TrainedDetector, path: Path) -> TextFusionState:
    """Read what the checkpoint at `path` stores for this task.

    Raises:
        CheckpointError: If it is damaged.
    """
    return from_json(
        TextFusionState,
        stored.task_state,
        where=f"{path}: task_state",
        error=CheckpointError,
        advice=OTHER_CHECKPOINT,
    )


class TextFusionTask(TrainingTask):
    """See `TrainingTask`."""

    options_class: type[TaskOptions] = TextFusionOptions
    run_files = (
        "report_detector.json",
        "report_detector.html",
        "report_detector",
        "report_comparison.json",
        "report_comparison.html",
        "report_comparison",
    )
    # Detector and text are compared by their fingerprints.
    free_options = (
        "task.cache_dir",
        "task.class_tolerance",
        "task.detector",
        "task.encoder",
        "task.prompts",
        "task.text_bank",
    )
    fingerprint_messages = {  # noqa: RUF012
        "detector": "task.detector: other weights",
        "text": "text bank: other texts or another encoder",
    }
    trains_backbone = False
    has_stages = False
    report_module = "multimodal.report"

    def defaults_from(self, block: Mapping[str, object]) -> TaskDefaults | None:
        """Return the options of the detector that the experiment extends; see `TrainingTask`."""
        detector = block.get("detector")
        if not isinstance(detector, str):
            return None  # refused with all other problems when the config is read
        path = find_checkpoint(Path(detector))
        if not path.is_file():
            raise CheckpointError(
                f"task.detector: there is no checkpoint {detector}{looked_in(path)}. Train the "
                f"detector first, or name the best.pth of one with --set task.detector=PATH."
            )
        checkpoint = read_checkpoint(path)
        if checkpoint.task not in ("detection", "text_fusion"):
            raise CheckpointError(
                f"{path}: trains the task {checkpoint.task!r}, which text fusion does not extend. Name the "
                f"best.pth of a detector of the task 'detection' with --set task.detector=PATH."
            )
        if checkpoint.task != "detection":
            raise CheckpointError(
                f"{path}: already has text fusion. Name the detector that it was made from with "
                f"--set task.detector={read_state(checkpoint, path).detector.path}"
            )
        config = checkpoint.config
        options = {name: config[name] for name in SHARED_BLOCKS if name in config}
        # A checkpoint does not choose where this machine writes.
        places = ("disk_cache_dir", "synthetic")
        options["data"] = {name: value for name, value in config["data"].items() if name not in places}
        options["model"] = config["model"] | {"init_from": None}
        return TaskDefaults(options=options, source=detector, fixed_blocks=("model",))

    def describe(self, config: Config) -> list[str]:
        """Return when the class head is trained."""
        start = fusion_options(config).class_head_from_epoch
        return [f"  class head            {'never' if start is None else f'from epoch {start + 1}'}"]

    def start_files(self, config: Config) -> list[Path]:
        """Return the checkpoint of the detector."""
        return [find_checkpoint(Path(fusion_options(config).detector))]

    def cache_dirs(self, config: Config) -> list[Path]:
        """Return the folder of the detector's outputs, if they are stored."""
        options = fusion_options(config)
        return [Path(options.cache_dir)] if options.cache else []

    def build(self, context: RunContext) -> TaskProducts:
        """Build the fusion on a frozen detector; see `TrainingTask`."""
        config, train = context.config, context.splits.train
        options = fusion_options(config)
        _check_options(context, options)
        trained = load_trained(Path(options.detector), device=context.device)
        assert isinstance(trained.model, Detector)  # anything else was refused with the config
        _check_same_classes(trained, train)
        _check_same_input(trained, config)
        bank = _text_bank(options, train.class_names)
        model = _build_fused(trained.model, bank, options).to(context.device)
        loader = _build_loader(context, model)
        pairs = find_confused_pairs(context, model, loader, min_share=options.confusion_share)
        origin = DetectorOrigin(
            path=str(trained.path),
            sha256=sha256_of_file(trained.path),
            epoch=trained.epoch,
            weights=trained.weights,
            operating_points=trained.operating_points,
        )
        groups = parameter_groups(
            model.head,
            model.class_head_delta,
            config.recipe,
            class_head_from_epoch=options.class_head_from_epoch,
        )
        return TaskProducts(
            model=model,
            criterion=FusionCriterion(
                matcher=HungarianMatcher(config.loss.matcher, late_epoch=config.epochs),
                options=options.loss,
                confused=[(pair.label, pair.predicted_as) for pair in pairs],
                mal_gamma=config.loss.mal_gamma,
            ),
            optimizer=torch.optim.AdamW(groups, lr=config.recipe.lr, betas=config.recipe.betas, fused=True),
            loader=loader,
            state=to_json(TextFusionState(text_bank=bank, detector=origin, confused=pairs)),
            fingerprints={
                "detector": hash_tensors(model.detector.state_dict()),
                "text": hash_tensors({"prompts": bank.prompts, "background": bank.background}),
            },
            start_checkpoint=Path(options.detector),
        )

    def missing_cache(self, loader: TaskLoader) -> tuple[Path, int] | None:
        """Return the folder of the feature cache and the bytes that it lacks; see `TrainingTask`."""
        if not isinstance(loader, DetectorOutputLoader):
            return None
        return loader.store.folder, loader.missing_bytes()

    def build_stored_model(self, config: Config, checkpoint: Checkpoint, path: Path) -> nn.Module:
        """Build the fused detector of a checkpoint; CLIP is not needed."""
        bank = read_state(checkpoint, path).text_bank
        detector = Detector(config.model, len(checkpoint.class_names), channels=config.data.channels)
        return _build_fused(detector, bank, fusion_options(config))


TASK = TextFusionTask()


def fusion_options(config: Config) -> TextFusionOptions:
    """Return the block `task` of an experiment.

    Raises:
        ConfigError: If the experiment is of another task.
    """
    if not isinstance(config.task, TextFusionOptions):
        raise ConfigError(
            f"task.type: got {config.task.type}, needs text_fusion. Name a config like "
            f"configs/quickstart_multimodal.yml."
        )
    return config.task


def detector_alone(trained: TrainedDetector) -> TrainedDetector:
    """Return the frozen detector within a fused one, with its operating points."""
    assert isinstance(trained.model, TextFusedDetector)
    origin = read_state(trained, trained.path).detector
    return replace(
        trained,
        model=trained.model.detector,
        config=replace(trained.config, task=detection_options()),
        task="detection",
        task_state={},
        epoch=origin.epoch,
        weights=origin.weights,
        operating_points=origin.operating_points,
    )


def _build_fused(detector: Detector, bank: TextBank, options: TextFusionOptions) -> TextFusedDetector:
    """Put a new fusion head on a detector with the classes of the bank; the detector is frozen."""
    head = FusionHead(
        bank.prompts,
        bank.background,
        query_dim=query_dim(detector),
        hidden_dim=options.hidden_dim,
        adapter_dim=options.adapter_dim,
    )
    train_class_head = options.class_head_from_epoch is not None
    return TextFusedDetector(detector, head, train_class_head=train_class_head)


def _check_options(context: RunContext, options: TextFusionOptions) -> None:
    """Raise ConfigError if the rest of the experiment does not fit the task; one line for each problem."""
    config = context.config
    views, start = options.cached_views, options.class_head_from_epoch
    pipeline = build_pipeline(
        config.augment, epochs=context.augment_epochs, image_size_hw=config.image_size_hw
    )
    problems = [
        (
            options.cache and views > 1 and not pipeline.changes_images,
            f"task.cached_views: got {views}, but without augmentation they are all the same. Use 1, or set "
            f"augment.horizontal_flip.",
        ),
        (
            start is not None and start >= config.epochs,
            f"task.class_head_from_epoch: got {start}, but epochs count from 0 and the last one is "
            f"{config.epochs - 1}. Use an earlier one, or null.",
        ),
    ]
    low = config.schedule.low_resolution
    if low is not None:
        problem = "but text fusion stores the detector's output at one size. Set it to null."
        got = "x".join(map(str, low.image_size_hw))
        problems.append((True, f"schedule.low_resolution: got {got}, {problem}"))
    for name in ("mix_up", "copy_blend", "multi_scale"):
        value = getattr(config.augment, name)
        problem = "but text fusion stores the detector's output of single images. Set it to 0."
        problems.append((value > 0, f"augment.{name}: got {value}, {problem}"))
    check(problems)


def _check_same_classes(trained: TrainedDetector, split: CocoSplit) -> None:
    if trained.class_names != split.class_names:
        raise ConfigError(
            f"{split.annotations_path.name}: has the classes {', '.join(split.class_names)}, the detector "
            f"{trained.path} {', '.join(trained.class_names)}. Text fusion needs the same, in the same order "
            f"of their ids: use the annotations that the detector was trained on."
        )


def _check_same_input(trained: TrainedDetector, config: Config) -> None:
    """Raise ConfigError if images are prepared differently than for the detector; warn of another size."""
    here, there = (
        {name: "null" if value is None else value for name, value in config_to_dict(of)["data"].items()}
        for of in (config, trained.config)
    )
    names = [option.removeprefix("data.") for option in INPUT_OPTIONS if option.startswith("data.")]
    check(
        [
            (
                here[name] != there[name],
                f"data.{name}: got {here[name]}, the detector was trained with {there[name]}. Remove the "
                f"option.",
            )
            for name in names
        ]
    )
    if trained.config.image_size_hw != config.image_size_hw:
        logger.warning(
            "image_size: %dx%d, the detector was trained at %dx%d; its results in reports are for the new "
            "size",
            *config.image_size_hw,
            *trained.config.image_size_hw,
        )


def _text_bank(options: TextFusionOptions, class_names: Sequence[str]) -> TextBank:
    if options.text_bank is not None:
        return load_text_bank(Path(options.text_bank), class_names=class_names)
    encoder, prompts = build_encoder(options.encoder), load_prompts(options.prompts)
    bank = build_text_bank(prompts, encoder, class_names, where=options.prompts)
    logger.info("text: %s, by %s", options.prompts, bank.encoder)
    return bank


def _build_loader(context: RunContext, model: TextFusedDetector) -> BatchLoader | DetectorOutputLoader:
    """Build the training batches: outputs of the detector, or images without the cache."""
    config, options = context.config, fusion_options(context.config)
    # The number of a stored view stands for the epoch.
    stop = options.cached_views if options.cache else config.epochs
    images = build_train_loader(
        context.sampler,
        context.splits.train,
        data=config.data,
        augment=config.augment,
        image_size_hw=config.image_size_hw,
        seed=config.seed,
        epochs=AugmentEpochs(start=0, mix_end=stop, stop=stop),
    )
    if not options.cache:
        return images
    dataset = images.dataset
    if images.pipeline.changes_images and options.cached_views == 1:
        logger.warning("task.cached_views: 1 view of each image, so its augmentation is drawn only once")
    store = open_store(Path(options.cache_dir), dataset, model, context.precision)
    views = [(view, index) for view in range(options.cached_views) for index in range(len(dataset))]
    num_stored = sum(map(store.has, views))
    logger.info("feature cache: %s holds %d of %d views of images", store.folder, num_stored, len(views))
    return DetectorOutputLoader(
        model=model,
        dataset=dataset,
        sampler=context.sampler,
        store=store,
        num_views=options.cached_views,
        device=context.device,
        precision=context.precision,
        images_at_once=config.data.eval_batch_size,
        num_workers=config.data.num_workers,
        worker_timeout_s=config.data.worker_timeout_s,
    )
