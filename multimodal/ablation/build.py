"""From configuration to the trials: all that the variants share."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deim.config.schema import Config
from deim.data.dataset import DetectionDataset
from deim.data.splits import build_splits
from deim.engine.device import select_precision
from deim.engine.loading import EpochSampler
from deim.engine.prepare import prepare_run
from deim.engine.schedule import resolve_ema
from deim.engine.task import TaskProducts
from deim.errors import ConfigError, DataError
from deim.inference.evaluator import Evaluator
from multimodal.ablation.trials import TrialSetting
from multimodal.ablation.variants import VariantSource
from multimodal.feature_cache import FindingsBatch, FindingsLoader, open_store
from multimodal.loss import FusionCriterion
from multimodal.options import TextFusionOptions
from multimodal.task import TASK, fusion_options
from multimodal.wrapper import TextFusedDetector

NUM_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialPlan:
    """The trials of an experiment, and what a report says of them."""

    setting: TrialSetting
    class_names: tuple[str, ...]
    """C names, by class index."""
    pair: tuple[int, int]
    """The classes whose text is exchanged at test time."""
    pair_origin: str
    """Why these, in words."""
    encoder: str
    """What embedded the text, in words."""
    detector: str
    """Path of the frozen detector."""


def build_trials(
    config: Config,
    *,
    pair_names: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> TrialPlan:
    """Build what all variants share: findings, loss and budget of the experiment's own training.

    Args:
        config: An experiment of phase 2; its training and validation data are read.
        pair_names: The two classes whose text is exchanged at test time; None for those that the detector
            confuses most on the training images, or else those whose texts are nearest to each other.
        num_resamples: Of the validation images, behind intervals.

    Raises:
        ConfigError: If the experiment is not of phase 2, its options contradict each other, or the pair does
            not name two classes.
        CheckpointError: If the detector or the text bank is missing, damaged, or of other classes.
        DataError: If an annotation file is wrong, an image is damaged, or there is one class alone.
    """
    options = _options(config)
    splits = build_splits(config.data)
    if len(splits.train.class_names) < 2:
        raise DataError(
            f"{splits.train.annotations_path.name}: has the one class {splits.train.class_names[0]}. The "
            f"text of a class can only be judged beside that of another."
        )
    context = prepare_run(config, splits)
    products = TASK.build(context)
    model, criterion = products.model, products.criterion
    assert isinstance(model, TextFusedDetector)
    assert isinstance(criterion, FusionCriterion)
    loader = products.loader
    assert isinstance(loader, FindingsLoader)
    evaluator = Evaluator(
        config,
        splits.val,
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
        device=context.device,
    )
    pair, origin = _pair(pair_names, products, model, splits.train.class_names)
    setting = TrialSetting(
        source=VariantSource(
            query_dim=model.head.query_dim,
            text=model.head.text,
            background=model.head.background.detach(),
            hidden_dim=options.hidden_dim,
            adapter_dim=options.adapter_dim,
            class_head_from_epoch=options.class_head_from_epoch,
        ),
        criterion=criterion,
        base_lr=config.recipe.lr,
        weight_decay=config.recipe.weight_decay,
        betas=config.recipe.betas,
        clip_grad_norm=config.recipe.clip_grad_norm,
        timeline=context.timeline,
        averaging=resolve_ema(config.ema, total_steps=context.timeline.total_steps),
        device=context.device,
        precision=context.precision,
        train=_TrainBatches(loader, context.sampler),
        val=_val_findings(config, evaluator, loader),
        ground_truth=evaluator.ground_truth(),
        max_detections=evaluator.max_detections,
        num_resamples=num_resamples,
    )
    return TrialPlan(
        setting=setting,
        class_names=splits.train.class_names,
        pair=pair,
        pair_origin=origin,
        encoder=products.state["text_bank"]["encoder"],
        detector=options.detector,
    )


class _TrainBatches:
    """Training batches of a seed and an epoch, in an order that follows from both alone."""

    def __init__(self, loader: FindingsLoader, like: EpochSampler) -> None:
        self.loader = loader
        self.like = like

    def __call__(self, seed: int, epoch: int) -> Iterable[FindingsBatch]:
        loader = copy(self.loader)
        loader.batches = EpochSampler(
            len(loader.dataset),
            self.like.batch_size,
            seed=seed,
            repeat_factors=self.like.repeat_factors,
        )
        loader.set_epoch(epoch)
        return loader


def _val_findings(config: Config, evaluator: Evaluator, train: FindingsLoader) -> FindingsLoader:
    """What the detector finds in the images of validation, in float32 as evaluation does."""
    dataset = evaluator.loader.dataset
    assert isinstance(dataset, DetectionDataset)
    precision = select_precision("off", evaluator.device)
    size = config.data.eval_batch_size
    starts = range(0, len(dataset), size)
    return FindingsLoader(
        train.model,
        dataset,
        [[(0, index) for index in range(start, min(start + size, len(dataset)))] for start in starts],
        store=open_store(Path(fusion_options(config).cache_dir), dataset, train.model, precision),
        num_views=1,
        device=evaluator.device,
        precision=precision,
        images_at_once=size,
        num_workers=config.data.num_workers,
    )


def _options(config: Config) -> TextFusionOptions:
    """Return the block `task`, which must store the detector's outputs for many trainings.

    Raises:
        ConfigError: If it does not, or the experiment is of another task.
    """
    options = fusion_options(config)
    if not options.cache:
        raise ConfigError(
            "task.cache: got false. The trials train many heads on the same stored outputs of the detector: "
            "set task.cache=true, and cached_views as many as augmentation needs."
        )
    return options


def _pair(
    names: Sequence[str] | None, products: TaskProducts, model: TextFusedDetector, class_names: Sequence[str]
) -> tuple[tuple[int, int], str]:
    """The pair whose text is exchanged, and why."""
    if names is not None:
        unknown = [name for name in names if name not in class_names]
        if unknown or len(set(names)) != 2:
            raise ConfigError(
                f"--pair: got {', '.join(names)}. Name two different classes of {', '.join(class_names)}."
            )
        one, other = (class_names.index(name) for name in names)
        return (one, other), "named by hand"
    confused: list[dict[str, Any]] = products.state["confused"]
    if confused:
        first = confused[0]
        one, other = first["label"], first["predicted_as"]
        return (one, other), (
            f"the detector takes {first['share']:.0%} of the training boxes of {class_names[one]} for "
            f"{class_names[other]}"
        )
    return nearest_texts(model.head.plain_text()), "of all texts these two are nearest to each other"


def nearest_texts(text: Tensor) -> tuple[int, int]:
    """The two classes with the largest cosine.

    Args:
        text: (C, D) float of length 1; C at least 2.
    """
    cosines = (text @ text.T).detach().fill_diagonal_(-2.0)
    one, other = divmod(int(cosines.argmax()), len(text))
    return one, other
