"""The most demanding step and a validation batch, tried before the run, so that memory is decided at once."""

import logging
from dataclasses import dataclass

import torch

from deim.config.schema import Config
from deim.data.augment.multi_scale import compute_sizes
from deim.data.augment.options import AugmentOptions
from deim.data.batch import Batch
from deim.data.formats.coco import CocoSplit
from deim.data.images.tiling import tile_split
from deim.engine.context import RunParts
from deim.engine.distributed import DistributedContext
from deim.engine.memory import gigabytes, limit_bytes, peak_bytes, reset_peak
from deim.engine.step import forward_and_backward, unwrap_model
from deim.errors import NonFiniteError, TrainingError
from deim.structures import Target

logger = logging.getLogger(__name__)

USABLE_SHARE = 0.92
"""Of the memory that is there: fragmentation and other processes need some."""

LEAST_PER_IMAGE = 64 * 2**20
"""Bytes that an image takes at least: what is too small to be measured is not taken for nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """How many images are processed when."""

    effective: int
    """Images of an optimizer step, all processes together."""
    share: int
    """Images of a step in each process."""
    micro: int | None
    """Images that a process has in memory at once; None if that is to be found out."""


def plan_batches(config: Config, distributed: DistributedContext) -> BatchPlan:
    """Turn `data.batch_size` and `data.effective_batch_size` into numbers.

    Raises:
        TrainingError: If they contradict each other or the number of processes.
    """
    data = config.data
    if data.batch_size == "auto":
        assert data.effective_batch_size is not None  # checked by the config
        effective, micro = data.effective_batch_size, None
    else:
        effective, micro = data.effective_batch_size or data.batch_size * distributed.size, data.batch_size
    if effective % distributed.size:
        raise TrainingError(
            f"data.effective_batch_size: {effective} cannot be shared out equally among {distributed.size} "
            f"processes. Use a multiple of {distributed.size}."
        )
    share = effective // distributed.size
    if micro is not None and micro > share:
        raise TrainingError(
            f"data.batch_size: {micro} is more than a process has to do in a step, which is "
            f"{share} of effective_batch_size {effective}. Lower it or raise effective_batch_size."
        )
    return BatchPlan(effective=effective, share=share, micro=micro)


def preflight(
    config: Config, parts: RunParts, plan: BatchPlan, *, train: CocoSplit, micro_batch_size: int | None
) -> int:
    """Try the largest step and a validation batch, print what they take, and choose what is `auto`.

    Nothing of the run is changed but memory: weights, statistics and random states stay.

    Args:
        config: The experiment.
        parts: The run.
        plan: How many images are processed when.
        train: Training data, for the largest number of boxes.
        micro_batch_size: Images at once in memory; None chooses the most that fit, and so does `auto` if
            the number of a continued run no longer fits.

    Returns:
        Images at once in memory.

    Raises:
        TrainingError: If not even that fits.
    """
    possible = _augmented_boxes(_most_boxes(config, train), config.augment)
    most_boxes = _most_demanding_boxes(possible, config.model.decoder.num_denoising)
    chosen = micro_batch_size
    if chosen is None:
        chosen = _choose(config, parts, plan, most_boxes)
    peak = _try_step(config, parts, chosen, most_boxes)
    if peak is None and micro_batch_size is not None and plan.micro is None:
        logger.warning(
            "data.batch_size: %d images at once, as before the stop, no longer fit into memory; with another "
            "number the run does not end as if it had never been stopped",
            chosen,
        )
        chosen = _choose(config, parts, plan, most_boxes)
        peak = _try_step(config, parts, chosen, most_boxes)
    if peak is None:
        raise TrainingError(_advice(config, chosen, plan))
    peak = max(peak, _try_validation(config, parts))
    limit = _common_limit(parts)
    room = "" if limit is None else f", {gigabytes(limit - peak)} of {gigabytes(limit)} left"
    logger.info(
        "memory: at most %s in a step of %d images with %d boxes each, or in validation%s",
        gigabytes(peak),
        chosen,
        most_boxes,
        room,
    )
    return chosen


def _choose(config: Config, parts: RunParts, plan: BatchPlan, most_boxes: int) -> int:
    """The largest part of a step that fits, by the memory that one and two images take."""
    limit = _common_limit(parts)
    one, two = (_try_step(config, parts, number, most_boxes) for number in (1, 2))
    if limit is None or one is None or two is None or plan.share == 1:
        return 1
    per_image = max(two - one, LEAST_PER_IMAGE)
    fitting = 1 + max(0, int((USABLE_SHARE * limit - one) / per_image))
    number = min(plan.share, fitting)
    # Equal parts: 12 images with room for 8 are two parts of 6.
    number = -(-plan.share // -(-plan.share // number))
    while number > 1 and _try_step(config, parts, number, most_boxes) is None:
        number = -(-number // 2)
    logger.info(
        "data.batch_size: auto takes %d images at once, %d steps of them to an update",
        number,
        -(-plan.share // number),
    )
    return number


def _try_step(config: Config, parts: RunParts, number: int, most_boxes: int) -> int | None:
    """Peak memory in bytes of a step, with what the optimizer will hold, in the process that needs most.

    None if it does not fit in one of them.
    """
    step = parts.step
    model = unwrap_model(step.model)
    reset_peak(parts.device)
    try:
        forward_and_backward(step, _largest_batch(config, parts, number, most_boxes))
        own = peak_bytes(parts.device)
    except NonFiniteError:  # of random images: training will tell
        own = peak_bytes(parts.device)
    except torch.OutOfMemoryError:
        own = 0
    finally:
        step.optimizer.zero_grad(set_to_none=True)
        if parts.device.type == "cuda":
            torch.cuda.empty_cache()
    if step.distributed.max(int(own == 0)):
        return None
    peak = step.distributed.max(own)
    has_moments = bool(step.optimizer.state)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return peak + (0 if has_moments else 2 * trained)


def _largest_batch(config: Config, parts: RunParts, number: int, most_boxes: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(number, config.data.channels, *_largest_size(config), generator=generator)
    target: Target = {
        "boxes": torch.rand(most_boxes, 4, generator=generator) * 0.3 + 0.3,
        "labels": torch.randint(len(parts.class_names), (most_boxes,), generator=generator),
        "noise_seed": 0,
    }
    return Batch(images=images, targets=[target] * number).to(parts.device)


def _try_validation(config: Config, parts: RunParts) -> int:
    """Peak memory in bytes of a validation batch."""
    data = config.data
    images = torch.zeros(data.eval_batch_size, data.channels, *config.image_size_hw, device=parts.device)
    reset_peak(parts.device)
    try:
        with torch.no_grad():
            parts.ema.model(images)
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"data.eval_batch_size: a validation batch of {config.data.eval_batch_size} images does not fit "
            f"into the memory of {parts.device}. Lower it."
        ) from None
    return peak_bytes(parts.device)


def _common_limit(parts: RunParts) -> int | None:
    """Memory in bytes of the process that has least; None if one does not know."""
    own = limit_bytes(parts.device)
    least = -parts.step.distributed.max(-(own or 0))
    return least or None


def _most_demanding_boxes(most_boxes: int, num_denoising: int) -> int:
    """Boxes an image, up to `most_boxes`, with the most denoising queries; see `build_denoising_queries`."""
    numbers = range(1, most_boxes + 1)
    return max(numbers, key=lambda boxes: (boxes * max(1, num_denoising // boxes), boxes), default=0)


def _most_boxes(config: Config, split: CocoSplit) -> int:
    """Boxes of the fullest image, or tile."""
    if config.data.tiles is not None:
        return tile_split(split, config.data.tiles).most_boxes
    return int((split.first_box[1:] - split.first_box[:-1]).max(initial=0))


def _augmented_boxes(most_boxes: int, augment: AugmentOptions) -> int:
    """The most boxes that an image can have when several have been made one."""
    images = (4 if augment.mosaic else 1) * (2 if augment.mix_up else 1)
    copies = augment.copy_blend_objects if augment.copy_blend and most_boxes else 0
    return images * most_boxes + copies


def _largest_size(config: Config) -> tuple[int, int]:
    """The largest input of a run, in pixels: height and width."""
    augment = config.augment
    sizes = compute_sizes(config.image_size_hw, augment.multi_scale, repeat=augment.multi_scale_repeat)
    return max([config.image_size_hw, *sizes], key=lambda size_hw: size_hw[0] * size_hw[1])


def _advice(config: Config, number: int, plan: BatchPlan) -> str:
    height, width = _largest_size(config)
    return (
        f"data.batch_size: a step of {number} images at {height}x{width} px does not fit into memory. Use "
        f"--set data.batch_size=auto data.effective_batch_size={plan.effective}, or "
        f"runtime.activation_checkpointing=true, or a smaller image_size."
    )
