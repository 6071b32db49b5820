"""Every shipped config loads, builds and has a schedule."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from deim.config.catalog import shipped_configs_dir
from deim.config.loader import config_from_dict, config_to_dict, load_config
from deim.config.schema import Config
from deim.engine.ema import resolve_ema
from deim.engine.schedule import resolve_schedule
from deim.engine.task import TaskDefaults, load_task
from deim.model.detector import Detector
from multimodal.task import SHARED_BLOCKS, TextFusionTask

CONFIGS = sorted(shipped_configs_dir().glob("*.yml"))


def load(path: Path) -> Config:
    """An experiment; one of phase 2 on the experiment whose checkpoint it names."""

    def defaults_from(self: TextFusionTask, block: Mapping[str, object]) -> TaskDefaults:
        name = Path(str(block["detector"])).parent.name
        options = config_to_dict(load_config(path.with_name(f"{name}.yml")))
        return TaskDefaults(options={key: options[key] for key in SHARED_BLOCKS}, source=name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextFusionTask, "defaults_from", defaults_from)
        return load_config(path)


def test_there_are_shipped_configs() -> None:
    names = {path.stem for path in CONFIGS}
    assert {"quickstart", "deimv2_640", "deimv2_1024", "neu_det", "deeppcb"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
class TestShippedConfig:
    def test_it_is_short_and_begins_with_a_summary(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 40
        assert lines[0].startswith("# ")

    def test_it_loads_and_survives_a_round_trip(self, path: Path) -> None:
        config = load(path)
        assert config_from_dict(config_to_dict(config), where="again") == config
        assert config.output_dir == f"outputs/{path.stem}"

    def test_its_model_builds(self, path: Path) -> None:
        with torch.device("meta"):
            model = Detector(load(path).model, 6)
        assert model.num_classes == 6
        assert sum(parameter.numel() for parameter in model.parameters()) > 1_000_000

    def test_its_schedule_fits_a_thousand_images(self, path: Path) -> None:
        config = load(path)
        steps_per_epoch = -(-1000 // config.data.batch_size)
        has_stages = load_task(config.task.type).has_stages
        run = resolve_schedule(
            config.schedule, epochs=config.epochs, steps_per_epoch=steps_per_epoch, has_stages=has_stages
        )
        assert run.warmup_steps <= 0.2 * run.total_steps
        assert 0 < run.flat_end_epoch <= run.no_aug_epoch <= config.epochs
        averaging = resolve_ema(config.ema, total_steps=run.total_steps)
        assert 1 / (1 - averaging.decay) <= 0.1 * run.total_steps * (1 + 1e-9)
