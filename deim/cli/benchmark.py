"""Time a training step, one inference, the fusion head, or the loading of images; prints one JSON line.

    python tools/benchmark.py step --variant m --size 1024 --batch 4 --device cuda --amp bf16
    python tools/benchmark.py fusion --variant m --size 640
    python tools/benchmark.py data --size 1024 --images 24 --steps 36

The columns of `step` are those of the comparison script of the reference: medians in milliseconds of forward,
loss with matching, backward and optimizer, images/s, peak memory in MB, latency of one image. `fusion` times
one image through the detector, and what it found through the fusion head of phase 2, in turns. `data` times
one process that loads photographs of 1650x1350 pixels it has made, by stages, without a cache and with each,
and in turns with it the plain pipeline of torchvision's transforms with the same operations; the table before
the JSON line has images/s of processor time, a thread.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from deim.cli import benchmark_data
from deim.engine.device import select_device, select_precision
from deim.errors import DeimError
from deim.inference.postprocess import select_detections
from deim.loss.build import build_criterion
from deim.model.build import VARIANTS, build_variant
from deim.model.detector import Detector
from deim.structures import Placement, Target
from multimodal.fusion_head import FusionHead
from multimodal.wrapper import TextFusedDetector, query_dim

NUM_CLASSES, NUM_PROMPTS, NUM_BACKGROUND, TEXT_DIM = 6, 3, 4, 512
WARMUP_STEPS = 3
PROFILED_STEPS = 5


def main() -> int:
    """Parse, time, report errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["step", "fusion", "data"], help="what to time")
    parser.add_argument("--variant", default="m", choices=VARIANTS)
    parser.add_argument("--size", type=int, default=1024, help="side of the images, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--boxes", type=int, default=10, help="boxes an image")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=WARMUP_STEPS, help="steps of `step` before them")
    parser.add_argument("-c", "--config", help="experiment of `data`; deimv2_1024.yml if not given")
    parser.add_argument("--images", type=int, default=24, help="photographs of `data`")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="off", choices=["auto", "bf16", "fp16", "off"])
    parser.add_argument(
        "--compile", choices=["default", "reduce-overhead"], help="compile backbone and encoder of `step`"
    )
    parser.add_argument("--channels-last", action="store_true", help="memory format of `step`")
    parser.add_argument("--plain-optimizer", action="store_true", help="do not fuse the update of `step`")
    parser.add_argument("--profile", type=Path, help="file for a profile of five more steps of `step`")
    parser.add_argument(
        "--recipe", type=Path, help="recipe.py of the parity fixtures: its weights and inputs"
    )
    args = parser.parse_args()
    if args.size < 64 or args.size % 32 or min(args.batch, args.steps, args.images) < 1 or args.boxes < 0:
        parser.error(
            "--size is a multiple of 32 from 64; --batch, --steps, --images are at least 1, --boxes 0"
        )
    try:
        timers = {"step": time_steps, "fusion": time_fusion, "data": benchmark_data.measure}
        print(json.dumps(timers[args.what](args)))
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def time_steps(args: argparse.Namespace) -> dict[str, float | str]:
    """Time training steps, then single images."""
    device = select_device(args.device)
    precision = select_precision(args.amp, device)
    torch.manual_seed(0)
    model = build_variant(args.variant, num_classes=NUM_CLASSES)
    images, targets = make_inputs(args, model)
    model.to(device).train()
    images = images.to(device)
    targets = [{"boxes": t["boxes"].to(device), "labels": t["labels"].to(device)} for t in targets]
    criterion = build_criterion()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=not args.plain_optimizer)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if args.compile:
        model.backbone.compile(mode=args.compile)
        model.encoder.compile(mode=args.compile)
    autocast = torch.autocast(device.type, dtype=precision.dtype, enabled=precision.dtype is not None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def train_step(clock: Callable[[], float]) -> list[float]:
        """Take one step; gives the seconds of forward, loss, backward and update."""
        times = [clock()]
        with record_function("step: forward"), autocast:
            outputs = model(images, targets)
        times.append(clock())
        with record_function("step: loss"):
            loss = torch.stack(list(criterion(outputs, targets).values())).sum()
        times.append(clock())
        with record_function("step: backward"):
            precision.scaler.scale(loss).backward()
        times.append(clock())
        with record_function("step: update"):
            precision.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 0.1)
            precision.scaler.step(optimizer)
            precision.scaler.update()
            optimizer.zero_grad()
        times.append(clock())
        return [after - before for before, after in pairwise(times)]

    rows = [train_step(lambda: now(device)) for _ in range(args.steps + args.warmup)][args.warmup :]
    peak_mb = peak_memory_mb(device)
    if args.profile is not None:
        args.profile.write_text(
            profile_steps(lambda: train_step(time.perf_counter), model=model, device=device)
        )
    latency = time_inference(model, images[:1], steps=args.steps, device=device, autocast=autocast)
    names = ("forward_ms", "loss_ms", "backward_ms", "optimizer_ms")
    medians = {
        name: 1000 * statistics.median(column)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    step_ms = 1000 * statistics.median([sum(row) for row in rows])
    return {
        **{name: round(value, 2) for name, value in medians.items()},
        "step_ms": round(step_ms, 2),
        "images_per_s": round(1000 * args.batch / step_ms, 2),
        "peak_mb": round(peak_mb),
        "eval_batch1_ms": round(latency, 2),
        "what": (
            f"deim {args.variant} {args.size}px batch {args.batch} boxes {args.boxes} {device} "
            f"amp {args.amp}, torch {torch.__version__}"
        ),
    }


def profile_steps(train_step: Callable[[], object], *, model: Detector, device: torch.device) -> str:
    """Profile five steps; gives tables by phase and by operation, counts of kernels and copies, and idle time."""
    for name, module in [*model.named_children(), *model.decoder.named_children()]:
        if not isinstance(module, nn.ModuleList):
            record_forward(module, f"module: {name}")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        started = now(device)
        for _ in range(PROFILED_STEPS):
            train_step()
        wall_us = 1e6 * (now(device) - started)
    on_device = [
        event
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("step", "module"))
    ]
    spans = sorted((event.time_range.start, event.time_range.end) for event in on_device)
    busy_us, last_end, gaps_us = 0.0, None, []
    for start, end in spans:
        if last_end is not None and start > last_end:
            gaps_us.append(start - last_end)
        busy_us += max(0.0, end - max(start, last_end or start))
        last_end = max(end, last_end or end)
    copies = Counter(event.name for event in on_device if event.name.startswith(("Memcpy", "Memset")))
    phases = [row for row in profile.key_averages() if row.key.startswith(("step", "module"))]
    lines = [
        f"{PROFILED_STEPS} steps, {wall_us / PROFILED_STEPS / 1000:.1f} ms a step (profiled, without pauses)",
        f"kernels and copies a step: {len(on_device) / PROFILED_STEPS:.0f}",
        f"device busy: {busy_us / wall_us:.3f} of the time",
        f"gaps over 20 us a step: {sum(gap > 20 for gap in gaps_us) / PROFILED_STEPS:.1f}, "
        f"{sum(gap for gap in gaps_us if gap > 20) / 1000 / PROFILED_STEPS:.2f} ms",
        *(f"{name}: {number / PROFILED_STEPS:.1f} a step" for name, number in copies.most_common()),
        "",
        "phase or module (forward)        CPU ms    device ms, a step",
        *(
            f"{row.key:30} {row.cpu_time_total / 1000 / PROFILED_STEPS:9.2f}"
            f" {row.device_time_total / 1000 / PROFILED_STEPS:9.2f}"
            for row in phases
        ),
        "",
        profile.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=40),
    ]
    return "\n".join(lines)


