"""Small fused detectors and stand-ins for text, for the tests of phase 2."""

import hashlib

import torch
from torch import Tensor, nn

from deim.model.detector import Detector
from multimodal.fusion_head import FusionHead, parameter_groups
from multimodal.wrapper import TextFusedDetector
from tests.model.tiny import tiny_detector


def random_text(num_classes: int = 3, num_prompts: int = 3, *, width: int = 48, seed: int = 0) -> Tensor:
    """Embeddings (C, K, width) that have a direction in common, as real ones have."""
    generator = torch.Generator().manual_seed(3000 + seed)
    own = torch.randn(num_classes, num_prompts, width, generator=generator)
    return own + 2 * torch.randn(width, generator=generator)


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
    return torch.optim.AdamW(parameter_groups(model.head, base_lr, weight_decay=1e-4))


def open_gates(head: FusionHead) -> FusionHead:
    """Move every parameter away from its start, as training does."""
    generator = torch.Generator().manual_seed(4000)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return head


def state_hash(module: nn.Module) -> str:
    """Of all weights and statistics, their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
