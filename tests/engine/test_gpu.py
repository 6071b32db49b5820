"""Training at full size on a GPU; run with -m gpu."""

import pytest
import torch

from deim.config.catalog import shipped_configs_dir
from deim.config.loader import load_block, load_config
from deim.data.batch import Batch
from deim.engine.device import select_precision
from deim.engine.optimizer import build_optimizer
from deim.engine.seeding import seed_everything
from deim.engine.step import StepContext, train_step
from deim.loss.criterion import Criterion
from deim.model.detector import Detector, ModelOptions
from deim.structures import Target

NUM_STEPS = 200
MOST_HALVINGS = 16
"""Steps in which float16 may overflow until its loss scale fits."""


def make_batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2, 3, 1024, 1024, generator=generator)
    targets: list[Target] = [
        {
            "boxes": torch.cat(
                [
                    torch.rand(count, 2, generator=generator) * 0.6 + 0.2,
                    torch.rand(count, 2, generator=generator) * 0.3 + 0.01,
                ],
                dim=1,
            ),
            "labels": torch.randint(6, (count,), generator=generator),
            "noise_seed": step,
        }
        for count in (step % 7, 12)
    ]
    return Batch(images=images, targets=targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_l_at_1024_px_stays_finite(amp: str) -> None:
    seed_everything(0)
    device = torch.device("cuda")
    config = load_config(shipped_configs_dir() / "deimv2_1024.yml")
    block = load_block(shipped_configs_dir() / "_base_" / "model_l.yml", "model", ModelOptions)
    model = Detector(block, 6).to(device).train()
    outputs_are_finite: list[bool] = []
    model.register_forward_hook(
        lambda *args: outputs_are_finite.append(bool(args[-1]["pred_logits"].isfinite().all()))
    )
    parts = StepContext(
        model=model,
        criterion=Criterion(config.loss),
        optimizer=build_optimizer(model, config.recipe),
        precision=select_precision("fp16" if amp == "fp16" else "bf16", device),
        clip_grad_norm=config.recipe.clip_grad_norm,
    )
    results = [
        train_step(parts, make_batch(step).to(device), epoch=0, seed=step) for step in range(NUM_STEPS)
    ]
    assert all(outputs_are_finite)
    skipped = [result.skip_reason for result in results if result.skip_reason is not None]
    assert set(skipped) <= {"non-finite gradient"}
    assert len(skipped) <= (MOST_HALVINGS if amp == "fp16" else 0)
