"""Small fused detectors and stand-ins for text, for the tests of phase 2."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deim.config.schema import Config
from deim.engine.optimizer import RecipeOptions
from deim.engine.trained_detector import TrainedDetector
from deim.model.detector import Detector
from deim.records import to_json
from deim.structures import Target
from multimodal.confused_pairs import ConfusedPair
from multimodal.fusion_head import FusionHead, parameter_groups
from multimodal.loss import FusionCriterion
from multimodal.task import DetectorOrigin, TextFusionState
from multimodal.text_bank import TextBank
from multimodal.wrapper import DetectorOutputs, FusedOutput, TextFusedDetector, fuse_outputs
from tests.model.tiny import tiny_detector


def random_text(num_classes: int = 3, num_prompts: int = 3, *, width: int = 48, seed: int = 0) -> Tensor:
    """Embeddings (C, K, width) that have a direction in common, as real ones have."""
    generator = torch.Generator().manual_seed(3000 + seed)
    mine = torch.randn(num_classes, num_prompts, width, generator=generator)
    return mine + 2 * torch.randn(width, generator=generator)


def small_head(text: Tensor | None = None, *, query_dim: int = 32, seed: int = 0) -> FusionHead:
    """A head of about 9,000 parameters."""
    text = random_text() if text is None else text
    background = random_text(1, 4, width=text.shape[-1], seed=1)[0]
    torch.manual_seed(seed)
    return FusionHead(text, background, query_dim=query_dim, hidden_dim=64, adapter_dim=24)


def tiny_fused(detector: Detector | None = None) -> TextFusedDetector:
    """A fused detector of three classes; nothing of the detector is 0."""
    return TextFusedDetector(detector or tiny_detector(shake=0.1), small_head()).train()


def adamw(model: TextFusedDetector, *, base_lr: float = 5e-5) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model.head, None, RecipeOptions(lr=base_lr, weight_decay=1e-4)))


def open_gates(head: FusionHead) -> FusionHead:
    """Move every parameter away from its start, as training does."""
    generator = torch.Generator().manual_seed(4000)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return head


def fuse(head: FusionHead, logits: Tensor, queries: Tensor) -> Tensor:
    """Logits (B, Q, C) moved by the text."""
    boxes = torch.zeros(*logits.shape[:2], 4)
    outputs = DetectorOutputs(query_features=queries, pred_logits=logits, pred_boxes=boxes)
    return fuse_outputs(outputs, head, None)["pred_logits"]


def class_text(head: FusionHead) -> Tensor:
    """The adapted text (C, D) of each class."""
    return head.compare(torch.zeros(1, 1, head.query_dim)).class_text


def loss_terms(
    criterion: FusionCriterion, outputs: FusedOutput, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """The loss terms of a whole batch in the first epoch."""
    matched = criterion.match(outputs, targets, epoch=0)
    return criterion.terms(outputs, matched, matched.counts)


def state_hash(module: nn.Module) -> str:
    """Of all weights and statistics, their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def text_bank_of(prompts: Tensor, class_names: Sequence[str]) -> TextBank:
    """A bank of given embeddings (C, 3, width)."""
    return TextBank(
        class_names=tuple(class_names),
        prompts=F.normalize(prompts, dim=-1),
        background=F.normalize(random_text(1, 4, width=prompts.shape[-1], seed=1)[0], dim=-1),
        encoder="random",
        weights_hash=None,
        prompt_texts=tuple(("description", "keywords", "contrast") for _ in class_names),
        background_texts=("", "", "", ""),
        templates=("{}",),
    )


def trained_fused(
    config: Config,
    *,
    class_names: Sequence[str] = ("pit", "scratch", "crack"),
    confused: Sequence[ConfusedPair] = (),
    bank: TextBank | None = None,
) -> TrainedDetector:
    """A detector of phase 2 as from a checkpoint; its model always has three classes and open gates."""
    model = tiny_fused().eval()
    open_gates(model.head)
    state = TextFusionState(
        text_bank=bank or text_bank_of(random_text(len(class_names)), class_names),
        detector=DetectorOrigin(
            path="detector.pth", sha256="", epoch=0, weights="ema", operating_points=None
        ),
        confused=tuple(confused),
    )
    return TrainedDetector(
        model=model,
        device=torch.device("cpu"),
        config=config,
        class_names=tuple(class_names),
        category_ids=tuple(range(1, len(class_names) + 1)),
        epoch=0,
        weights="ema",
        step=0,
        task="text_fusion",
        task_state=to_json(state),
        operating_points=None,
        path=Path("best.pth"),
    )
