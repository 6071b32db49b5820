"""Time training steps and the inference of single images.

The columns are those of the comparison script of the reference: medians in milliseconds of forward, loss with
matching, backward and optimizer, images/s, peak memory in MB, and the latency of one image.
"""

import runpy
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from deim.engine.device import select_device, select_precision
from deim.engine.step import autocast
from deim.files import write_text
from deim.inference.postprocess import select_detections
from deim.loss.criterion import Criterion, LossOptions
from deim.model.build import build_variant
from deim.model.detector import Detector
from deim.structures import Placement, Target

NUM_CLASSES = 6
INFERENCE_WARMUP_STEPS = 3
PROFILED_STEPS = 5
PHASES = ("forward", "loss", "backward", "optimizer")


def measure(args: Namespace) -> dict[str, float | str]:
    """Time training steps, then single images."""
    device = select_device(args.device)
    precision = select_precision(args.amp, device)
    torch.manual_seed(0)
    model = build_variant(args.variant, num_classes=NUM_CLASSES)
    gflops = count_flops(model, image_size=args.size) / 1e9
    images, targets = _make_inputs(args, model)
    model.to(device).train()
    images = images.to(device)
    targets = [{"boxes": t["boxes"].to(device), "labels": t["labels"].to(device)} for t in targets]
    criterion = Criterion(LossOptions())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    if args.compile:
        model.backbone.compile(mode=args.compile)
        model.encoder.compile(mode=args.compile)
    mixed = autocast(precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def train_step(clock: Callable[[], float]) -> list[float]:
        """Take one step and return the seconds of its four phases."""
        times = [clock()]
        with record_function("step: forward"), mixed:
            outputs = model(images, targets)
        times.append(clock())
        with record_function("step: loss"):
            loss = torch.stack(list(criterion(outputs, targets).values())).sum()
        times.append(clock())
        with record_function("step: backward"):
            precision.scaler.scale(loss).backward()
        times.append(clock())
        with record_function("step: optimizer"):
            precision.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, 0.1)
            precision.scaler.step(optimizer)
            precision.scaler.update()
            optimizer.zero_grad()
        times.append(clock())
        return [after - before for before, after in pairwise(times)]

    rows = [train_step(lambda: read_clock(device)) for _ in range(args.warmup + args.steps)][args.warmup :]
    peak_mb = peak_memory_mb(device)
    if args.profile is not None:
        write_text(args.profile, _profile(lambda: train_step(time.perf_counter), device))
    step_ms = 1000 * median(sum(row) for row in rows)
    columns = zip(PHASES, zip(*rows, strict=True), strict=True)
    return {
        **{f"{phase}_ms": round(1000 * median(column), 2) for phase, column in columns},
        "step_ms": round(step_ms, 2),
        "images_per_s": round(1000 * args.batch / step_ms, 2),
        "peak_mb": round(peak_mb),
        "eval_batch1_ms": round(_time_inference(model, images[:1], steps=args.steps, mixed=mixed), 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflops": round(gflops, 1),
        "what": (
            f"deim {args.variant} {args.size}px batch {args.batch} boxes {args.boxes} {device} "
            f"amp {args.amp}, torch {torch.__version__}"
        ),
    }


def count_flops(model: Detector, *, image_size: int) -> int:
    """Count the operations of one image of `image_size` squared; a multiplication and an addition are two.

    Convolutions and matrix products count, those within attention too.
    """
    was_training = model.training
    images = torch.zeros(1, model.channels, image_size, image_size)
    # The counter knows the products of attention only where they are computed one by one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    model.train(was_training)
    return counter.get_total_flops()


def read_clock(device: torch.device) -> float:
    """Return the time in seconds after the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of the GPU's allocations, or of this process for a CPU (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _make_inputs(args: Namespace, model: nn.Module) -> tuple[Tensor, list[Target]]:
    """Return random images and boxes, or those of the recipe, which then fills the model's weights too."""
    if args.recipe is not None:
        recipe = runpy.run_path(str(args.recipe))
        state = model.state_dict()
        recipe["fill_"](state)
        model.load_state_dict(state)
        images = recipe["images"](args.batch, args.size, args.size)
        return images, recipe["targets"](NUM_CLASSES, (args.boxes,) * args.batch)
    targets: list[Target] = [
        {
            "boxes": torch.rand(args.boxes, 4) * torch.tensor([0.6, 0.6, 0.3, 0.3])
            + torch.tensor([0.2, 0.2, 0.05, 0.05]),
            "labels": torch.randint(0, NUM_CLASSES, (args.boxes,)),
        }
        for _ in range(args.batch)
    ]
    return torch.randn(args.batch, 3, args.size, args.size), targets


def _time_inference(model: nn.Module, image: Tensor, *, steps: int, mixed: torch.autocast) -> float:
    """Return the median milliseconds of one image through network and post-processing."""
    model.eval()
    height, width = image.shape[-2:]
    placement = Placement(
        orig_size_hw=(height, width), span_hw=(float(height), float(width)), shift_yx=(0.0, 0.0)
    )
    seconds = []
    with torch.no_grad():
        for _ in range(INFERENCE_WARMUP_STEPS + steps):
            started = read_clock(image.device)
            with mixed:
                outputs = model(image)
            select_detections(outputs, [placement])
            seconds.append(read_clock(image.device) - started)
    return 1000 * median(seconds[INFERENCE_WARMUP_STEPS:])


def _profile(train_step: Callable[[], object], device: torch.device) -> str:
    """Profile a few steps: their time, and a table of the phases and the most expensive operations."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiled:
        started = read_clock(device)
        for _ in range(PROFILED_STEPS):
            train_step()
        step_ms = 1000 * (read_clock(device) - started) / PROFILED_STEPS
    table = profiled.key_averages().table(sort_by=f"{device.type}_time_total", row_limit=40)
    return f"{PROFILED_STEPS} steps, {step_ms:.1f} ms per step while profiled\n{table}"
