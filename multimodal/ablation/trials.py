"""Training the variants on the same findings, seeds and budget, and scoring them on the same resamples."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from deim.engine.ema import ModelEma
from deim.engine.optimizer import set_learning_rates
from deim.engine.schedule import EmaSchedule, Timeline
from deim.engine.step import Precision, StepParts, train_step
from deim.inference.detection_table import GroundTruthTable
from deim.inference.predictor import predict_split
from deim.metrics.bootstrap import ScoreSamples, resample_scores
from multimodal.ablation.variants import (
    VARIANTS,
    FindingsFusion,
    Variant,
    VariantSource,
    build_variant,
    swap_text,
    variant_groups,
)
from multimodal.feature_cache import FindingsBatch
from multimodal.loss import FusionCriterion

logger = logging.getLogger(__name__)

FROZEN: Final = "frozen"
SWAPPED: Final = "swapped"
"""What is scored beside the variants: the detector as it is, and the real text with the pair's exchanged."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialSetting:
    """What is the same for all variants."""

    source: VariantSource
    criterion: FusionCriterion
    base_lr: float
    """Learning rate of a class head that is trained beside a fusion head."""
    weight_decay: float
    betas: tuple[float, float]
    """Of AdamW."""
    clip_grad_norm: float
    """Largest global L2 norm of the gradient."""
    timeline: Timeline
    averaging: EmaSchedule
    device: torch.device
    precision: Precision
    """Of the forward passes in training."""
    train: Callable[[int, int], Iterable[FindingsBatch]]
    """Training batches of a seed and an epoch."""
    val: Iterable[FindingsBatch]
    """Each image that is scored, once; read anew for every model."""
    ground_truth: GroundTruthTable
    """COCO dict of these images; categories in the order of the class indices."""
    max_detections: int
    """Raw detections kept an image."""
    num_resamples: int
    """Of the images, the same for all models."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialScores:
    """Scores of all models, on the same resamples of the same images."""

    frozen: ScoreSamples
    """Of the detector as it is."""
    variants: Mapping[Variant, tuple[ScoreSamples, ...]]
    """Of each variant, one for each seed; the real text first."""
    swapped: tuple[ScoreSamples, ...]
    """Of the real text with that of the pair exchanged after training, one for each seed."""


def run_trials(
    setting: TrialSetting, controls: Sequence[Variant], seeds: Sequence[int], *, pair: tuple[int, int]
) -> TrialScores:
    """Train and score the real text and the controls.

    The averaged weights at the end of the training are scored: no epoch is chosen by its score.

    Args:
        setting: What is the same for all.
        controls: Without the real text.
        seeds: Of weights, vectors and the order of images; at least one.
        pair: Two class indices, whose text is exchanged at test time.

    Raises:
        ConfigError: If a control cannot be built of this text.
        DataError: If an image is damaged, or findings cannot be stored.
    """
    for variant in controls:  # what cannot be built is refused before hours of training
        build_variant(variant, setting.source, seed=seeds[0])
    untrained = build_variant("text", setting.source, seed=0).to(setting.device)
    frozen = score(untrained, setting)
    scores: dict[Variant, list[ScoreSamples]] = {"text": [], **{name: [] for name in controls}}
    swapped = []
    for number, seed in enumerate(seeds, start=1):
        for variant in scores:
            started = time.perf_counter()
            model = train_variant(variant, setting, seed=seed)
            scores[variant].append(score(model, setting))
            if variant == "text":
                swapped.append(score(swap_text(model, pair), setting))
            logger.info(
                "seed %d of %d, %s: mAP50 %s, %.0f s",
                number,
                len(seeds),
                VARIANTS[variant],
                _in_words(scores[variant][-1]),
                time.perf_counter() - started,
            )
    return TrialScores(
        frozen=frozen,
        variants={variant: tuple(samples) for variant, samples in scores.items()},
        swapped=tuple(swapped),
    )


def train_variant(variant: Variant, setting: TrialSetting, *, seed: int) -> FindingsFusion:
    """Train a variant to the end.

    Args:
        variant: Which one.
        setting: What is the same for all.
        seed: Of weights, vectors and the order of images.

    Returns:
        The averaged weights, in evaluation mode.

    Raises:
        ConfigError: If the variant cannot be built of this text.
        DataError: If an image is damaged, or findings cannot be stored.
    """
    model = build_variant(variant, setting.source, seed=seed).to(setting.device)
    groups = variant_groups(
        variant,
        model,
        setting.base_lr,
        weight_decay=setting.weight_decay,
        class_head_from_epoch=setting.source.class_head_from_epoch,
    )
    # The scale of fp16 is learned during a training, and must not pass from one to the next.
    scaler = torch.amp.GradScaler(
        setting.precision.device_type, enabled=setting.precision.scaler.is_enabled()
    )
    parts = StepParts(
        model=model,
        criterion=setting.criterion,
        optimizer=torch.optim.AdamW(groups, lr=setting.base_lr, betas=setting.betas, fused=True),
        precision=replace(setting.precision, scaler=scaler),
        clip_grad_norm=setting.clip_grad_norm,
    )
    average = ModelEma(model, setting.averaging)
    step, refused = 0, 0
    for epoch in range(setting.timeline.epochs):
        for batch in setting.train(seed, epoch):
            set_learning_rates(parts.optimizer, setting.timeline.lr_factor(step), epoch=epoch)
            result = train_step(parts, batch.to(setting.device), epoch=epoch)
            step += 1
            if result.skip_reason is None:
                average.update(model)
            else:
                refused += 1
    if refused:
        logger.warning("%s: %d of %d steps were not finite and left out", VARIANTS[variant], refused, step)
    return average.model


def score(model: FindingsFusion, setting: TrialSetting) -> ScoreSamples:
    """Score a model on the images of validation and their resamples.

    Args:
        model: On the device of the setting.
        setting: Of the trials.

    Raises:
        DataError: If an image is damaged, or findings cannot be stored.
    """
    predictions = predict_split(
        model,
        setting.val,
        device=setting.device,
        max_detections=setting.max_detections,
        image_ids=setting.ground_truth.image_ids,
    )
    return resample_scores(
        setting.ground_truth, predictions.detections, num_resamples=setting.num_resamples
    )


def _in_words(samples: ScoreSamples) -> str:
    value = samples.mean_ap50.value
    return "none, for want of ground truth" if value is None else f"{value:.3f}"
