"""The trials of an experiment: everything that the variants share."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deim.config.schema import Config
from deim.data.sampling import EpochSampler, FixedBatches
from deim.data.splits import build_splits
from deim.engine.build import prepare_run
from deim.engine.device import select_precision
from deim.engine.ema import resolve_ema
from deim.errors import ConfigError, DataError
from deim.inference.evaluator import Evaluator
from multimodal.ablation.trials import TrialContext
from multimodal.ablation.variants import VariantSource
from multimodal.feature_cache import DetectorOutputBatch, DetectorOutputLoader, open_store
from multimodal.loss import FusionCriterion
from multimodal.options import TextFusionOptions
from multimodal.task import TASK, fusion_options
from multimodal.wrapper import TextFusedDetector

NUM_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialPlan:
    """The trials of an experiment, and what their result names."""

    context: TrialContext
    class_names: tuple[str, ...]
    """C names, by class index."""
    pair: tuple[int, int]
    """The classes whose texts are exchanged at test time."""
    pair_origin: str
    """Why these two."""
    encoder: str
    """Name of the text encoder."""
    detector: str
    """Path of the frozen detector."""


def build_trials(
    config: Config,
    *,
    pair_names: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> TrialPlan:
    """Build detector outputs, loss and budget of the experiment's training, which all variants share.

    Args:
        config: A text fusion; its training and validation data are read.
        pair_names: The two classes whose texts are exchanged at test time; None for the pair that the
            detector confuses most on the training images, or else the pair with the most similar texts.
        num_resamples: Resamples of the validation images for the intervals.

    Raises:
        ConfigError: If the experiment is no text fusion, its options contradict each other, or the pair does
            not name two classes.
        CheckpointError: If the detector or the text bank is missing, damaged, or of other classes.
        DataError: If an annotation file is wrong, an image is damaged, or there is only one class.
    """
    options = _options(config)
    splits = build_splits(config.data)
    if len(splits.train.class_names) < 2:
        raise DataError(
            f"{splits.train.annotations_path.name}: has only the class {splits.train.class_names[0]}. The "
            f"text of a class can only be judged beside the text of another."
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
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
        device=run.device,
    )
    confused: list[dict[str, Any]] = products.state["confused"]
    pair, origin = _pair(pair_names, confused, model.head.plain_text(), splits.train.class_names)
    context = TrialContext(
        source=VariantSource(
            query_dim=model.head.query_dim,
            text=model.head.text,
            background=model.head.background.detach(),
            options=options,
        ),
        criterion=criterion,
        recipe=config.recipe,
        timeline=run.timeline,
        averaging=resolve_ema(config.ema, total_steps=run.timeline.total_steps),
        device=run.device,
        precision=run.precision,
        train=_TrainBatches(loader, run.sampler),
        val=_val_outputs(config, evaluator, loader),
        ground_truth=evaluator.ground_truth,
        max_detections=evaluator.max_detections,
        num_resamples=num_resamples,
    )
    return TrialPlan(
        context=context,
        class_names=splits.train.class_names,
        pair=pair,
        pair_origin=origin,
        encoder=products.state["text_bank"]["encoder"],
        detector=options.detector,
    )


class _TrainBatches:
    """Training batches in an order that depends only on the seed and the epoch."""

    def __init__(self, loader: DetectorOutputLoader, like: EpochSampler) -> None:
        self.loader = copy(loader)
        self.like = like

    def __call__(self, seed: int, epoch: int) -> Iterable[DetectorOutputBatch]:
        self.loader.sampler = EpochSampler(
            len(self.loader.dataset),
            self.like.batch_size,
            seed=seed,
            repeat_factors=self.like.repeat_factors,
        )
        self.loader.set_epoch(epoch)
        return self.loader


def _val_outputs(config: Config, evaluator: Evaluator, train: DetectorOutputLoader) -> DetectorOutputLoader:
    """Load the detector outputs of the validation images, in float32 as evaluation does."""
    dataset = evaluator.loader.dataset
    precision = select_precision("off", evaluator.device)
    size = config.data.eval_batch_size
    starts = range(0, len(dataset), size)
    return DetectorOutputLoader(
        train.model,
        dataset,
        FixedBatches(
            [[(0, index) for index in range(start, min(start + size, len(dataset)))] for start in starts]
        ),
        store=open_store(Path(fusion_options(config).cache_dir), dataset, train.model, precision),
        num_views=1,
        device=evaluator.device,
        precision=precision,
        images_at_once=size,
        num_workers=config.data.num_workers,
    )


def _options(config: Config) -> TextFusionOptions:
    options = fusion_options(config)
    if not options.cache:
        raise ConfigError(
            "task.cache: got false. All variants train on the same detector outputs: set task.cache=true, "
            "and cached_views as many as augmentation needs."
        )
    return options


def _pair(
    names: Sequence[str] | None,
    confused: Sequence[Mapping[str, Any]],
    text: Tensor,
    class_names: Sequence[str],
) -> tuple[tuple[int, int], str]:
    """Choose the pair whose texts are exchanged, and say why."""
    if names is not None:
        if not set(names) <= set(class_names) or len(set(names)) != 2:
            raise ConfigError(
                f"--pair: got {', '.join(names)}. Name two different classes of {', '.join(class_names)}."
            )
        return (class_names.index(names[0]), class_names.index(names[1])), "named by the user"
    if not confused:
        return nearest_texts(text), "the pair with the most similar texts"
    label, other, share = (confused[0][key] for key in ("label", "predicted_as", "share"))
    return (label, other), (
        f"the detector predicts {class_names[other]} for {share:.0%} of the training boxes of "
        f"{class_names[label]}"
    )


def nearest_texts(text: Tensor) -> tuple[int, int]:
    """Return the two classes with the highest cosine.

    Args:
        text: (C, D) float of norm 1; C at least 2.
    """
    cosines = (text @ text.T).detach().fill_diagonal_(-2.0)
    first, second = divmod(int(cosines.argmax()), len(text))
    return first, second
