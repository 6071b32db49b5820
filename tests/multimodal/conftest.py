"""Experiments of phase 2 on the tiny detector of `tiny_run`, from a YAML file as users write it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deim.config import Config
from deim.data.build import build_splits
from deim.engine.build import build_trainer
from deim.engine.device import select_device
from deim.engine.experiment import load_experiment
from deim.engine.run_state import Validate
from deim.engine.trainer import Trainer
from deim.evaluation.assess import to_validation
from deim.evaluation.evaluator import Evaluator
from multimodal.build import subject_builder

PROMPTS = """
classes:
  - {name: pit, en: a round red dent, keywords: [dent, hole]}
  - {name: scratch, en: a long blue line, contrast: {class: crack, en: a shallow mark}}
  - {name: crack, en: an open green gap, contrast: {class: scratch, en: a deep open gap}}
background:
  - {en: even grey metal}
  - {en: a reflection of light}
templates: ["a photo of {}", "a close view of {}"]
"""

EXPERIMENT = """
output_dir: {folder}/run
epochs: 3
evaluation: {{every_epochs: 1}}
multimodal:
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
    return lambda *overrides: load_experiment(phase2_file, overrides)


@pytest.fixture(scope="session")
def build_phase2() -> Callable[..., Trainer]:
    """A trainer as `tools/train.py` builds it; `validate` may wrap the validation."""

    def build(
        config: Config,
        *,
        resume_from: Path | None = None,
        force: bool = False,
        validate: Callable[[Validate], Validate] = lambda own: own,
    ) -> Trainer:
        splits = build_splits(config.data)
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
            validate=validate(lambda model: to_validation(evaluator.evaluate(model).metrics)),
            build_subject=subject_builder(config),
            resume_from=resume_from,
            force=force,
        )

    return build
