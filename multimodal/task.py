"""The task `text_fusion`: a head that fuses text into the class scores of a frozen detector."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deim.config.checks import check
from deim.config.loader import config_to_dict
from deim.config.schema import Config
from deim.data.augment.pipeline import AugmentEpochs, build_pipeline
from deim.data.loader import BatchLoader, build_train_loader
from deim.engine.checkpoints import Checkpoint, read_checkpoint
from deim.engine.context import RunContext
from deim.engine.log import Advance, progress_bar
from deim.engine.task import TaskDefaults, TaskOptions, TaskProducts, TrainingTask, detection_options
from deim.engine.trained_detector import INPUT_OPTIONS, TrainedDetector, load_trained
from deim.errors import CheckpointError, ConfigError
from deim.files import looked_in, sha256_of_file
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

SHARED_BLOCKS = ("model", "image_size", "data", "loss", "evaluation")
"""Options that an experiment takes from its detector unless it gives them."""


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
        "text_ablation.json",
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
        """Return the options of the detector that the experiment extends.

        Raises:
            CheckpointError: If the detector's checkpoint is missing, damaged, or not of a detector.
        """
        detector = block.get("detector")
        if not isinstance(detector, str):
            return None  # refused with all other problems when the config is read
        path = Path(detector)
        if not path.is_file():
            raise CheckpointError(
                f"task.detector: there is no checkpoint {detector}{looked_in(path)}. Train the "
                f"detector first, or name the best.pth of one with --set task.detector=PATH."
            )
        checkpoint = read_checkpoint(path)
        _refuse_fused(checkpoint.task, checkpoint.task_state, path)
        config = checkpoint.config
        options = {name: config[name] for name in SHARED_BLOCKS if name in config}
        options["model"] = config["model"] | {"init_from": None}
        return TaskDefaults(options=options, source=detector, fixed_blocks=("model",))

    def describe(self, config: Config) -> list[str]:
        """Return when the class head is trained."""
        start = fusion_options(config).class_head_from_epoch
        return [f"  class head            {'never' if start is None else f'from epoch {start + 1}'}"]

    def build(self, context: RunContext) -> TaskProducts:
        """Build the fusion on a frozen detector.

        Raises:
            ConfigError: If the options contradict each other.
            CheckpointError: If the detector or the text bank is missing, damaged, or of other classes.
            DataError: If an image is damaged.
        """
        config, train = context.config, context.splits.train
        options = fusion_options(config)
        _check_options(context, options)
        trained = _load_frozen(Path(options.detector), device=context.device)
        _check_same_classes(trained, train.class_names, where=train.annotations_path.name)
        _check_same_input(trained, config)
        bank = _text_bank(options, train.class_names)
        assert isinstance(trained.model, Detector)
        model = build_fused(trained.model, bank, options).to(context.device)
        loader = build_fusion_loader(context, model)
        pairs = _find_confused_pairs(context, model, loader, share=options.confusion_share)
        groups = parameter_groups(
            model.head,
            config.recipe.lr,
            weight_decay=config.recipe.weight_decay,
            class_head_delta=model.class_head_delta,
            class_head_from_epoch=options.class_head_from_epoch or 0,
        )
        return TaskProducts(
            model=model,
            criterion=FusionCriterion(
                build_matcher(config.loss.matcher, change_epoch=config.epochs),
                options.loss,
                num_classes=len(train.class_names),
                confused=[(pair.label, pair.predicted_as) for pair in pairs],
                mal_gamma=config.loss.mal_gamma,
            ),
            optimizer=torch.optim.AdamW(groups, lr=config.recipe.lr, betas=config.recipe.betas, fused=True),
            loader=loader,
            state=_task_state(trained, bank, pairs),
            fingerprints={
                "detector": hash_tensors(model.detector.state_dict()),
                "text": hash_tensors({"prompts": bank.prompts, "background": bank.background}),
            },
            start_checkpoint=Path(options.detector),
        )

    def build_stored_model(self, config: Config, checkpoint: Checkpoint, path: Path) -> nn.Module:
        """Build the fused detector of a checkpoint; CLIP is not needed.

        Raises:
            CheckpointError: If the text in the checkpoint is damaged.
        """
        if "text_bank" not in checkpoint.task_state:
            raise CheckpointError(f"{path}: damaged, it has no text. Use another checkpoint of the run.")
        bank = text_bank_from_dict(checkpoint.task_state["text_bank"], where=str(path))
        detector = build_model(config.model, len(checkpoint.class_names), channels=config.data.channels)
        return build_fused(detector, bank, fusion_options(config))


TASK = TextFusionTask()


def fusion_options(config: Config) -> TextFusionOptions:
    """Return the block `task` of an experiment of this task.

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
    """Return the frozen detector within a fused one, with its operating points.

    Args:
        trained: A detector with text fusion.
    """
    assert isinstance(trained.model, TextFusedDetector)
    detector = trained.task_state["detector"]
    return replace(
        trained,
        model=trained.model.detector,
        config=replace(trained.config, task=detection_options()),
        task="detection",
        task_state={},
        epoch=detector["epoch"],
        weights=detector["weights"],
        operating_points=detector["operating_points"],
    )


