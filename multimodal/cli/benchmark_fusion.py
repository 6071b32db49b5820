"""Time one image through the frozen detector, and its outputs through the fusion head, in turns."""

from argparse import Namespace
from statistics import median

import torch

from deim.cli.benchmark_step import INFERENCE_WARMUP_STEPS, NUM_CLASSES, read_clock
from deim.engine.device import select_device
from deim.model.build import build_variant
from multimodal.fusion_head import FusionHead
from multimodal.wrapper import TextFusedDetector, query_dim

NUM_PROMPTS, NUM_BACKGROUND, TEXT_DIM = 3, 4, 512


def measure(args: Namespace) -> dict[str, float | str]:
    """Time detector and head, and count the parameters that the head adds."""
    device = select_device(args.device)
    torch.manual_seed(0)
    detector = build_variant(args.variant, num_classes=NUM_CLASSES)
    head = FusionHead(
        torch.randn(NUM_CLASSES, NUM_PROMPTS, TEXT_DIM),
        torch.randn(NUM_BACKGROUND, TEXT_DIM),
        query_dim=query_dim(detector),
    )
    model = TextFusedDetector(detector, head).to(device).eval()
    image = torch.randn(1, 3, args.size, args.size, device=device)
    rows = []
    with torch.no_grad():
        for _ in range(INFERENCE_WARMUP_STEPS + args.steps):
            started = read_clock(device)
            detector_outputs = model.run_detector(image)
            detected = read_clock(device)
            model(detector_outputs)
            rows.append((detected - started, read_clock(device) - detected))
    timed = zip(*rows[INFERENCE_WARMUP_STEPS:], strict=True)
    detector_ms, head_ms = (1000 * median(column) for column in timed)
    return {
        "detector_ms": round(detector_ms, 2),
        "head_ms": round(head_ms, 2),
        "head_share": round(head_ms / (detector_ms + head_ms), 4),
        "parameters_added": sum(parameter.numel() for parameter in head.parameters()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "what": f"fusion on deim {args.variant} {args.size}px {device}, torch {torch.__version__}",
    }
