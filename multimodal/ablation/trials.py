"""Training the variants on the same outputs, seeds and budget, and evaluating them on the same resamples."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from deim.config.schema import Config
from deim.data.sampling import EpochSampler, FixedBatches
from deim.data.splits import build_splits
from deim.engine.build import prepare_run
from deim.engine.device import select_precision
from deim.engine.ema import EmaSchedule, ModelEma, resolve_ema
from deim.engine.optimizer import RecipeOptions, set_learning_rates
from deim.engine.schedule import Timeline
from deim.engine.step import Precision, StepContext, train_step
from deim.errors import ConfigError, DataError
from deim.inference.detection_table import GroundTruthTable
from deim.inference.evaluator import Evaluator
from deim.inference.predictor import predict_split
from deim.metrics.assignment import compute_overlaps
from deim.metrics.bootstrap import ScoreSamples, resample_scores
from deim.metrics.coco import MAX_DETECTIONS
from deim.records import from_json
from deim.report.tables import format_number
from multimodal.ablation.variants import (
    VARIANTS,
    FusionModel,
    Variant,
    build_variant,
    swap_text,
    variant_groups,
)
from multimodal.confused_pairs import tracked_pair
from multimodal.feature_cache import DetectorOutputBatch, DetectorOutputLoader, open_store
from multimodal.fusion_head import FusionHead
from multimodal.loss import FusionCriterion
from multimodal.options import TextFusionOptions
from multimodal.task import TASK, TextFusionState, fusion_options
from multimodal.wrapper import TextFusedDetector

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SwappedPair:
    """The two classes whose texts are exchanged at test time."""

    first: str
    second: str
    origin: str
    """Why these two."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialContext:
    """Everything that is the same for all variants."""

    head: FusionHead
    """The real head, not trained."""
    options: TextFusionOptions
    encoder: str
    """Name of the text encoder."""
    pair: SwappedPair
    criterion: FusionCriterion
    recipe: RecipeOptions
    """Optimizer; `lr` is that of a class head that is trained beside a fusion head."""
    timeline: Timeline
    averaging: EmaSchedule
    device: torch.device
    precision: Precision
    """Precision of the forward passes in training."""
    train: Callable[[int, int], Iterable[DetectorOutputBatch]]
    """Returns the training batches of a seed and an epoch."""
    val: Iterable[DetectorOutputBatch]
    """Each validation image once; read again for every model."""
    ground_truth: GroundTruthTable
    """Ground truth of these images."""
    max_detections: int
    """Raw detections kept for each image."""
    counted_detections: int = MAX_DETECTIONS
    """Detections of an image and a class that AP counts."""
    num_resamples: int = 1000
    """Resamples of the images, the same for all models."""

    @property
    def pair_labels(self) -> tuple[int, int]:
        """Class indices of the pair."""
        names = self.ground_truth.class_names
        return names.index(self.pair.first), names.index(self.pair.second)


def build_trials(config: Config, *, pair_names: Sequence[str] | None = None) -> TrialContext:
    """Build detector outputs, loss and budget of the experiment's training, which all variants share.

    The texts of two classes are exchanged at test time: `pair_names`, or else the pair that the detector
    confuses most on the training images, or else the pair with the most similar texts.

    Raises:
        ConfigError: If the experiment is no text fusion, its options contradict each other, or the pair does
            not name two classes.
        CheckpointError: If the detector or the text bank is missing, damaged, or of other classes.
        DataError: If an annotation file is wrong, an image is damaged, or there is only one class.
    """
    options = fusion_options(config)
    if not options.cache:
        raise ConfigError(
            "task.cache: got false. All variants train on the same detector outputs: set task.cache=true, "
            "and cached_views as many as augmentation needs."
        )
    splits = build_splits(config.data)
    class_names = splits.train.class_names
    if len(class_names) < 2:
        raise DataError(
            f"{splits.train.annotations_path.name}: has only the class {class_names[0]}. The text of a class "
            f"can only be judged beside the text of another."
        )
    run = prepare_run(config, splits)
    products = TASK.build(run)
    model, criterion, loader = products.model, products.criterion, products.loader
    assert isinstance(model, TextFusedDetector)
    assert isinstance(criterion, FusionCriterion)
    assert isinstance(loader, DetectorOutputLoader)
    evaluator = Evaluator(
        config,
        splits.val,
        class_names=class_names,
        category_ids=splits.train.category_ids,
        device=run.device,
    )
    state = from_json(TextFusionState, products.state)

    def train(seed: int, epoch: int) -> DetectorOutputLoader:
        order = run.sampler
        sampler = EpochSampler(
            len(loader.dataset), order.batch_size, seed=seed, repeat_factors=order.repeat_factors
        )
        return replace(loader, sampler=sampler, epoch=epoch)

    return TrialContext(
        head=model.head,
        options=options,
        encoder=state.text_bank.encoder,
        pair=_choose_pair(pair_names, state),
        criterion=criterion,
        recipe=config.recipe,
        timeline=run.timeline,
        averaging=resolve_ema(config.ema, total_steps=run.timeline.total_steps),
        device=run.device,
        precision=run.precision,
        train=train,
        val=_val_outputs(config, evaluator, loader),
        ground_truth=evaluator.ground_truth,
        max_detections=evaluator.max_detections,
        num_resamples=config.evaluation.bootstrap_resamples,
        counted_detections=evaluator.counted_detections,
    )


