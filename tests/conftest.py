"""A tiny COCO dataset, a config that trains on it in seconds, a finished run, and the commands."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deim.cli.main import main
from deim.config.loader import config_from_dict
from deim.config.schema import Config
from deim.data.splits import Splits, build_splits
from deim.engine.build import build_trainer
from deim.engine.device import select_device
from deim.engine.task import load_task
from deim.engine.trainer import Trainer
from deim.engine.validation import Validate
from deim.inference.evaluator import Evaluator
from deim.report.evaluate import to_validation

# Tiny tensors gain nothing from threads, and waiting for threads on a shared machine is slow.
torch.set_num_threads(1)

TOOL_COMMANDS = {
    "show_config": ["config", "show"],
    "make_synthetic": ["synthetic"],
    "build_text_bank": ["text-bank"],
    "ablate_text": ["ablate-text"],
    "benchmark_evaluation": ["benchmark", "evaluation"],
}
"""Commands of the tools that have another name."""

COLORS = {"pit": (230, 40, 40), "scratch": (40, 60, 230), "crack": (40, 200, 60)}
CATEGORIES = {"pit": 3, "scratch": 7, "crack": 90}
NUM_IMAGES = {"train": 6, "val": 4, "test": 3}

TINY = {
    "image_size": 64,
    "epochs": 3,
    "model": {
        "hidden_dim": 32,
        "backbone": {
            "type": "vit_tiny",
            "dim": 32,
            "depth": 3,
            "num_heads": 2,
            "return_blocks": [0, 1, 2],
            "adapter_width": 8,
        },
        "encoder": {"num_heads": 4, "dim_feedforward": 64, "expansion": 0.5, "depth_mult": 0.34},
        "decoder": {
            "num_layers": 2,
            "num_heads": 4,
            "dim_feedforward": 64,
            "num_queries": 20,
            "num_denoising": 8,
        },
    },
    "data": {"batch_size": 3, "eval_batch_size": 2, "num_workers": 0},
    "augment": {"photometric": 0.0},
    "recipe": {"backbone_lr": 5e-4},
    "runtime": {"device": "cpu", "tensorboard": False, "preflight": False},
}


def _write_split(
    root: Path, name: str, categories: Mapping[str, int], num_images: int, *, empty: bool, seed: int
) -> None:
    rng = np.random.default_rng([seed, len(name), num_images])
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": label} for label, number in categories.items()],
    }
    names = sorted(set(categories) & set(COLORS)) or sorted(categories)
    for index in range(num_images):
        width, height = (int(side) for side in rng.integers(48, 97, size=2))
        pixels = rng.integers(110, 140, size=(height, width, 3)).astype(np.uint8)
        # Every second image but the first of a split has two boxes, the last one has none.
        num_boxes = 0 if empty or index == num_images - 1 > 0 else 1 + index % 2
        for number in range(num_boxes):
            label = names[(index + number) % len(names)]
            box_width, box_height = (int(side) for side in rng.integers(14, 24, size=2))
            left, top = int(rng.integers(0, width - box_width)), int(rng.integers(0, height - box_height))
            pixels[top : top + box_height, left : left + box_width] = COLORS.get(label, (250, 250, 250))
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": 10 + index,
                    "category_id": categories[label],
                    "bbox": [left, top, box_width, box_height],
                    "area": box_width * box_height,
                    "iscrowd": 0,
                }
            )
        file_name = f"{name}_{index}.png"
        Image.fromarray(pixels).save(root / "images" / file_name)
        coco["images"].append({"id": 10 + index, "file_name": file_name, "width": width, "height": height})
    (root / "annotations" / f"{name}.json").write_text(json.dumps(coco), encoding="utf-8")


def write_tiny_coco(
    root: Path,
    *,
    categories: Mapping[str, int] = CATEGORIES,
    num_images: Mapping[str, int] = NUM_IMAGES,
    empty: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a dataset with ids from 10; the last image of each split, and all of `empty`, have no box."""
    for folder in ("images", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, number in num_images.items():
        _write_split(root, name, categories, number, empty=name in empty, seed=seed)
    return root


def _tiny_config(root: Path, output_dir: Path, *overrides: str) -> Config:
    places = [f"data.root={root}", f"output_dir={output_dir}"]
    return config_from_dict(TINY, where="tiny", overrides=[*places, *overrides])


def _build(
    config: Config,
    *,
    overwrite: bool = False,
    resume_from: Path | None = None,
    force: bool = False,
    validate: Callable[[Validate], Validate] = lambda validate: validate,
) -> Trainer:
    splits: Splits = build_splits(config.data)
    with_loss = load_task(config.task.type).has_query_loss
    evaluator = Evaluator(
        config,
        splits.val,
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
        device=select_device(config.runtime.device),
    )
    return build_trainer(
        config,
        splits,
        validate=validate(lambda model: to_validation(evaluator.evaluate(model, with_loss=with_loss))),
        overwrite=overwrite,
        resume_from=resume_from,
        force=force,
    )


@pytest.fixture(scope="session")
def write_coco() -> Callable[..., Path]:
    """Return a function that writes a tiny COCO folder."""
    return write_tiny_coco


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Config]:
    """Return a function for a config that trains in seconds: `tiny_config(root, output_dir, "epochs=2")`."""
    return _tiny_config


@pytest.fixture(scope="session")
def build_tiny() -> Callable[..., Trainer]:
    """Return a function that builds a trainer like `deim train`; `validate` may wrap the validation."""
    return _build


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny COCO folder for all tests that do not change it."""
    return write_tiny_coco(tmp_path_factory.mktemp("tiny_set"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    """Return the folder of a finished run on `tiny_set`, validated on training images so that AP is not 0."""
    folder = tmp_path_factory.mktemp("tiny_run") / "run"
    config = _tiny_config(
        tiny_set,
        folder,
        "epochs=40",
        "recipe={lr: 4e-3, backbone_lr: 2e-3, clip_grad_norm: 1.0}",
        "evaluation.every_epochs=20",
        "data.val_annotations=annotations/train.json",
    )
    _build(config).train()
    return folder


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(tool: str, *arguments: object) -> tuple[int, str, str]:
        code = main([*TOOL_COMMANDS.get(tool, [tool]), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
