"""What a run does about steps without a finite loss, and about memory that runs out."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deim.engine.checkpoints import RunCheckpoints
from deim.engine.context import TrainingRun
from deim.engine.log import RunLog
from deim.engine.memory import STEP_ADVICE
from deim.engine.progress import Progress
from deim.engine.resume import restore_weights
from deim.engine.step import StepBatch, StepResult, train_step, unwrap_model
from deim.errors import TrainingError
from deim.files import count

logger = logging.getLogger(__name__)

MAX_RESTORES = 3
"""How often the last good state is restored before the run stops."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """Does the steps of a run and continues after bad ones, up to a limit."""

    run: TrainingRun
    checkpoints: RunCheckpoints
    log: RunLog

    def step(self, batch: StepBatch, progress: Progress) -> StepResult:
        """Do a step with this process's images; where memory runs out, repeat it with half as many at once.

        Raises:
            TrainingError: If memory runs out a second time, or a smaller micro-batch is impossible.
        """
        # The same draws in every process and every micro-batch, and after a resume.
        seeds = np.random.SeedSequence([self.run.context.config.seed, progress.step])
        seed = int(seeds.generate_state(1)[0])
        while True:
            try:
                return train_step(
                    self.run.step,
                    batch,
                    epoch=progress.epoch,
                    seed=seed,
                    micro_batch_size=progress.micro_batch_size,
                )
            except torch.OutOfMemoryError:
                pass  # until it is handled, its traceback holds the memory of the step
            self._halve_micro_batch(progress, len(batch.targets))

    def record_skip(self, progress: Progress, batch: StepBatch, result: StepResult) -> None:
        """Log a step that changed nothing; after too many in a row restore the last good state.

        Raises:
            TrainingError: If the last good state was restored too often, or there is none.
        """
        progress.skipped_in_a_row += 1
        progress.sums.num_skipped += 1
        local = [(target.get("file_name", "?"), target.get("image_id")) for target in batch.targets]
        images = [image for share in self.run.step.distributed.gather(local) for image in share]
        names = [name for name, _ in images]
        progress.skipped_images = list(dict.fromkeys([*progress.skipped_images, *names]))
        self._write(
            "skipped_step",
            progress,
            reason=result.skip_reason,
            images=names,
            image_ids=[image_id for _, image_id in images],
            lr=self.run.step.optimizer.param_groups[-1]["lr"],
            grad_norm=result.grad_norm,
            # They show whether one of the models has diverged.
            weight_norm=_weight_norm(unwrap_model(self.run.step.model)),
            ema_norm=_weight_norm(self.run.ema.model),
        )
        logger.warning("step %d skipped (%s): %s", progress.step + 1, result.skip_reason, ", ".join(names))
        if progress.skipped_in_a_row >= self.run.context.config.recipe.max_skipped_steps:
            self._restore_good_state(progress)

    def _restore_good_state(self, progress: Progress) -> None:
        """Restore the last good weights, averages and moments, and halve the learning rate."""
        images = ", ".join(progress.skipped_images)
        number = progress.skipped_in_a_row
        if progress.restores >= MAX_RESTORES:
            raise TrainingError(
                f"step {progress.step + 1}: {number} steps in a row gave no finite loss or gradient, though "
                f"the last good state was restored {MAX_RESTORES} times with half the learning rate. Look at "
                f"the images {images}. Then lower recipe.lr, or set runtime.amp=off, and start again."
            )
        checkpoint, path = self.checkpoints.read_good_start()
        scaler = self.run.step.precision.scaler
        scale = scaler.get_scale()
        restore_weights(self.run, checkpoint, path=path)
        if scaler.is_enabled() and scale < scaler.get_scale():
            scaler.update(scale)  # or float16 would overflow again
        progress.restores += 1
        progress.lr_scale /= 2
        progress.skipped_in_a_row = 0
        logger.warning(
            "%d steps in a row skipped: restored the state of step %d, learning rate times %g from now on",
            number,
            checkpoint.step,
            progress.lr_scale,
        )
        self._write("restored", progress, to_step=checkpoint.step, lr_scale=progress.lr_scale)

    def _halve_micro_batch(self, progress: Progress, num_images: int) -> None:
        """Continue with half as many images at once; with several processes their steps would differ."""
        at_once = min(progress.micro_batch_size or num_images, num_images)
        if progress.halved or at_once == 1 or self.run.step.distributed.size > 1:
            raise TrainingError(
                f"out of memory in step {progress.step + 1} with {count('image', at_once)} at once. "
                f"{STEP_ADVICE}"
            )
        self.run.step.optimizer.zero_grad(set_to_none=True)
        if self.run.context.device.type == "cuda":
            torch.cuda.empty_cache()
        progress.micro_batch_size, progress.halved = -(-at_once // 2), True
        logger.warning(
            "out of memory in step %d: from now on %d images at once instead of %d, the same number a step",
            progress.step + 1,
            progress.micro_batch_size,
            at_once,
        )
        self._write("out_of_memory", progress, micro_batch_size=progress.micro_batch_size)

    def _write(self, event: str, progress: Progress, **values: Any) -> None:
        self.log.write(event, epoch=progress.epoch, step=progress.step, **values)


def _weight_norm(model: torch.nn.Module) -> float:
    """Return the L2 norm of all parameters."""
    return torch.nn.utils.get_total_norm([p.detach() for p in model.parameters()]).item()
