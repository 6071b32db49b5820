"""Access to `../shared/parity`: what the official code gave for weights and inputs made from seeds."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deim.model.build import build_variant
from deim.model.detector import Detector

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"

needs_parity_folder = pytest.mark.skipif(
    not (PARITY / "recipe.py").is_file(), reason=f"no parity fixtures: {PARITY} does not exist"
)


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread: sums then come in one order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_recipe", PARITY / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_arrays(name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(PARITY / f"{name}.npz") as file:
        return dict(file)


def load_shapes(variant: str) -> dict[str, list[int]]:
    return json.loads((PARITY / f"{variant}_state_dict.json").read_text(encoding="utf-8"))


def build_with_recipe_weights(variant: str) -> Detector:
    """The variant with 6 classes and the weights that the official model had."""
    model = build_variant(variant, num_classes=6)
    state: dict[str, Tensor] = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(load_recipe().fill_(state))
    return model


def draw_targets(counts: tuple[int, ...]) -> list[dict[str, Tensor]]:
    return load_recipe().targets(6, counts)


def draw_images(batch: int, side: int) -> torch.Tensor:
    return load_recipe().images(batch, side, side)
