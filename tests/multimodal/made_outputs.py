"""Detector outputs made by hand, with texts that are known to help a detector or not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deim.engine.device import select_precision
from deim.engine.ema import EmaOptions, resolve_ema
from deim.engine.optimizer import RecipeOptions
from deim.engine.schedule import ScheduleOptions, resolve_schedule
from deim.inference.detection_table import GroundTruthTable
from deim.loss.matcher import HungarianMatcher, MatcherOptions
from deim.structures import Placement, Target
from multimodal.ablation.trials import SwappedPair, TrialContext
from multimodal.feature_cache import DetectorOutputBatch
from multimodal.fusion_head import FusionHead
from multimodal.loss import FusionCriterion, FusionLossOptions
from multimodal.options import TextFusionOptions
from multimodal.wrapper import DetectorOutputs

NUM_QUERIES, TEXT_DIM, QUERY_DIM = 12, 24, 64
SIDE = 120
"""Of an image, in pixels; its queries look at the cells of a grid of 4 by 3."""
BATCH_SIZE = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """How outputs are made: the features of an object are a linear map of a meaning, plus noise."""

    meanings: Tensor
    """(C, D): what the features of each class show."""
    text: Tensor
    """(C, D): what its text says."""
    train_boxes: tuple[int, ...]
    """C numbers of boxes in the training images."""
    val_boxes: tuple[int, ...]
    noise: float
    """Standard deviation of each feature, of which those without noise have a length of 1."""
    detector_knows: float = 0.0
    """Logits by which the detector favors the true class."""
    background_logit: float = -3.0


def directions(number: int, generator: torch.Generator) -> Tensor:
    """Orthogonal vectors (number, D) of length 1."""
    return torch.linalg.qr(torch.randn(TEXT_DIM, number, generator=generator)).Q.T.contiguous()


def known_words(seed: int) -> Case:
    """Four rare classes share their words with frequent ones, and look as their text says: it must help.

    The classes that share words, drawn as a graph, have no symmetry that moves all classes: shuffled texts
    never fit as well.
    """
    generator = torch.Generator().manual_seed(seed)
    mine = directions(4, generator)
    shared = ((0, 1), (1, 2), (0, 2), (2, 3))
    rare = F.normalize(torch.stack([mine[first] + mine[other] for first, other in shared]), dim=-1)
    text = torch.cat([mine, rare])
    return Case(
        meanings=text,
        text=text,
        train_boxes=(60,) * 4 + (1,) * 4,
        val_boxes=(20,) * 8,
        noise=0.16,
    )


def wrong_words(seed: int) -> Case:
    """The same looks, but the texts have no words in common."""
    generator = torch.Generator().manual_seed(500 + seed)
    return replace(known_words(seed), text=directions(8, generator))


def unknown_words(seed: int) -> Case:
    """All classes are frequent and can be told apart; their text has nothing to do with their looks."""
    generator = torch.Generator().manual_seed(seed)
    return Case(
        meanings=directions(6, generator),
        text=F.normalize(torch.randn(6, TEXT_DIM, generator=generator), dim=-1),
        train_boxes=(25,) * 6,
        val_boxes=(20,) * 6,
        noise=0.3,
    )


def nothing_to_learn(seed: int) -> Case:
    """The features are noise, and so the text has nothing to say of them."""
    generator = torch.Generator().manual_seed(seed)
    return Case(
        meanings=torch.zeros(6, TEXT_DIM),
        text=directions(6, generator),
        train_boxes=(25,) * 6,
        val_boxes=(20,) * 6,
        noise=1.0,
        detector_knows=0.4,
    )


def nothing_left(seed: int) -> Case:
    """The detector makes no mistake."""
    return replace(unknown_words(seed), detector_knows=8.0, background_logit=-8.0)


def make_context(case: Case, *, seed: int, epochs: int = 10, base_lr: float = 2e-4, num_resamples: int = 200):
    """The trials of a case."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    looks = torch.linalg.qr(torch.randn(QUERY_DIM, TEXT_DIM, generator=generator)).Q.T
    train = make_images(case, case.train_boxes, looks, rng=rng, generator=generator)
    val = make_images(case, case.val_boxes, looks, rng=rng, generator=generator)
    steps = -(-len(train) // BATCH_SIZE)
    timeline = resolve_schedule(ScheduleOptions(), epochs=epochs, steps_per_epoch=steps, has_stages=False)
    background = torch.randn(2, TEXT_DIM, generator=generator)

    def batches(seed: int, epoch: int) -> Iterable[DetectorOutputBatch]:
        order = np.random.default_rng([seed, epoch]).permutation(len(train))
        return [join([train[i] for i in part]) for part in np.array_split(order, steps)]

    return TrialContext(
        head=FusionHead(
            case.text[:, None].repeat(1, 2, 1),
            background,
            query_dim=QUERY_DIM,
            hidden_dim=64,
            adapter_dim=16,
        ),
        options=TextFusionOptions(detector="best.pth", hidden_dim=64, adapter_dim=16),
        encoder="hashed bag of words",
        pair=SwappedPair(first="class 0", second="class 1", origin="named by hand"),
        criterion=FusionCriterion(
            matcher=HungarianMatcher(MatcherOptions(), late_epoch=80), options=FusionLossOptions()
        ),
        recipe=RecipeOptions(lr=base_lr, weight_decay=1e-4, betas=(0.9, 0.999), clip_grad_norm=1.0),
        timeline=timeline,
        averaging=resolve_ema(EmaOptions(), total_steps=timeline.total_steps),
        device=torch.device("cpu"),
        precision=select_precision("off", torch.device("cpu")),
        train=batches,
        val=[join(val)],
        ground_truth=GroundTruthTable.from_coco(to_coco(val, len(case.text))),
        max_detections=NUM_QUERIES * 3,
        num_resamples=num_resamples,
    )


Image = tuple[DetectorOutputs, Target]


def make_images(
    case: Case,
    num_boxes: Sequence[int],
    looks: Tensor,
    *,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> list[Image]:
    """Images of three boxes each, the last of fewer; a query for each box, the others on the background."""
    labels = rng.permutation(np.repeat(np.arange(len(num_boxes)), num_boxes))
    images = []
    for index, start in enumerate(range(0, len(labels), 3)):
        mine = torch.from_numpy(labels[start : start + 3])
        cells = torch.from_numpy(rng.permutation(NUM_QUERIES))
        boxes = torch.stack([(cells % 4 + 0.5) / 4, (cells // 4 + 0.5) / 3], dim=-1)
        boxes = torch.cat([boxes, torch.full((NUM_QUERIES, 2), 0.2)], dim=-1).float()
        features = torch.zeros(NUM_QUERIES, QUERY_DIM)
        features[: len(mine)] = case.meanings[mine] @ looks
        features += case.noise * torch.randn(features.shape, generator=generator)
        features *= QUERY_DIM**0.5  # single numbers of about 1, as a layer norm leaves them
        logits = 0.3 * torch.randn(NUM_QUERIES, len(num_boxes), generator=generator)
        logits[len(mine) :] += case.background_logit
        logits[torch.arange(len(mine)), mine] += case.detector_knows
        actual = DetectorOutputs(
            query_features=features[None], pred_logits=logits[None], pred_boxes=boxes[None]
        )
        place = Placement(orig_size_hw=(SIDE, SIDE), span_hw=(float(SIDE), float(SIDE)), shift_yx=(0.0, 0.0))
        shake = 0.01 * torch.randn(len(mine), 4, generator=generator)
        target: Target = {
            "boxes": boxes[: len(mine)] + shake,
            "labels": mine,
            "image_id": index + 1,
            "file_name": f"{index}.png",
            "placement": place,
        }
        images.append((actual, target))
    return images


def join(images: Sequence[Image]) -> DetectorOutputBatch:
    names = ("query_features", "pred_logits", "pred_boxes")
    actual = {name: torch.cat([getattr(first, name) for first, _ in images]) for name in names}
    return DetectorOutputBatch(images=DetectorOutputs(**actual), targets=[target for _, target in images])


def to_coco(images: Sequence[Image], num_classes: int) -> dict[str, Any]:
    boxes = []
    for _, target in images:
        for (x, y, w, h), label in zip(
            (SIDE * target["boxes"]).tolist(), target["labels"].tolist(), strict=True
        ):
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": target["image_id"],
                    "category_id": label + 1,
                    "bbox": [x - w / 2, y - h / 2, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": target["image_id"], "file_name": target["file_name"], "width": SIDE, "height": SIDE}
            for _, target in images
        ],
        "annotations": boxes,
        "categories": [{"id": label + 1, "name": f"class {label}"} for label in range(num_classes)],
    }