def build_fused(detector: Detector, bank: TextBank, options: TextFusionOptions) -> TextFusedDetector:
    """Put a new fusion head on a detector, which is frozen.

    Args:
        detector: The trained detector.
        bank: Text of its classes.
        options: The block `task`.
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


def _refuse_fused(task: str, state: Mapping[str, Any], path: Path) -> None:
    if task != "detection":
        raise CheckpointError(
            f"{path}: already has text fusion. Name the detector that it was made from with "
            f"--set task.detector={state['detector']['path']}"
        )


def _load_frozen(path: Path, *, device: torch.device) -> TrainedDetector:
    trained = load_trained(path, device=device)
    _refuse_fused(trained.task, trained.task_state, path)
    return trained


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
    problems += [
        (
            getattr(config.augment, name) > 0,
            f"augment.{name}: got {getattr(config.augment, name)}, but text fusion stores the detector's "
            f"output of single images. Set it to 0.",
        )
        for name in ("mix_up", "copy_blend", "multi_scale")
    ]
    check(problems)


def _check_same_classes(trained: TrainedDetector, class_names: Sequence[str], *, where: str) -> None:
    if trained.class_names != tuple(class_names):
        raise ConfigError(
            f"{where}: has the classes {', '.join(class_names)}, the detector {trained.path} "
            f"{', '.join(trained.class_names)}. Text fusion needs the same, in the same order of their ids: "
            f"use the annotations that the detector was trained on."
        )


def _check_same_input(trained: TrainedDetector, config: Config) -> None:
    """Raise ConfigError if images are prepared differently than for the detector; warn of another size."""
    here, there = config_to_dict(config)["data"], config_to_dict(trained.config)["data"]
    names = [option.removeprefix("data.") for option in INPUT_OPTIONS if option.startswith("data.")]
    check(
        [
            (
                here[name] != there[name],
                f"data.{name}: got {_to_text(here[name])}, the detector was trained with "
                f"{_to_text(there[name])}. Remove the option.",
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


def _to_text(value: object) -> str:
    return "null" if value is None else str(value)


def _text_bank(options: TextFusionOptions, class_names: Sequence[str]) -> TextBank:
    if options.text_bank is not None:
        return load_text_bank(Path(options.text_bank), class_names=class_names)
    encoder = build_encoder(options.encoder)
    bank = build_text_bank(load_prompts(options.prompts), encoder, class_names, where=options.prompts)
    check_classes(bank, class_names, where=options.prompts)
    logger.info("text: %s, by %s", options.prompts, bank.encoder)
    return bank


FusionLoader = BatchLoader | DetectorOutputLoader
"""Training batches of the fusion head: images, or stored outputs of the detector."""


def build_fusion_loader(context: RunContext, model: TextFusedDetector) -> FusionLoader:
    """Build the training batches of the fusion head.

    Args:
        context: The run.
        model: The fused detector, whose detector's outputs are stored unless the options forbid it.

    Raises:
        ConfigError: If a change of images needs a package that is not installed.
        DataError: If an image cannot be read.
    """
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
        model,
        dataset,
        context.sampler,
        store=store,
        num_views=options.cached_views,
        device=context.device,
        precision=context.precision,
        images_at_once=config.data.eval_batch_size,
        num_workers=config.data.num_workers,
    )


def _detector_outputs(
    context: RunContext, model: TextFusedDetector, loader: FusionLoader
) -> Iterator[DetectorOutputBatch]:
    """Yield the batches of a loader with the detector's outputs, computed where they are not stored."""
    for batch in loader:
        if isinstance(batch, DetectorOutputBatch):
            yield batch
            continue
        on_device = batch.to(context.device)
        outputs = run_detector_in_chunks(
            model, on_device.images, context.config.data.eval_batch_size, context.precision
        )
        yield DetectorOutputBatch(images=outputs, targets=on_device.targets)


def _find_confused_pairs(
    context: RunContext, model: TextFusedDetector, loader: FusionLoader, *, share: float
) -> list[ConfusedPair]:
    """Return the classes that the detector confuses on the training images, and log them."""
    config, class_names = context.config, context.splits.train.class_names
    matcher = build_matcher(config.loss.matcher, change_epoch=config.epochs)
    criterion = FusionCriterion(matcher, FusionLossOptions(), num_classes=len(class_names))
    loader.set_epoch(0)
    is_main = context.distributed.is_main
    outputs = _detector_outputs(context, model, loader)
    with progress_bar("outputs of the detector", total=len(loader), is_shown=is_main) as advance:
        counts = count_confusions(
            _counted(outputs, advance),
            criterion,
            num_classes=len(class_names),
            distributed=context.distributed,
        )
    pairs = confused_pairs(counts, share=share)
    if not pairs:
        logger.info(
            "the detector confuses no class with another in more than %.0f %% of its boxes", 100 * share
        )
    for pair in pairs:
        logger.info(
            "the detector predicts %.0f %% of the training boxes of %s as %s",
            100 * pair.share,
            class_names[pair.label],
            class_names[pair.predicted_as],
        )
    return pairs


def _counted(batches: Iterable[DetectorOutputBatch], advance: Advance) -> Iterator[DetectorOutputBatch]:
    for batch in batches:
        yield batch
        advance("")


def _task_state(trained: TrainedDetector, bank: TextBank, pairs: Sequence[ConfusedPair]) -> dict[str, Any]:
    """Return what a checkpoint stores beside weights: the text and the origin of the detector."""
    points = trained.operating_points
    return {
        "text_bank": text_bank_to_dict(bank),
        "detector": {
            "path": str(trained.path),
            "sha256": sha256_of_file(trained.path),
            "epoch": trained.epoch,
            "weights": trained.weights,
            "operating_points": None if points is None else dict(points),
        },
        "confused": [
            {"label": pair.label, "predicted_as": pair.predicted_as, "share": pair.share} for pair in pairs
        ],
    }