def record_forward(module: nn.Module, name: str) -> None:
    """Name a module's forward pass in profiles."""
    open_records: list[record_function] = []

    def enter(*_: object) -> None:
        open_records.append(record_function(name))
        open_records[-1].__enter__()

    def leave(*_: object) -> None:
        open_records.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def time_fusion(args: argparse.Namespace) -> dict[str, float | str]:
    """Time one image through the frozen detector, and what it found through the fusion head, in turns."""
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
        for _ in range(args.steps + WARMUP_STEPS):
            times = [now(device)]
            found = model.find(image)
            times.append(now(device))
            model(found)
            times.append(now(device))
            rows.append([after - before for before, after in pairwise(times)])
    detector_ms, head_ms = (
        1000 * statistics.median(column) for column in zip(*rows[WARMUP_STEPS:], strict=True)
    )
    return {
        "detector_ms": round(detector_ms, 2),
        "head_ms": round(head_ms, 2),
        "head_share": round(head_ms / (detector_ms + head_ms), 4),
        "parameters_added": sum(parameter.numel() for parameter in head.parameters()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "what": f"fusion on deim {args.variant} {args.size}px {device}, torch {torch.__version__}",
    }


def make_inputs(args: argparse.Namespace, model: Detector) -> tuple[Tensor, list[Target]]:
    """Images and boxes: random ones, or those of the recipe, which then fills the model's weights too."""
    if args.recipe is not None:
        recipe = load_module(args.recipe)
        state = model.state_dict()
        recipe.fill_(state)
        model.load_state_dict(state)
        images = recipe.images(args.batch, args.size, args.size)
        return images, recipe.targets(NUM_CLASSES, (args.boxes,) * args.batch)
    targets: list[Target] = [
        {
            "boxes": torch.rand(args.boxes, 4) * torch.tensor([0.6, 0.6, 0.3, 0.3])
            + torch.tensor([0.2, 0.2, 0.05, 0.05]),
            "labels": torch.randint(0, NUM_CLASSES, (args.boxes,)),
        }
        for _ in range(args.batch)
    ]
    return torch.randn(args.batch, 3, args.size, args.size), targets


def time_inference(
    model: Detector, image: Tensor, *, steps: int, device: torch.device, autocast: torch.autocast
) -> float:
    """Median milliseconds of one image through network and post-processing."""
    model.eval()
    size_hw = (image.shape[-2], image.shape[-1])
    placement = Placement(
        orig_size_hw=size_hw, span_hw=(float(size_hw[0]), float(size_hw[1])), shift_yx=(0.0, 0.0)
    )
    seconds = []
    with torch.no_grad():
        for _ in range(steps + WARMUP_STEPS):
            started = now(device)
            with autocast:
                outputs = model(image)
            select_detections(outputs, [placement])
            seconds.append(now(device) - started)
    return 1000 * statistics.median(seconds[WARMUP_STEPS:])


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of the GPU's allocations, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def now(device: torch.device) -> float:
    """Seconds, after all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def load_module(path: Path) -> ModuleType:
    """Import a Python file by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise DeimError(f"{path}: no such Python file. Give the path of recipe.py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
