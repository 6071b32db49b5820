"""Training the variants on the same outputs, seeds and budget, and evaluating them on the same resamples."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from deim.engine.ema import EmaSchedule, ModelEma
from deim.engine.optimizer import RecipeOptions, set_learning_rates
from deim.engine.schedule import Timeline
from deim.engine.step import Precision, StepContext, train_step
from deim.inference.detection_table import GroundTruthTable
from deim.inference.predictor import predict_split
from deim.metrics.assignment import COCO_IOU_THRESHOLDS, assign, compute_overlaps
from deim.metrics.bootstrap import ScoreSamples, resample_scores
from multimodal.ablation.variants import (
    VARIANTS,
    FusionModel,
    Variant,
    VariantSource,
    build_variant,
    swap_text,
    variant_groups,
)
from multimodal.feature_cache import DetectorOutputBatch
from multimodal.loss import FusionCriterion

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialContext:
    """Everything that is the same for all variants."""

    source: VariantSource
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
    num_resamples: int
    """Resamples of the images, the same for all models."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialScores:
    """Scores of all models, on the same resamples of the same images."""

    frozen: ScoreSamples
    """Scores of the detector alone."""
    variants: Mapping[Variant, tuple[ScoreSamples, ...]]
    """For each variant the scores of each seed; the real text first."""
    swapped: tuple[ScoreSamples, ...]
    """For each seed the scores of the real text, with the pair's texts exchanged after training."""


def run_trials(
    context: TrialContext, variants: Sequence[Variant], seeds: Sequence[int], *, pair: tuple[int, int]
) -> TrialScores:
    """Train and evaluate the real text and the other variants.

    The averaged weights at the end of the training are evaluated: no epoch is chosen by its score.

    Args:
        context: Everything that is the same for all.
        variants: The variants without the real text.
        seeds: Seeds of weights, vectors and the order of images; at least one.
        pair: Two class indices, whose texts are exchanged at test time.

    Raises:
        ConfigError: If a variant cannot be built from this text.
        DataError: If an image is damaged, or detector outputs cannot be stored.
    """
    for variant in variants:  # fail before hours of training
        build_variant(variant, context.source, seed=seeds[0])
    untrained = build_variant("text", context.source, seed=0).to(context.device)
    frozen = evaluate_variant(untrained, context)
    scores: dict[Variant, list[ScoreSamples]] = {"text": [], **{name: [] for name in variants}}
    swapped = []
    for number, seed in enumerate(seeds, start=1):
        for variant, samples in scores.items():
            started = time.perf_counter()
            model = train_variant(variant, context, seed=seed)
            samples.append(evaluate_variant(model, context))
            if variant == "text":
                swapped.append(evaluate_variant(swap_text(model, pair), context))
            ap50 = samples[-1].mean_ap50.value
            logger.info(
                "seed %d of %d, %s: mAP50 %s, %.0f s",
                number,
                len(seeds),
                VARIANTS[variant],
                "unknown without ground truth" if ap50 is None else f"{ap50:.3f}",
                time.perf_counter() - started,
            )
    return TrialScores(
        frozen=frozen,
        variants={variant: tuple(samples) for variant, samples in scores.items()},
        swapped=tuple(swapped),
    )


def train_variant(variant: Variant, context: TrialContext, *, seed: int) -> FusionModel:
    """Train a variant to the end and return its averaged weights, in evaluation mode.

    Raises:
        ConfigError: If the variant cannot be built from this text.
        DataError: If an image is damaged, or detector outputs cannot be stored.
    """
    model = build_variant(variant, context.source, seed=seed).to(context.device)
    groups = variant_groups(
        variant,
        model,
        context.recipe.lr,
        weight_decay=context.recipe.weight_decay,
        class_head_from_epoch=context.source.options.class_head_from_epoch,
    )
    # The scale of fp16 is learned during a training, and must not pass from one to the next.
    scaler = torch.amp.GradScaler(
        context.precision.device_type, enabled=context.precision.scaler.is_enabled()
    )
    parts = StepContext(
        model=model,
        criterion=context.criterion,
        optimizer=torch.optim.AdamW(groups, lr=context.recipe.lr, betas=context.recipe.betas, fused=True),
        precision=replace(context.precision, scaler=scaler),
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
    overlaps = compute_overlaps(truth, detections)
    assignment = assign(truth, detections, overlaps=overlaps, iou_thresholds=COCO_IOU_THRESHOLDS)
    return resample_scores(truth, detections, assignment=assignment, num_resamples=context.num_resamples)
