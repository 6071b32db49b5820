"""Experiments of phase 2 on the tiny detector of `tiny_run`, from a YAML file as users write it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deim.config.loader import load_config
from deim.config.schema import Config
from deim.engine.trainer import Trainer

PROMPTS = """
classes:
  - {name: pit, en: a round red dent, keywords: [dent, hole]}
  - {name: scratch, en: a long blue line, contrast: {class_name: crack, en: a shallow mark}}
  - {name: crack, en: an open green gap, contrast: {class_name: scratch, en: a deep open gap}}
background:
  - {en: even gray metal}
  - {en: a reflection of light}
templates: ["a photo of {}", "a close view of {}"]
"""

EXPERIMENT = """
output_dir: {folder}/run
epochs: 3
evaluation: {{every_epochs: 1}}
task:
  type: text_fusion
  detector: {detector}
  prompts: {folder}/prompts.yml
  encoder: {{type: hashed}}
  hidden_dim: 64
  adapter_dim: 16
  cache_dir: {folder}/cache
recipe: {{lr: 5.0e-5, clip_grad_norm: 1.0}}
augment: {{horizontal_flip: 0.0, photometric: 0.0}}
runtime: {{device: cpu, tensorboard: false, preflight: false}}
"""

MakeConfig = Callable[..., Config]


@pytest.fixture
def phase2_file(tmp_path: Path, tiny_run: Path) -> Path:
    """An experiment of seconds as a YAML file, in the test's own folder."""
    (tmp_path / "prompts.yml").write_text(PROMPTS, encoding="utf-8")
    text = EXPERIMENT.format(folder=tmp_path, detector=tiny_run / "best.pth")
    path = tmp_path / "phase2.yml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def phase2_config(phase2_file: Path) -> MakeConfig:
    """The experiment with overrides: `phase2_config("epochs=2", …)`."""
    return lambda *overrides: load_config(phase2_file, overrides)


@pytest.fixture(scope="session")
def build_phase2(build_tiny: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """A trainer as `tools/train.py` builds it; `validate` may wrap the validation."""
    return build_tiny
