"""Train DEIMv2-S with the official code and with this project, alike in all but the program, and compare.

Both start from the same random weights and have the same images, image size, batch, learning rates, schedule,
averages of weights and flips; the order of the images, the flips and the denoising noise are their own draws.

    python tools/compare_training.py --official CHECKOUT_OF_DEIMV2 --data data/neu_det --images 296 \
        --epochs 6 --seeds 0 1 2 --output outputs/compare_training

Runs that are finished are not repeated, so a stopped comparison goes on where it was. The official code needs
the packages of its requirements.txt beside torch.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml

from deim.data.formats.coco import read_coco
from deim.metrics.bootstrap import mean_interval
from deim.model.build import build_variant

ROOT = Path(__file__).resolve().parents[1]
LR, BACKBONE_LR = 5e-4, 2.5e-5
START_OFFICIAL = """
import runpy, sys
from torchvision.transforms import v2
# The official code is written for torchvision 0.20, where these methods had other names.
v2.Transform.transform = lambda self, item, params: self._transform(item, params)
v2.Transform.make_params = lambda self, items: self._get_params(items)
v2.Transform._get_params = lambda self, items: {}
sys.path.insert(0, ".")
runpy.run_path("train.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Plan:
    """What both programs do."""

    official: Path
    official_python: str
    data: Path
    output: Path
    num_images: int
    size: int
    batch: int
    epochs: int

    @property
    def warmup_steps(self) -> int:
        """A twentieth of the run."""
        return max(1, self.epochs * (self.num_images // self.batch) // 20)

    @property
    def flat_epochs(self) -> int:
        """Half of the run."""
        return max(1, self.epochs // 2)

    @property
    def ema(self) -> tuple[float, int]:
        """Decay and ramp of the averaged weights, for a tenth of the run."""
        horizon = max(2.0, 0.1 * self.epochs * (self.num_images // self.batch))
        return 1 - 1 / horizon, max(1, round(0.1 * horizon))


def main() -> None:
    """Train with all seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", type=Path, required=True, help="Checkout of the official code.")
    parser.add_argument("--official-python", default=sys.executable, help="Python with its packages.")
    parser.add_argument("--data", type=Path, required=True, help="Folder with annotations/ and images/.")
    parser.add_argument("--images", type=int, help="Training images, a multiple of --batch; all without it.")
    parser.add_argument("--size", type=int, default=192, help="Side of the network input.")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/compare_training"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    number = write_annotations(args.data, args.output, args.images, args.batch)
    plan = Plan(
        official=args.official.resolve(),
        official_python=args.official_python,
        data=args.data.resolve(),
        output=args.output.resolve(),
        num_images=number,
        size=args.size,
        batch=args.batch,
        epochs=args.epochs,
    )
    curves: dict[str, list[list[tuple[float, float]]]] = {"official": [], "this project": []}
    for seed in args.seeds:
        start = write_start(plan, seed)
        curves["official"].append(train_official(plan, seed, start))
        curves["this project"].append(train_here(plan, seed, start))
        sys.stdout.write("\n".join(describe(curves)) + "\n\n")


def write_annotations(data: Path, output: Path, limit: int | None, batch: int) -> int:
    """Write annotations with category ids from 0, which the official code takes for class indices.

    Those of training list the first images in a random order, in whole batches; returns their number.
    """
    number = 0
    for name in ("val", "train"):
        content = json.loads((data / "annotations" / f"{name}.json").read_text(encoding="utf-8"))
        images = sorted(content["images"], key=lambda image: image["id"])
        if name == "train":
            random.Random(0).shuffle(images)
            number = min(limit or len(images), len(images)) // batch * batch
            images = images[:number]
        kept = {image["id"] for image in images}
        indices = {category["id"]: index for index, category in enumerate(content["categories"])}
        boxes = [box for box in content["annotations"] if box["image_id"] in kept]
        written = {
            "images": images,
            "annotations": [{**box, "category_id": indices[box["category_id"]]} for box in boxes],
            "categories": [{**entry, "id": indices[entry["id"]]} for entry in content["categories"]],
        }
        (output / f"{name}.json").write_text(json.dumps(written), encoding="utf-8")
    return number


def write_start(plan: Plan, seed: int) -> Path:
    """Write random weights that both programs read."""
    path = plan.output / f"start_{seed}.pth"
    if not path.is_file():
        torch.manual_seed(seed)
        split = read_coco(plan.output / "train.json", plan.data / "images")
        model = build_variant("s", num_classes=len(split.class_names))
        torch.save({"model": model.state_dict()}, path)
    return path


def train_official(plan: Plan, seed: int, start: Path) -> list[tuple[float, float]]:
    """Train with the official code; return loss and mAP of each epoch."""
    folder = plan.output / f"official_{seed}"
    log = folder / "log.txt"
    if not log.is_file() or len(log.read_text(encoding="utf-8").splitlines()) < plan.epochs:
        folder.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        config = folder / "config.yml"
        config.write_text(yaml.safe_dump(official_config(plan)), encoding="utf-8")
        command = [
            plan.official_python,
            "-c",
            START_OFFICIAL,
            "-c",
            str(config),
            "-t",
            str(start),
            "-d",
            "cpu",
        ]
        command += ["--seed", str(seed), "--output-dir", str(folder)]
        run(command, plan.official, folder / "printed.txt")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [(line["train_loss"], line["test_coco_eval_bbox"][0]) for line in lines]


def official_config(plan: Plan) -> dict[str, Any]:
    """Return the config of the official code, over its own for S."""
    num_classes = len(json.loads((plan.output / "train.json").read_text(encoding="utf-8"))["categories"])
    decay, ramp = plan.ema
    size = [plan.size, plan.size]
    resize: dict[str, Any] = {"type": "Resize", "size": size}
    tensor = {"type": "ConvertPILImage", "dtype": "float32", "scale": True}
    normal = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    boxes = {"type": "ConvertBoxes", "fmt": "cxcywh", "normalize": True}
    clean = {"type": "SanitizeBoundingBoxes", "min_size": 1}
    train_ops: list[dict[str, Any]] = [{"type": "RandomHorizontalFlip"}, resize, clean, tensor, normal, boxes]

    def loader(annotations: Path, ops: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        dataset = {"img_folder": str(plan.data / "images"), "ann_file": str(annotations)}
        policy = {"name": "stop_epoch", "epoch": 10**6, "ops": []}
        transforms = {"ops": ops, "policy": policy}
        return {"dataset": {**dataset, "transforms": transforms}, "num_workers": 0, **options}

    collate = {"base_size": plan.size, "base_size_repeat": None, "mixup_prob": 0.0, "copyblend_prob": 0.0}
    return {
        "__include__": [str(plan.official / "configs" / "deimv2" / "deimv2_dinov3_s_coco.yml")],
        "num_classes": num_classes,
        "remap_mscoco_category": False,
        "eval_spatial_size": size,
        "use_amp": False,
        "sync_bn": False,
        "epoches": plan.epochs,
        "warmup_iter": plan.warmup_steps,
        "flat_epoch": plan.flat_epochs,
        "no_aug_epoch": 0,
        "lr_gamma": 0.5,
        "ema": {"type": "ModelEMA", "decay": decay, "warmups": ramp},
        "DEIMCriterion": {"matcher": {"matcher_change_epoch": 10**6}},
        "train_dataloader": loader(
            plan.output / "train.json",
            train_ops,
            total_batch_size=plan.batch,
            collate_fn={**collate, "stop_epoch": 10**6},
        ),
        "val_dataloader": loader(plan.output / "val.json", [resize, tensor, normal], total_batch_size=10),
    }


def train_here(plan: Plan, seed: int, start: Path) -> list[tuple[float, float]]:
    """Train with this project; return loss and mAP of each epoch."""
    folder = plan.output / f"here_{seed}"
    decay, ramp = plan.ema
    options = {
        "output_dir": folder,
        "data.root": plan.data,
        "data.train_annotations": plan.output / "train.json",
        "data.val_annotations": plan.output / "val.json",
        "image_size": plan.size,
        "epochs": plan.epochs,
        "seed": seed,
        "model.init_from": start,
        "data.batch_size": plan.batch,
        "data.num_workers": 0,
        "data.cache_mb": 400,
        "augment.photometric": 0.0,
        "recipe.lr": LR,
        "recipe.backbone_lr": BACKBONE_LR,
        "recipe.clip_grad_norm": 0.1,
        "recipe.parameter_groups": "reference",
        "loss.union_ties": "reference",
        "schedule.warmup_steps": plan.warmup_steps,
        "schedule.flat_epochs": plan.flat_epochs,
        "schedule.no_aug_epochs": 0,
        "schedule.matcher_change_epoch": plan.epochs,
        "ema.decay": decay,
        "ema.warmup_steps": ramp,
        "runtime.device": "cpu",
        "runtime.tensorboard": "false",
        "runtime.preflight": "false",
        "evaluation.bootstrap_resamples": 0,
    }
    if not (folder / "report.json").is_file():
        command = [sys.executable, str(ROOT / "tools" / "train.py"), "--resume", "auto"]
        command += ["-c", str(ROOT / "configs" / "deimv2_640.yml"), "--set"]
        values = [f"{key}={value}" for key, value in {"model": "s", **options}.items()]
        run([*command, *values], ROOT, plan.output / f"here_{seed}.txt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["loss"], line["ap"]) for line in lines if line["event"] == "epoch"]


def run(command: list[str], folder: Path, log: Path) -> None:
    """Run a Python program; its output goes to a file."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if code:
        raise SystemExit(f"exit code {code}, see {log}")


def describe(curves: dict[str, list[list[tuple[float, float]]]]) -> list[str]:
    """Return a table of all epochs, and the difference of the last mAP with its interval over the seeds."""
    rows = ["| program | seed | loss by epoch | mAP by epoch |", "|---|---|---|---|"]
    for program, runs in curves.items():
        for number, values in enumerate(runs):
            losses, scores = zip(*values, strict=True)
            texts = [" ".join(f"{value:.1f}" for value in losses), " ".join(f"{v:.3f}" for v in scores)]
            rows.append(f"| {program} | {number} | {texts[0]} | {texts[1]} |")
    official, here = curves["official"], curves["this project"]
    differences = [b[-1][1] - a[-1][1] for a, b in zip(official, here, strict=True)]
    if len(differences) > 1:
        ends = mean_interval(differences)
        rows.append(
            f"\nmAP of this project less the official: {mean(differences):+.3f} ({ends.low:+.3f} to "
            f"{ends.high:+.3f})"
        )
    return rows


if __name__ == "__main__":
    main()
