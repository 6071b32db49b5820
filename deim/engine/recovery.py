"""What a run does about steps that give no finite number, and about memory that runs out."""

import logging
from pathlib import Path
from typing import Any

import torch

from deim.config.schema import Config
from deim.engine.checkpoints import previous_path, read_checkpoint
from deim.engine.context import Progress, RunParts, restore_weights
from deim.engine.log import RunLog
from deim.engine.memory import STEP_ADVICE
from deim.engine.step import StepBatch, StepResult, unwrap_model
from deim.errors import CheckpointError, TrainingError

logger = logging.getLogger(__name__)

MAX_RESTORES = 3
"""How often the last good state is restored before the run stops."""


class Recovery:
    """Goes on after bad steps as long as that makes sense, and tells the log.

    Args:
        config: The experiment.
        parts: The run; its weights are changed when a good state is restored.
        last_path: The newest checkpoint; the one before it lies beside it.
    """

    def __init__(self, config: Config, parts: RunParts, *, last_path: Path) -> None:
        self.config = config
        self.parts = parts
        self.last_path = last_path

    def record_skip(self, progress: Progress, batch: StepBatch, result: StepResult, log: RunLog) -> None:
        """Log a step that changed nothing; after too many in a row restore the last good state.

        Args:
            progress: Of the run; brought up to date.
            batch: This process's images of the step.
            result: Of the step.
            log: Of the run.

        Raises:
            TrainingError: If the last good state was restored too often, or there is none.
        """
        progress.skipped_in_a_row += 1
        progress.sums.num_skipped += 1
        own = [(target.get("file_name", "?"), target.get("image_id")) for target in batch.targets]
        images = [image for part in self.parts.step.distributed.gather(own) for image in part]
        names = [name for name, _ in images]
        progress.skipped_images = list(dict.fromkeys([*progress.skipped_images, *names]))
        learning_rate = self.parts.step.optimizer.param_groups[-1]["lr"]
        _write(
            log,
            progress,
            "skipped_step",
            {
                "why": result.skip_reason,
                "images": names,
                "image_ids": [image_id for _, image_id in images],
                "lr": learning_rate,
                "grad_norm": result.grad_norm,
                **self._weight_norms(),
            },
        )
        logger.warning("step %d refused (%s): %s", progress.step, result.skip_reason, ", ".join(names))
        if progress.skipped_in_a_row >= self.config.recipe.max_skipped_steps:
            self._restore_good_state(progress, log)

    def _weight_norms(self) -> dict[str, float]:
        """L2 norms of the weights and of the averaged weights, to see whether one of them has run away."""
        models = {"weight_norm": unwrap_model(self.parts.step.model), "ema_norm": self.parts.ema.model}
        return {
            name: torch.nn.utils.get_total_norm([p.detach() for p in model.parameters()]).item()
            for name, model in models.items()
        }

    def _restore_good_state(self, progress: Progress, log: RunLog) -> None:
        """Take weights, averages and moments from a checkpoint without skipped steps, and halve the rate."""
        images = ", ".join(progress.skipped_images)
        number = progress.skipped_in_a_row
        if progress.restores >= MAX_RESTORES:
            raise TrainingError(
                f"step {progress.step}: {number} steps in a row gave no finite loss or gradient, though the "
                f"last good state was restored {MAX_RESTORES} times with half the learning rate. Look at the "
                f"images {images}. Then lower recipe.lr, or set runtime.amp=off, and start again."
            )
        tree, path = self.good_checkpoint()
        scaler = self.parts.step.precision.scaler
        scale = scaler.get_scale()
        restore_weights(self.parts, tree, path=path)
        if scaler.is_enabled() and scale < scaler.get_scale():
            scaler.update(scale)  # or float16 would overflow again as it did
        progress.restores += 1
        progress.lr_scale /= 2
        progress.skipped_in_a_row = 0
        logger.warning(
            "%d steps in a row refused: restored the state of step %d, learning rate times %g from now on",
            number,
            tree["step"],
            progress.lr_scale,
        )
        _write(log, progress, "restored", {"to_step": tree["step"], "lr_scale": progress.lr_scale})

    def good_checkpoint(self) -> tuple[dict[str, Any], Path]:
        """The state in which the last epoch began that began after a good step, and where it is.

        It does not depend on when else the run was saved or stopped. Where a run was continued from a
        checkpoint within an epoch that lay alone, that one has to do.

        Raises:
            TrainingError: If there is none.
        """
        within = None
        for path in (self.last_path, previous_path(self.last_path)):
            try:
                tree = read_checkpoint(path)
            except CheckpointError:
                continue
            if is_good_start(tree["progress"]):
                return tree, path
            if not tree["progress"]["skipped_in_a_row"]:
                within = within or (tree, path)
        if within is not None:
            return within
        raise TrainingError(
            f"{self.last_path.parent}: there is no checkpoint from before the skipped steps to go back to. "
            f"Lower recipe.lr, or set runtime.amp=off, and start again."
        )

    def halve_micro_batch(self, progress: Progress, num_images: int, log: RunLog) -> None:
        """Go on with half as many images at once; a second time, or with several processes, the run stops.

        Args:
            progress: Of the run; brought up to date.
            num_images: Of this process in the step.
            log: Of the run.

        Raises:
            TrainingError: If it has happened before, or cannot be helped.
        """
        at_once = min(progress.micro_batch_size or num_images, num_images)
        if progress.halved or at_once == 1 or self.parts.step.distributed.size > 1:
            raise TrainingError(
                f"out of memory in step {progress.step} with {at_once} images at once. {STEP_ADVICE}"
            )
        self.parts.step.optimizer.zero_grad(set_to_none=True)
        if self.parts.device.type == "cuda":
            torch.cuda.empty_cache()
        progress.micro_batch_size, progress.halved = -(-at_once // 2), True
        logger.warning(
            "out of memory in step %d: from now on %d images at once instead of %d, the same number a step",
            progress.step,
            progress.micro_batch_size,
            at_once,
        )
        _write(log, progress, "out_of_memory", {"micro_batch_size": progress.micro_batch_size})


def is_good_start(progress: dict[str, Any]) -> bool:
    """Whether a checkpoint holds the start of an epoch after a good step.

    Args:
        progress: Of the checkpoint.
    """
    return not progress["steps_of_epoch"] and not progress["skipped_in_a_row"]


def _write(log: RunLog, progress: Progress, event: str, values: dict[str, Any]) -> None:
    log.write(event, {"epoch": progress.epoch, "step": progress.step} | values)
