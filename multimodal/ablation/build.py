"""From configuration to the trials: all that the variants share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deim.config.multimodal_schema import MultimodalConfig
from deim.config.schema import Config
from deim.data.dataset import DetectionDataset
from deim.data.loader import build_sampler
from deim.data.sampling import EpochSampler, FixedBatches
from deim.data.splits import build_splits
from deim.engine.device import select_device, select_precision
from deim.engine.distributed import DistributedContext
from deim.engine.preflight import plan_batches
from deim.engine.schedule import resolve_ema, resolve_schedule
from deim.engine.task import Setting, Subject
from deim.errors import ConfigError, DataError
from deim.inference.evaluator import Evaluator
from multimodal.ablation.trials import TrialSetting
from multimodal.ablation.variants import VariantSource
from multimodal.feature_cache import FindingsBatch, FindingsLoader, open_store
from multimodal.loss import FusionCriterion
from multimodal.task import build_fusion_subject
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
    device = select_device(config.runtime.device)
    precision = select_precision(config.runtime.amp, device)
    batches = build_sampler(
        config.data,
        splits.train,
        seed=config.seed,
        batch_size=plan_batches(config, DistributedContext()).effective,
        image_size_hw=config.image_size_hw,
    )
    timeline = resolve_schedule(
        config.schedule, epochs=config.epochs, steps_per_epoch=len(batches), has_stages=False
    )
    subject = build_fusion_subject(
        Setting(
            config=config,
            splits=splits,
            batches=batches,
            timeline=timeline,
            device=device,
            precision=precision,
            distributed=DistributedContext(),
            is_new=True,
        )
    )
    model, criterion, loader = subject.model, subject.criterion, subject.loader
    assert isinstance(model, TextFusedDetector)
    assert isinstance(criterion, FusionCriterion)
    assert isinstance(loader, FindingsLoader)
    evaluator = Evaluator(
        config,
        splits.val,
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
        device=device,
    )
    pair, origin = _pair(pair_names, subject, model, splits.train.class_names)
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
        timeline=timeline,
        averaging=resolve_ema(config.ema, total_steps=timeline.total_steps),
        device=device,
        precision=precision,
        train=_TrainBatches(loader, batches),
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
        encoder=subject.stored["fusion"]["text_bank"]["encoder"],
        detector=options.detector,
    )


class _TrainBatches:
    """Training batches of a seed and an epoch, in an order that follows from both alone."""

    def __init__(self, loader: FindingsLoader, like: EpochSampler) -> None:
        self.loader = loader
        self.like = like

    def __call__(self, seed: int, epoch: int) -> Iterable[FindingsBatch]:
        self.loader.sampler = EpochSampler(
            len(self.loader.dataset),
            self.like.batch_size,
            seed=seed,
            repeat_factors=self.like.repeat_factors,
        )
        self.loader.set_epoch(epoch)
        return self.loader


def _val_findings(config: Config, evaluator: Evaluator, train: FindingsLoader) -> FindingsLoader:
    """What the detector finds in the images of validation, in float32 as evaluation does."""
    assert config.multimodal is not None
    dataset = evaluator.loader.dataset
    assert isinstance(dataset, DetectionDataset)
    precision = select_precision("off", evaluator.device)
    size = config.data.eval_batch_size
    starts = range(0, len(dataset), size)
    return FindingsLoader(
        train.model,
        dataset,
        FixedBatches(
            [[(0, index) for index in range(start, min(start + size, len(dataset)))] for start in starts]
        ),
        store=open_store(Path(config.multimodal.cache_dir), dataset, train.model, precision),
        num_views=1,
        device=evaluator.device,
        precision=precision,
        images_at_once=size,
        num_workers=config.data.num_workers,
    )


def _options(config: Config) -> MultimodalConfig:
    """The `multimodal` block, if there is one, and findings to train on again and again."""
    if config.multimodal is None:
        raise ConfigError(
            "multimodal: the experiment has no such block. Only phase 2 has a text that may help: name a "
            "config like configs/quickstart_multimodal.yml."
        )
    if not config.multimodal.cache:
        raise ConfigError(
            "multimodal.cache: got false. The trials train many heads on what the detector finds once: set "
            "multimodal.cache=true, and cached_views as many as augmentation needs."
        )
    return config.multimodal


def _pair(
    names: Sequence[str] | None, subject: Subject, model: TextFusedDetector, class_names: Sequence[str]
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
    confused: list[dict[str, Any]] = subject.stored["fusion"]["confused"]
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
