"""Every count and size has an upper bound with a reason, in configs and on the command line."""

from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from deim.cli.main import COMMANDS
from deim.config.loader import config_from_dict
from deim.data.images.tiling import TilesOptions
from deim.data.synthetic.make import SyntheticOptions
from deim.errors import ConfigError
from deim.model.backbone.dinov3 import DinoV3Options
from multimodal.options import TextFusionOptions
from tests.conftest import TINY

HUGE = (10**9 * 5, 2**63, 10**30)


def records(value: Any) -> Iterator[Any]:
    """Yield a record and all records in it."""
    if is_dataclass(value):
        yield value
        for option in fields(value):
            yield from records(getattr(value, option.name))


def integers_of(record: Any) -> Iterator[tuple[str, int]]:
    """Yield the name of each integer option, and how many numbers it takes; 0 for a single one."""
    for name, hint in get_type_hints(type(record)).items():
        alternatives = [hint] if get_origin(hint) is tuple else [hint, *get_args(hint)]
        if int in alternatives:
            yield name, 0
        else:
            yield from ((name, len(get_args(kind))) for kind in alternatives if int in get_args(kind))


CONFIG = config_from_dict(
    TINY, where="tiny", overrides=["data.root=x", "output_dir=y", "data.effective_batch_size=6"]
)
RECORDS = [
    *records(CONFIG),
    DinoV3Options(type="dinov3"),
    SyntheticOptions(),
    TilesOptions(size=64),
    TextFusionOptions(type="text_fusion", detector="best.pth"),
]
OPTIONS = [(record, name, length) for record in RECORDS for name, length in integers_of(record)]


def test_the_walk_finds_the_options_of_every_part() -> None:
    names = {name for _, name, _ in OPTIONS}
    assert {"epochs", "seed", "image_size", "num_workers", "return_blocks", "cached_views", "size"} <= names
    assert len(OPTIONS) > 45


def name_of(value: object) -> str | None:
    return type(value).__name__ if is_dataclass(value) else None


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize(("record", "name", "length"), OPTIONS, ids=name_of)
def test_every_integer_has_an_upper_bound(record: Any, name: str, length: int, number: int) -> None:
    for value in [(number,) * length] if length else [number]:
        with pytest.raises(ConfigError, match=rf"(?m)^{name}: "):
            replace(record, **{name: value})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.num_workers=100000", "data.num_workers: got 100000, needs at most 256: each is a process"),
        ("seed=4294967296", "seed: got 4294967296, needs at most 4294967295: NumPy takes seeds of 32 bits"),
        (
            "data.worker_timeout_s=1e9",
            "data.worker_timeout_s: got 1000000000.0, needs at most 86400",
        ),
        ("data.worker_timeout_s=0", "data.worker_timeout_s: got 0.0, must be above 0"),
        ("model.encoder.depth_mult=1e6", "model.encoder.depth_mult: got 1000000.0, needs at most 1024"),
        ("image_size=[64,99968]", "image_size: got [64, 99968], needs at most 8192: an input of that side"),
        ("model.decoder.num_points=[3,0,3]", "model.decoder.num_points: got [3, 0, 3], needs at least 1"),
    ],
)
def test_the_message_has_the_bound_and_its_reason(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(TINY, where="tiny", overrides=["data.root=x", "output_dir=y", override])
    assert message in str(caught.value)


def actions_of(parser: ArgumentParser) -> Iterator[Action]:
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for child in action.choices.values():
                yield from actions_of(child)
        else:
            yield action


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_a_command_has_an_upper_bound(command: str) -> None:
    for action in actions_of(import_module(COMMANDS[command][0]).build_parser()):
        assert action.type is not int, f"{action.option_strings}: use `whole`, which has a bound"
        if getattr(action.type, "__name__", "") == "whole_number":
            for number in HUGE:
                with pytest.raises(Exception, match="needs at most"):
                    action.type(str(number))
