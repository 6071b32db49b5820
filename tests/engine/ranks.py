"""One of several processes, for `test_distributed.py`: torchrun … ranks.py gradients|evaluation OUT."""

import sys
from pathlib import Path
from typing import Any

import torch

from deim.boxes import xyxy_to_cxcywh
from deim.config.loader import config_from_dict
from deim.data.batch import Batch
from deim.data.formats.coco import read_coco
from deim.engine.device import select_precision
from deim.engine.distributed import DistributedContext, exchange_gradients, join_distributed
from deim.engine.optimizer import build_optimizer
from deim.engine.seeding import seed_everything
from deim.engine.step import StepContext, train_step, unwrap_model
from deim.inference.evaluator import Evaluator
from deim.loss.criterion import Criterion
from deim.metrics.coco import compute_coco_metrics
from deim.model.detector import Detector
from deim.structures import Target


def make_batch(num_boxes: list[int]) -> Batch:
    """Random images; image i has `num_boxes[i]` boxes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(num_boxes), 3, 64, 64, generator=generator)
    corners = [torch.rand(count, 2, 2, generator=generator).sort(dim=1).values for count in num_boxes]
    targets: list[Target] = [
        {
            "boxes": xyxy_to_cxcywh(box.flatten(1)),
            "labels": torch.arange(len(box)) % 3,
            "noise_seed": number,
        }
        for number, box in enumerate(corners)
    ]
    return Batch(images=images, targets=targets)


def build(content: dict[str, Any]) -> Detector:
    """The tiny detector; batch norm keeps its statistics, which CPUs do not exchange."""
    seed_everything(0)
    model = Detector(config_from_dict(content, where="tiny").model, 3).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def compute_gradients(
    content: dict, num_boxes: list[int], distributed: DistributedContext, *, micro_batch_size: int | None
) -> dict:
    """Terms and gradients of one step in which this process has every `distributed.size`-th image."""
    model = build(content)
    config = config_from_dict(content, where="tiny")
    batch = make_batch(num_boxes)
    new = Batch(
        images=batch.images[distributed.rank :: distributed.size],
        targets=batch.targets[distributed.rank :: distributed.size],
    )
    parts = StepContext(
        model=exchange_gradients(model, distributed),
        criterion=Criterion(config.loss),
        optimizer=build_optimizer(model, config.recipe),
        precision=select_precision("off", torch.device("cpu")),
        clip_grad_norm=1e9,
        distributed=distributed,
    )
    result = train_step(parts, new, epoch=0, seed=0, micro_batch_size=micro_batch_size)
    named = unwrap_model(parts.model).named_parameters()
    gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    return {"terms": result.terms, "skip_reason": result.skip_reason, "gradients": gradients}


def main() -> None:
    """Do what the arguments say; the main process writes the result."""
    request = torch.load(sys.argv[1], weights_only=True)
    torch.set_num_threads(1)
    with join_distributed("cpu") as distributed:
        if request["what"] == "gradients":
            result = [
                compute_gradients(request["config"], numbers, distributed, micro_batch_size=micro)
                for numbers, micro in request["cases"]
            ]
        else:
            root = Path(request["config"]["data"]["root"])
            config = config_from_dict(request["config"], where="tiny")
            split = read_coco(root / "annotations" / "train.json", root / "images")
            evaluator = Evaluator(
                config,
                split,
                class_names=split.class_names,
                category_ids=split.category_ids,
                device=torch.device("cpu"),
                distributed=distributed,
            )
            evaluation = evaluator.evaluate(build(request["config"]).eval())
            new = len({target["image_id"] for batch in evaluator.loader for target in batch.targets})
            result = {
                "shares": distributed.gather(new),
                "entries": list(
                    evaluation.detections.to_coco(
                        evaluation.ground_truth.image_ids, evaluation.ground_truth.category_ids
                    )
                ),
                "ap50": compute_coco_metrics(evaluation.ground_truth, evaluation.detections).summary.ap50,
            }
        if distributed.is_main:
            torch.save(result, sys.argv[2])


if __name__ == "__main__":
    main()