def _choose_pair(names: Sequence[str] | None, state: TextFusionState) -> SwappedPair:
    class_names = state.text_bank.class_names
    if names is not None:
        if not set(names) <= set(class_names) or len(set(names)) != 2:
            raise ConfigError(
                f"--pair: got {', '.join(names)}. Name two different classes of {', '.join(class_names)}."
            )
        return SwappedPair(first=names[0], second=names[1], origin="named by the user")
    first, second = (class_names[label] for label in tracked_pair(state.confused, state.text_bank))
    origin = "the pair with the most similar texts"
    if state.confused:
        share = state.confused[0].share
        origin = f"the detector predicts {second} for {share:.0%} of the training boxes of {first}"
    return SwappedPair(first=first, second=second, origin=origin)


def _val_outputs(config: Config, evaluator: Evaluator, train: DetectorOutputLoader) -> DetectorOutputLoader:
    """Load the detector outputs of the validation images, in float32 as evaluation does."""
    dataset = evaluator.loader.dataset
    precision = select_precision("off", evaluator.device)
    items, size = [(0, index) for index in range(len(dataset))], config.data.eval_batch_size
    return replace(
        train,
        dataset=dataset,
        sampler=FixedBatches([items[start : start + size] for start in range(0, len(items), size)]),
        store=open_store(Path(fusion_options(config).cache_dir), dataset, train.model, precision),
        num_views=1,
        precision=precision,
    )


def run_trials(
    context: TrialContext, variants: Sequence[Variant], seeds: Sequence[int]
) -> Mapping[str, Sequence[ScoreSamples]]:
    """Train and evaluate the real text and the other variants.

    The averaged weights at the end of the training are evaluated: no epoch is chosen by its score.

    Args:
        context: Everything that is the same for all.
        variants: The variants without the real text.
        seeds: Seeds of weights, vectors and the order of images; at least one.

    Returns:
        The scores of `frozen`, the detector alone; for each seed those of `text`, of each variant, and of
        `swapped`, the real text with the pair's texts exchanged after training.

    Raises:
        ConfigError: If a variant cannot be built from this text.
        DataError: If an image is damaged, or detector outputs cannot be stored.
    """
    for variant in variants:  # fail before hours of training
        build_variant(variant, context.head, context.options, seed=seeds[0])
    untrained = build_variant("text", context.head, context.options, seed=0).to(context.device)
    trained: tuple[Variant, ...] = ("text", *variants)
    scores: dict[str, list[ScoreSamples]] = {"frozen": [evaluate_variant(untrained, context)]}
    scores |= {name: [] for name in (*trained, "swapped")}
    for number, seed in enumerate(seeds, start=1):
        for variant in trained:
            started = time.perf_counter()
            model = train_variant(variant, context, seed=seed)
            scores[variant].append(evaluate_variant(model, context))
            if variant == "text":
                swapped = swap_text(model, context.pair_labels)
                scores["swapped"].append(evaluate_variant(swapped, context))
            ap50 = format_number(scores[variant][-1].mean_ap50.value)
            place, seconds = f"seed {number} of {len(seeds)}", time.perf_counter() - started
            logger.info("%s, %s: mAP50 %s, %.0f s", place, VARIANTS[variant], ap50, seconds)
    return scores


def train_variant(variant: Variant, context: TrialContext, *, seed: int) -> FusionModel:
    """Train a variant to the end and return its averaged weights, in evaluation mode.

    Raises:
        DataError: If an image is damaged, or detector outputs cannot be stored.
    """
    model = build_variant(variant, context.head, context.options, seed=seed).to(context.device)
    first_epoch = context.options.class_head_from_epoch
    groups = variant_groups(variant, model, context.recipe, class_head_from_epoch=first_epoch)
    # The scale of fp16 is learned during a training, and must not pass from one to the next.
    precision = context.precision
    scaler = torch.amp.GradScaler(precision.device_type, enabled=precision.scaler.is_enabled())
    parts = StepContext(
        model=model,
        criterion=context.criterion,
        optimizer=torch.optim.AdamW(groups, lr=context.recipe.lr, betas=context.recipe.betas, fused=True),
        precision=replace(precision, scaler=scaler),
        clip_grad_norm=context.recipe.clip_grad_norm,
    )
    average = ModelEma(model, context.averaging)
    step, num_skipped = 0, 0
    for epoch in range(context.timeline.epochs):
        for batch in context.train(seed, epoch):
            set_learning_rates(parts.optimizer, context.timeline.lr_factor(step), epoch=epoch)
            result = train_step(parts, batch.to(context.device), epoch=epoch)
            step += 1
            if result.skip_reason is None:
                average.update()
            else:
                num_skipped += 1
    if num_skipped:
        logger.warning("%s: skipped %d of %d steps, not finite", VARIANTS[variant], num_skipped, step)
    return average.model


def evaluate_variant(model: FusionModel, context: TrialContext) -> ScoreSamples:
    """Evaluate a variant on the validation images and their resamples."""
    truth = context.ground_truth
    detections = predict_split(
        model,
        context.val,
        device=context.device,
        max_detections=context.max_detections,
        image_ids=truth.image_ids,
    ).detections
    overlaps = compute_overlaps(truth, detections, max_detections=context.counted_detections)
    return resample_scores(overlaps, num_resamples=context.num_resamples)
