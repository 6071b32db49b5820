"""Tries the most demanding step and a validation batch before a run, so that memory cannot run out later."""

import logging
from contextlib import suppress

import torch

from deim.data.augment.pipeline import build_pipeline
from deim.data.batch import Batch
from deim.data.images.tiling import tile_split
from deim.engine.context import RunContext, TrainingRun
from deim.engine.memory import gigabytes, limit_bytes, peak_bytes, reset_peak
from deim.engine.step import forward_and_backward, unwrap_model
from deim.errors import NonFiniteError, TrainingError
from deim.files import count
from deim.structures import Target

logger = logging.getLogger(__name__)

USABLE_SHARE = 0.92
"""Share of the memory that is used: fragmentation and other processes need some."""

MIN_BYTES_PER_IMAGE = 64 * 2**20
"""Lower bound of the memory of an image, where the measured difference is too small to be trusted."""


def preflight(run: TrainingRun, *, micro_batch_size: int | None) -> int:
    """Try the largest step and a validation batch, log their memory, and return the micro-batch.

    Weights, statistics and random states of the run stay the same.

    Args:
        run: The run.
        micro_batch_size: Images in memory at once; None chooses the most that fit. So does
            `data.batch_size: auto` if the number of a resumed run no longer fits.

    Raises:
        TrainingError: If not even that fits.
    """
    plan, largest = run.context.plan, _largest_image(run.context)
    chosen = micro_batch_size or _choose(run, largest)
    peak = _try_step(run, largest, chosen)
    if peak is None and micro_batch_size is not None and plan.micro is None:
        logger.warning(
            "data.batch_size: %s at once, as before the stop, no longer fit into memory; with another "
            "number the run does not end as if it had never been stopped",
            count("image", chosen),
        )
        chosen = _choose(run, largest)
        peak = _try_step(run, largest, chosen)
    if peak is None:
        _, _, height, width = largest.images.shape
        raise TrainingError(
            f"data.batch_size: a step of {count('image', chosen)} at {height}x{width} px does not fit into "
            f"memory. Use --set data.batch_size=auto data.effective_batch_size={plan.effective}, or "
            f"runtime.activation_checkpointing=true, or a smaller image_size."
        )
    peak = max(peak, _try_validation(run))
    limit = _common_limit(run.context)
    logger.info(
        "memory: training with %s at once (up to %s in each) and validation need up to %s%s",
        count("image", chosen),
        count("box", len(largest.targets[0]["labels"])),
        gigabytes(peak),
        "" if limit is None else f" of {gigabytes(limit)}",
    )
    return chosen


def _largest_image(context: RunContext) -> Batch:
    """Make a random image of a run's largest size, with the number of boxes that needs the most memory."""
    config, train = context.config, context.splits.train
    pipeline = build_pipeline(
        config.augment, epochs=context.augment_epochs, image_size_hw=config.image_size_hw
    )
    if config.data.tiles is None:
        most_boxes = int((train.first_box[1:] - train.first_box[:-1]).max(initial=0))
    else:
        most_boxes = int(tile_split(train, config.data.tiles).num_boxes.max(initial=0))
    number = most_demanding_boxes(pipeline.max_boxes(most_boxes), config.model.decoder.num_denoising)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, config.data.channels, *pipeline.largest_size_hw, generator=generator)
    target: Target = {
        "boxes": torch.rand(number, 4, generator=generator) * 0.3 + 0.3,
        "labels": torch.randint(max(1, len(train.class_names)), (number,), generator=generator),
        "noise_seed": 0,
    }
    return Batch(images=images, targets=[target])


def most_demanding_boxes(most_boxes: int, num_denoising: int) -> int:
    """Return the number of boxes, up to `most_boxes`, with the most denoising queries.

    See `build_denoising_queries`: fewer boxes can have more groups of queries.
    """
    numbers = range(1, most_boxes + 1)
    return max(numbers, key=lambda boxes: (boxes * max(1, num_denoising // boxes), boxes), default=0)


def _choose(run: TrainingRun, largest: Batch) -> int:
    """Return the largest micro-batch that fits, estimated from the memory of one and of two images."""
    share, limit = run.context.plan.share, _common_limit(run.context)
    single_bytes, double_bytes = (_try_step(run, largest, number) for number in (1, 2))
    if limit is None or single_bytes is None or double_bytes is None or share == 1:
        return 1
    per_image = max(double_bytes - single_bytes, MIN_BYTES_PER_IMAGE)
    number = min(share, 1 + max(0, int((USABLE_SHARE * limit - single_bytes) / per_image)))
    # Equal micro-batches: 12 images with room for 8 are two micro-batches of 6.
    number = -(-share // -(-share // number))
    while number > 1 and _try_step(run, largest, number) is None:
        number = -(-number // 2)
    logger.info(
        "data.batch_size: auto takes %s at once, %d micro-batches for an update",
        count("image", number),
        -(-share // number),
    )
    return number


def _try_step(run: TrainingRun, largest: Batch, number: int) -> int | None:
    """Return the peak memory in bytes of a step, with the future moments of the optimizer.

    It is that of the process that needs the most; None if the step does not fit in one of them.
    """
    step, device, has_run_out = run.step, run.context.device, False
    batch = Batch(images=largest.images.repeat(number, 1, 1, 1), targets=largest.targets * number)
    reset_peak(device)
    try:
        with suppress(NonFiniteError):  # the images are random; training will show real ones
            forward_and_backward(step, batch.to(device))
    except torch.OutOfMemoryError:
        has_run_out = True
    finally:
        peak = peak_bytes(device)
        step.optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if step.distributed.max(int(has_run_out)):
        return None
    parameters = unwrap_model(step.model).parameters()
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return step.distributed.max(peak) + (0 if step.optimizer.state else 2 * trained)


def _try_validation(run: TrainingRun) -> int:
    """Return the peak memory in bytes of a validation batch."""
    config, device = run.context.config, run.context.device
    number = config.data.eval_batch_size
    images = torch.zeros(number, config.data.channels, *config.image_size_hw, device=device)
    reset_peak(device)
    try:
        with torch.no_grad():
            run.ema.model(images)
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"data.eval_batch_size: a validation batch of {count('image', number)} does not fit into the "
            f"memory of {device}. Lower it."
        ) from None
    return peak_bytes(device)


def _common_limit(context: RunContext) -> int | None:
    """Return the memory in bytes of the process that has least; None if one of them does not know."""
    least = -context.distributed.max(-(limit_bytes(context.device) or 0))
    return least or None
