"""The config loader: what it reads, and the exact words with which it refuses."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_type_hints

import pytest

from deim.config import catalog
from deim.config.catalog import find_config, shipped_configs_dir
from deim.config.loader import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    load_block,
    load_config,
)
from deim.config.schema import Config
from deim.data.synthetic.make import SyntheticOptions
from deim.engine.task import TASKS, TaskDefaults, task_options_class
from deim.errors import ConfigError
from deim.model.backbone.dinov3 import DinoV3Options
from deim.model.backbone.vit_tiny import VitTinyOptions
from deim.model.build import describe_architecture
from deim.model.detector import ModelOptions
from multimodal.task import TextFusionTask

ROOT = Path(__file__).parents[2]
MODEL = """
model:
  hidden_dim: 64
  backbone: {type: vit_tiny, dim: 64, depth: 3, num_heads: 2, return_blocks: [0, 1, 2]}
"""
REST = """
output_dir: outputs/tiny
image_size: 64
epochs: 2
data: {root: some/folder}
"""
MINIMAL = REST + MODEL


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file below the current folder, so that messages name short, relative paths."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "x.yml") -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return write_file


def problems_of(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def test_minimal_file_takes_every_other_option_from_the_schema(write):
    config = load_config(write(MINIMAL))
    assert config.output_dir == "outputs/tiny"
    assert config.image_size_hw == (64, 64)
    assert config.model.backbone == VitTinyOptions(
        type="vit_tiny", dim=64, depth=3, num_heads=2, return_blocks=(0, 1, 2)
    )
    assert config.model.decoder.num_queries == 300
    assert config.schedule.warmup_steps == "auto"
    assert config.data.synthetic is None


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("recipe.lr=1e-4", "recipe.lr", 1e-4),
        ("recipe.lr=1E-4", "recipe.lr", 1e-4),
        ("recipe.lr=2.5e-5", "recipe.lr", 2.5e-5),
        ("recipe.lr=1.5e3", "recipe.lr", 1500.0),
        ("recipe.lr=1", "recipe.lr", 1.0),
        ("recipe.betas=[0, 9e-1]", "recipe.betas", (0.0, 0.9)),
        ("output_dir=1e-4", "output_dir", "1e-4"),
        ("output_dir=a=b", "output_dir", "a=b"),
        ("output_dir=2024-01-01", "output_dir", "2024-01-01"),
        ("runtime.amp=off", "runtime.amp", "off"),
        ("runtime.tensorboard=false", "runtime.tensorboard", False),
        ("runtime.device=cuda:1", "runtime.device", "cuda:1"),
        ("schedule.warmup_steps=7", "schedule.warmup_steps", 7),
        ("schedule.warmup_steps=auto", "schedule.warmup_steps", "auto"),
        ("ema.decay=0", "ema.decay", 0.0),
        ("image_size=[64, 96]", "image_size", (64, 96)),
        ("data.test_annotations=null", "data.test_annotations", None),
        ("data.synthetic={seed: 3}", "data.synthetic", SyntheticOptions(seed=3)),
        ("data.synthetic.seed=3", "data.synthetic", SyntheticOptions(seed=3)),
        ("data.synthetic={}", "data.synthetic", SyntheticOptions()),
        (" epochs = 5", "epochs", 5),
    ],
)
def test_values(write, override, key, expected):
    value: Any = load_config(write(MINIMAL), [override])
    for name in key.split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


def test_a_float_option_is_a_float_inside_a_file_too(write):
    config = load_config(write(MINIMAL + "recipe: {lr: 1e-4, weight_decay: 0}\naugment: {photometric: 1}\n"))
    assert config.recipe.lr == pytest.approx(1e-4)
    assert isinstance(config.recipe.weight_decay, float)
    assert isinstance(config.augment.photometric, float)


def test_bases_merge_in_order_and_the_own_file_wins(write):
    write(MODEL, "_base_/deep/model.yml")
    write("_base_: deep/model.yml\nmodel: {decoder: {num_layers: 3, num_queries: 50}}\n", "_base_/model.yml")
    write("seed: 1\nepochs: 9\ndata: {batch_size: 3, mean: [0, 0, 0]}\n", "_base_/a.yml")
    write("seed: 2\ndata: {num_workers: 0}\n", "_base_/b.yml")
    text = "_base_: [_base_/model.yml, _base_/a.yml, _base_/b.yml]\n" + REST
    config = load_config(write(text + "model: {decoder: {num_queries: 60}}\n"))
    assert (config.seed, config.epochs) == (2, 2)
    assert (config.data.batch_size, config.data.num_workers, config.data.root) == (3, 0, "some/folder")
    assert config.data.mean == (0.0, 0.0, 0.0)
    assert (config.model.decoder.num_layers, config.model.decoder.num_queries) == (3, 60)


def test_a_base_may_be_reached_twice(write):
    write(MINIMAL, "root.yml")
    write("_base_: root.yml\nseed: 1\n", "a.yml")
    write("_base_: root.yml\nepochs: 5\n", "b.yml")
    config = load_config(write("_base_: [a.yml, b.yml]\n"))
    assert config.epochs == 5


def test_a_list_is_replaced_not_merged(write):
    write(MINIMAL, "base.yml")
    path = write("_base_: base.yml\nmodel: {backbone: {depth: 9, return_blocks: [6, 7, 8]}}\n")
    assert load_config(path).model.backbone.return_blocks == (6, 7, 8)


def test_a_changed_type_replaces_the_block(write):
    write(MINIMAL, "base.yml")
    path = write("_base_: base.yml\nmodel: {backbone: {type: dinov3}}\n")
    assert load_config(path).model.backbone == DinoV3Options(type="dinov3")
    assert load_config("base.yml", ["model.backbone.type=dinov3"]).model.backbone == DinoV3Options(
        type="dinov3"
    )


def test_the_same_type_merges(write):
    write(MINIMAL, "base.yml")
    path = write("_base_: base.yml\nmodel: {backbone: {type: vit_tiny, adapter_width: 8}}\n")
    backbone = load_config(path).model.backbone
    assert (backbone.dim, backbone.adapter_width) == (64, 8)


@pytest.mark.parametrize("order", [1, -1])
def test_overrides_of_a_new_type_may_come_in_any_order(write, order):
    overrides = ["model.backbone.type=dinov3", "model.backbone.ffn=swiglu"][::order]
    backbone = load_config(write(MINIMAL), overrides).model.backbone
    assert backbone == DinoV3Options(type="dinov3", ffn="swiglu")


def test_the_later_of_two_overrides_wins(write):
    assert load_config(write(MINIMAL), ["seed=1", "seed=2"]).seed == 2


def test_null_clears_an_optional_block(write):
    path = write(MINIMAL.replace("root: some/folder", "root: some/folder, synthetic: {seed: 5}"))
    assert load_config(path).data.synthetic == SyntheticOptions(seed=5)
    assert load_config(path, ["data.synthetic.val_images=1"]).data.synthetic == SyntheticOptions(
        seed=5, val_images=1
    )
    assert load_config(path, ["data.synthetic=null"]).data.synthetic is None


def test_anchors_and_merge_keys_are_no_duplicates(write):
    path = write(MINIMAL + "augment: &a {photometric: 1}\nloss: {matcher: &m {alpha: 0.5}}\n")
    assert load_config(path).loss.matcher.alpha == 0.5
    text = "loss:\n  matcher: &m {alpha: 0.5, gamma: 1}\nrecipe: {lr: 1}\n"
    assert load_config(write(MINIMAL + text)).loss.matcher.gamma == 1.0
    text = "_base_: []\nloss:\n  matcher:\n    <<: &m {alpha: 0.5, gamma: 1}\n    alpha: 0.7\n"
    assert load_config(write(MINIMAL + text)).loss.matcher.alpha == 0.7


UNKNOWN = [
    ("epoch: 3\n", "unknown key 'epoch'. Did you mean 'epochs'?"),
    ("recipe: {lr: 1, weight_decy: 0}\n", "unknown key 'recipe.weight_decy'. Did you mean 'weight_decay'?"),
    (
        "loss: {matcher: {cost_boxes: 1}}\n",
        "unknown key 'loss.matcher.cost_boxes'. Did you mean 'cost_bbox'?",
    ),
    ("batch_size: 3\n", "unknown key 'batch_size'. Did you mean 'data.batch_size'?"),
    ("decoder: {num_layers: 3}\n", "unknown key 'decoder'. Did you mean 'model.decoder'?"),
    (
        "num_heads: 3\n",
        "unknown key 'num_heads'. Did you mean 'model.backbone.num_heads', 'model.decoder.num_heads' or "
        "'model.encoder.num_heads'?",
    ),
    (
        "augment: {rotation: 0.5}\n",
        "unknown key 'augment.rotation'. Did you mean 'augment.industrial.rotation'?",
    ),
    (
        "true: 3\n",
        "unknown key 'True'. Valid here: output_dir, image_size, epochs, seed, task, model, data, augment, ",
    ),
]


@pytest.mark.parametrize(("text", "message"), UNKNOWN)
def test_unknown_key(write, text, message):
    (line,) = problems_of(write(MINIMAL + text))
    assert line.startswith(f"x.yml: {message}")


def test_unknown_key_at_depth_three(write):
    path = write(MINIMAL + "  decoder: {num_querys: 100}\n")
    assert problems_of(path) == ["x.yml: unknown key 'model.decoder.num_querys'. Did you mean 'num_queries'?"]


def test_unknown_key_names_the_base_it_stands_in(write):
    write(MODEL + "  decoder: {num_querys: 100}\n", "_base_/m.yml")
    path = write("_base_: _base_/m.yml\nmodel: {decoder: {num_layers: 3}}\n" + REST)
    assert problems_of(path) == [
        "_base_/m.yml: unknown key 'model.decoder.num_querys'. Did you mean 'num_queries'?"
    ]


def test_unknown_key_in_an_override(write):
    lines = problems_of(write(MINIMAL), "data.batchsize=3", "seed=1", "eval_batch_size=2")
    assert lines == [
        "--set: unknown key 'eval_batch_size'. Did you mean 'data.eval_batch_size'?",
        "--set: unknown key 'data.batchsize'. Did you mean 'batch_size'?",
    ]


def test_option_of_another_type(write):
    (line,) = problems_of(write(MINIMAL), "model.backbone.ffn=mlp")
    assert line == (
        "--set: unknown key 'model.backbone.ffn'. It belongs to another 'type' of this block. "
        "Valid here: type, dim, depth, num_heads, return_blocks, adapter_width."
    )


WRONG = [
    ("epochs=ten", "epochs: got 'ten', needs an integer"),
    ("epochs=1.0", "epochs: got 1.0, needs an integer"),
    ("epochs=true", "epochs: got True, needs an integer"),
    ("epochs=1e3", "epochs: got '1e3', needs an integer"),
    ("epochs=", "epochs: got null, needs an integer"),
    ("epochs.x=1", "epochs: got a block, needs an integer"),
    ("recipe.lr=true", "recipe.lr: got True, needs a number"),
    ("recipe.lr=fast", "recipe.lr: got 'fast', needs a number"),
    ("recipe.lr='0.1'", "recipe.lr: got '0.1', needs a number"),
    ("recipe.lr=.nan", "recipe.lr: got nan, needs a number"),
    ("recipe.lr=1e999", "recipe.lr: got '1e999', needs a number"),
    ("recipe=5", "recipe: got 5, needs a block of options"),
    ("recipe=null", "recipe: got null, needs a block of options"),
    ("output_dir=5", "output_dir: got 5, needs text"),
    ("data.test_annotations=5", "data.test_annotations: got 5, needs text or null"),
    ("data.synthetic=yes", "data.synthetic: got 'yes', needs a block of options or null"),
    ("data.resize=crop", "data.resize: got 'crop', needs 'stretch' or 'letterbox'"),
    ("runtime.amp=false", "runtime.amp: got False, needs 'auto', 'bf16', 'fp16' or 'off'"),
    ("runtime.tensorboard=1", "runtime.tensorboard: got 1, needs true or false"),
    ("runtime.tensorboard=off", "runtime.tensorboard: got 'off', needs true or false"),
    ("image_size=[64]", "image_size: got [64], needs an integer or a list of 2, each an integer"),
    ("recipe.betas=[0.9, x]", "recipe.betas: got [0.9, 'x'], needs a list of 2, each a number"),
    ("ema.decay=x", "ema.decay: got 'x', needs a number or 'auto'"),
    ("schedule.flat_epochs=Auto", "schedule.flat_epochs: got 'Auto', needs an integer or 'auto'"),
    ("model.backbone.type=vit", "model.backbone.type: got 'vit', needs 'vit_tiny', 'dinov3' or 'timm'"),
    ("model.backbone.type=[vit]", "model.backbone.type: got ['vit'], needs 'vit_tiny', 'dinov3' or 'timm'"),
    ("model.backbone=vit_tiny", "model.backbone: got 'vit_tiny', needs a block of options"),
    ("epochs=0", "epochs: got 0, needs at least 1"),
    ("augment.mosaic=1.5", "augment.mosaic: got 1.5, needs [0, 1]"),
    ("augment.zoom_out_max_scale=0.5", "augment.zoom_out_max_scale: got 0.5, needs at least 1"),
    (
        "augment.copy_blend_balanced=true",
        "augment.copy_blend_balanced: got true, but copy_blend is 0, so nothing is blended in. Set "
        "copy_blend above 0.",
    ),
    ("augment.copy_blend_objects=0", "augment.copy_blend_objects: got 0, needs at least 1"),
    ("augment.multi_scale=0.6", "augment.multi_scale: got 0.6, needs [0, 0.5]"),
    ("augment.mosaic_max_degrees=90", "augment.mosaic_max_degrees: got 90.0, needs [0, 45]"),
    ("augment.mosaic_max_shift=-1", "augment.mosaic_max_shift: got -1.0, needs [0, 0.5]"),
    (
        "augment.mosaic_scales=[1.5, 0.5]",
        "augment.mosaic_scales: got [1.5, 0.5], needs two numbers above 0, the smaller first",
    ),
    ("augment.industrial.blur=2", "augment.industrial.blur: got 2.0, needs [0, 1]"),
    ("augment.industrial.max_degrees=60", "augment.industrial.max_degrees: got 60.0, needs [0, 45]"),
    (
        "augment.industrial.max_corner_shift=0",
        "augment.industrial.max_corner_shift: got 0.0, needs (0, 0.25]",
    ),
    ("data.std=[1, 1, 0]", "data.std: got [1.0, 1.0, 0.0], each must be above 0"),
]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_wrong_value(write, override, message):
    assert problems_of(write(MINIMAL), override) == [f"--set: {message}"]


def test_a_range_problem_is_blamed_on_the_option_that_the_check_names(write):
    assert problems_of(write(MINIMAL), "model.backbone.num_heads=3") == [
        "x.yml: model.backbone.dim: 64 is not a multiple of num_heads · 4 = 12"
    ]


def test_size_that_is_no_multiple_of_32(write):
    (line,) = problems_of(write(MINIMAL.replace("64", "100", 1)))
    assert line.startswith("x.yml: image_size: got 100x100, both must be multiples of 32 and at least 64")
    assert line.endswith("the nearest are 96x96")


def test_size_that_leaves_no_other_for_multi_scale(write):
    assert problems_of(write(MINIMAL), "augment.multi_scale=0.5") == [
        "--set: augment.multi_scale: got 0.5, but sizes start at a height of 64, so image_size 64x64 has "
        "none below it, nor as many above it. Raise image_size, or set augment.multi_scale to 0."
    ]
    assert (
        load_config(write(MINIMAL), ["augment.multi_scale=0.5", "image_size=96"]).augment.multi_scale == 0.5
    )


def test_range_problem_names_the_base(write):
    write("data: {batch_size: 0}\n", "base.yml")
    lines = problems_of(write("_base_: base.yml\n" + MINIMAL), "data.num_workers=-1")
    assert lines == [
        "base.yml: data.batch_size: got 0, needs at least 1",
        "--set: data.num_workers: got -1, needs at least 0",
    ]


def test_missing_keys(write):
    path = write("image_size: 64\nmodel: {backbone: {type: vit_tiny}}\n")
    assert problems_of(path, "model.name=y") == [
        "x.yml: missing key 'output_dir', which has no default. Give text.",
        "x.yml: missing key 'epochs', which has no default. Give an integer.",
        "x.yml: missing key 'model.hidden_dim', which has no default. Give an integer.",
        "x.yml: missing key 'model.backbone.dim', which has no default. Give an integer.",
        "x.yml: missing key 'model.backbone.num_heads', which has no default. Give an integer.",
        "x.yml: missing key 'data', which has no default. Give a block of options.",
    ]


def test_missing_key_of_a_block_that_an_override_made(write):
    write("seed: 3\n", "base.yml")
    path = write("_base_: base.yml\n" + MINIMAL.replace("type: vit_tiny", "type: dinov3"))
    assert problems_of(path, "model.backbone.type=vit_tiny") == [
        "--set: missing key 'model.backbone.dim', which has no default. Give an integer.",
        "--set: missing key 'model.backbone.num_heads', which has no default. Give an integer.",
    ]


def test_missing_type_still_checks_the_other_keys(write):
    path = write(MINIMAL.replace("type: vit_tiny", "typ: vit_tiny"))
    assert problems_of(path) == [
        "x.yml: missing key 'model.backbone.type', which has no default. Give 'vit_tiny', 'dinov3' or "
        "'timm'.",
        "x.yml: unknown key 'model.backbone.typ'. Did you mean 'type'?",
    ]


def test_all_problems_at_once(write):
    write("model: {decoder: {num_layers: four, num_queries: 0}, encoder: {expansion: 9}}\n", "base.yml")
    text = "_base_: base.yml\nimage_size: 100\ndata: {batchsize: 3}\nepochs: x\n" + MODEL
    lines = problems_of(write(text), "recipe.lr=no", "recipe.clip_grad_norm=0", "ema.decay=2", "runtime.x=1")
    assert sorted(lines) == sorted(
        [
            "base.yml: model.decoder.num_layers: got 'four', needs an integer",
            "base.yml: model.encoder.expansion: got 9.0, needs (0, 4]",
            "x.yml: missing key 'output_dir', which has no default. Give text.",
            "x.yml: missing key 'data.root', which has no default. Give text.",
            "x.yml: unknown key 'data.batchsize'. Did you mean 'batch_size'?",
            "x.yml: epochs: got 'x', needs an integer",
            "--set: recipe.lr: got 'no', needs a number",
            "--set: ema.decay: got 2.0, needs [0, 1)",
            "--set: unknown key 'runtime.x'. Valid here: device, amp, tensorboard, checkpoint_minutes, "
            "preflight, activation_checkpointing, compile, deterministic.",
        ]
    )


def test_ranges_are_checked_in_every_block_that_can_be_read(write):
    path = write(MINIMAL.replace("image_size: 64", "image_size: 100"))
    numbers = [
        "--set: seed: got -1, needs at least 0",
        "x.yml: image_size: got 100x100, both must be multiples of 32 and at least 64; the nearest are 96x96",
    ]
    assert sorted(problems_of(path, "seed=-1")) == numbers
    lines = problems_of(path, "seed=-1", "evaluation.every_epochs=0", "recipe.clip_grad_norm=0")
    assert sorted(lines) == [
        "--set: evaluation.every_epochs: got 0, needs at least 1",
        "--set: recipe.clip_grad_norm: got 0.0, must be above 0",
        *numbers,
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.backbone.depth=twelve", "model.backbone.depth: got 'twelve', needs an integer"),
        ("model.backbone.num_heads=x", "model.backbone.num_heads: got 'x', needs an integer"),
        ("model.encoder.num_heads=x", "model.encoder.num_heads: got 'x', needs an integer"),
    ],
)
def test_a_check_that_needs_an_unreadable_value_stays_silent(write, override, message):
    # Valid as it stands, and wrong with any of the defaults in place of what the override made unreadable.
    backbone = "{type: vit_tiny, dim: 64, depth: 30, num_heads: 2, return_blocks: [20, 21, 22]}"
    heads = "encoder: {num_heads: 2}, decoder: {num_heads: 17}"
    path = write(REST + f"model: {{hidden_dim: 68, backbone: {backbone}, {heads}}}\n")
    load_config(path)
    assert problems_of(path, override) == [f"--set: {message}"]


YAML_ERRORS = [
    (
        "epochs: 3\n\nseed: 1\nepochs: 4\n",
        "x.yml:4: not valid YAML: duplicate key 'epochs', already given in line 1.",
    ),
    (
        "data:\n  root: a\n  root: b\n",
        "x.yml:3: not valid YAML: duplicate key 'root', already given in line 2.",
    ),
    ("data: {root: a, root: b}\n", "x.yml:1: not valid YAML: duplicate key 'root', already given in line 1."),
    ("seed: 1\nepochs: [1\n", "x.yml:3: not valid YAML: while parsing a flow sequence, "),
    (
        "seed: 1\n\tepochs: 1\n",
        "x.yml:2: not valid YAML: while scanning for the next token, found character '\\t'",
    ),
    (
        "seed: !!python/name:os.system\n",
        "x.yml:1: not valid YAML: could not determine a constructor for the tag",
    ),
    ("a: 1\n---\nb: 2\n", "x.yml:2: not valid YAML: expected a single document in the stream"),
    ("? [a]\n: 1\n", "x.yml:1: not valid YAML: while constructing a mapping, found unhashable key."),
    ("", "x.yml: the file is empty. A config has one 'key: value' a line."),
    ("# nothing\n", "x.yml: the file is empty."),
    ("- a\n", "x.yml: got a list at the top, needs 'key: value' lines."),
    ("text\n", "x.yml: got a str at the top, needs 'key: value' lines."),
    ("_base_: 5\n", "x.yml: _base_: got 5, needs a file name or a list of file names"),
    ("_base_: [a.yml, 5]\n", "x.yml: _base_: got ['a.yml', 5], needs a file name or a list of file names"),
    (
        "_base_: b/nope.yml\n",
        "x.yml: _base_: got 'b/nope.yml', but b/nope.yml is no file, and no such config is shipped. `deim "
        "config list` names the shipped ones.",
    ),
    (
        "_base_: deimv2_n_1024\n",
        "x.yml: _base_: got 'deimv2_n_1024', but deimv2_n_1024 is no file, and no such config is shipped. "
        "Did you mean 'deimv2_",
    ),
    (
        "_base_: 'deim://augment_ful'\n",
        "x.yml: _base_: got 'deim://augment_ful', but no such config is shipped. "
        "Did you mean 'augment_full'?",
    ),
    (f"_base_: {'long' * 999}\n", "x.yml: _base_: got 'longlong"),
]


@pytest.mark.parametrize(("text", "message"), YAML_ERRORS)
def test_unreadable_text(write, text, message):
    assert "\n".join(problems_of(write(text))).startswith(message)


def test_unreadable_files(write, tmp_path):
    write(MINIMAL)
    assert problems_of("y.yml") == ["y.yml: cannot be read: No such file or directory."]
    Path("folder.yml").mkdir()
    assert problems_of("folder.yml") == ["folder.yml: cannot be read (Is a directory)."]
    Path("latin.yml").write_bytes("name: Stra\xdfe\n".encode("latin-1"))
    assert problems_of("latin.yml")[0].startswith("latin.yml: not a text file in UTF-8")


def test_missing_base_of_a_base_names_the_file_that_wants_it(write):
    write("_base_: gone.yml\n", "_base_/a.yml")
    path = write("_base_: _base_/a.yml\n")
    assert problems_of(path) == [
        "_base_/a.yml: _base_: got 'gone.yml', but _base_/gone.yml is no file, and no such config is "
        "shipped. `deim config list` names the shipped ones."
    ]


def test_cyclic_bases(write):
    write("_base_: [b.yml]\n", "a.yml")
    write("_base_: ./a.yml\n", "b.yml")
    assert problems_of("a.yml") == [
        "b.yml: '_base_' forms a circle: a.yml → b.yml → a.yml. Remove one of them."
    ]
    assert problems_of(write("_base_: x.yml\n")) == [
        "x.yml: '_base_' forms a circle: x.yml → x.yml. Remove one of them."
    ]


@pytest.mark.parametrize("override", ["epochs", "epochs 3", "=3", "data.=3", "data..root=3", ""])
def test_malformed_override(write, override):
    assert problems_of(write(MINIMAL), override) == [
        f"--set: got '{override}', needs key.path=value, such as data.batch_size=8."
    ]


def test_override_that_is_no_yaml(write):
    (line,) = problems_of(write(MINIMAL), "recipe.betas=[0.9")
    assert line.startswith("--set recipe.betas=[0.9: not valid YAML: while parsing a flow sequence, ")


def full_contents() -> list[dict[str, Any]]:
    """Complete configs that have, between them, every key of the schema."""
    data = {"root": "x", "synthetic": {}}
    common = {
        **{"output_dir": "x", "image_size": 96, "epochs": 2, "data": data},
        "schedule": {"low_resolution": {"image_size": 64, "epochs": 1}},
    }
    backbones = [
        *({"type": "vit_tiny", "dim": 64, "num_heads": 2}, {"type": "dinov3"}),
        {"type": "timm", "name": "resnet18"},
    ]
    goals = [{"type": "recall", "at_least": 0.9}, {"type": "false_boxes", "at_most_per_image": 0.1}]
    encoders = [{"type": "hashed"}, {"type": "open_clip"}]
    scalings = [{"type": "window", "low": 0, "high": 1}, {"type": "percentile"}]
    tasks = [
        {"type": "faster_rcnn"},
        *({"type": "text_fusion", "detector": "x", "encoder": e} for e in encoders),
        *({"type": "pretraining", "method": {"type": m}} for m in ("distillation", "masked_images")),
    ]
    contents = [
        {
            **common,
            "augment": {"industrial": {}},
            "data": data
            | {
                "scaling": scaling,
                "sampling": {"type": "repeat_factor", "threshold": 0.1},
                "tiles": {"size": 64},
            },
            "model": {"hidden_dim": 64, "backbone": backbone},
            "evaluation": {"goal": goal},
            "task": task,
        }
        for backbone, goal, task, scaling in zip(backbones * 2, goals * 3, tasks, scalings * 3, strict=False)
    ]
    return [config_to_dict(config_from_dict(content, where="test")) for content in contents]


def leaves(content: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    actual = []
    for key, value in content.items():
        actual += leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]
    return actual


NUM_MISSPELLINGS = 6
TASK_CLASSES: Any = Union[tuple(map(task_options_class, TASKS))]  # noqa: UP007


def misspellings(name: str) -> list[str]:
    middle = len(name) // 2
    left, right = name[:middle], name[middle:]
    return [name[:-1], name[1:], left + right[1:], left + "x" + right, left + "x" + right[1:], name + "s"]


def schema_leaves(block_class: type, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    actual: set[tuple[str, ...]] = set()
    hints = get_type_hints(block_class) | ({"task": TASK_CLASSES} if block_class is Config else {})
    for name, hint in hints.items():
        blocks = [option for option in (hint, *get_args(hint)) if is_dataclass(option)]
        for block in blocks:
            actual |= schema_leaves(block, (*path, name))
        if not blocks:
            actual.add((*path, name))
    return actual


def test_the_full_trees_have_every_key_of_the_schema():
    assert {leaf for content in full_contents() for leaf in leaves(content)} == schema_leaves(Config)


@pytest.mark.parametrize("number", range(5))
def test_every_misspelled_leaf_gets_the_right_suggestion(number):
    contents = full_contents()
    template = contents[number]
    earlier = {leaf for content in contents[:number] for leaf in leaves(content)}
    # `type` decides what else its block may have, so each goes alone; all others of one kind go together.
    new = [leaf for leaf in leaves(template) if leaf not in earlier]
    groups = [[leaf for leaf in new if leaf[-1] != "type"], *([leaf] for leaf in new if leaf[-1] == "type")]
    for group in groups:
        for kind in range(NUM_MISSPELLINGS):
            content = json.loads(json.dumps(template))
            expected = set()
            for *parents, name in group:
                block = content
                for parent in parents:
                    block = block[parent]
                wrong = misspellings(name)[kind]
                if wrong in block:
                    continue
                block[wrong] = block.pop(name)
                key = ".".join([*parents, wrong])
                expected.add(f"best.pth: unknown key '{key}'. Did you mean '{name}'?")
            with pytest.raises(ConfigError) as caught:
                config_from_dict(content, where="best.pth")
            assert expected <= set(str(caught.value).splitlines())


@pytest.mark.parametrize("number", range(5))
def test_round_trips(write, number, monkeypatch):
    monkeypatch.setattr(TextFusionTask, "defaults_from", lambda *_: None)
    config = config_from_dict(full_contents()[number], where="test")
    content = config_to_dict(config)
    assert json.loads(json.dumps(content)) == content
    assert config_from_dict(content, where="test") == config
    assert load_config(write(config_to_yaml(config))) == config


@pytest.mark.parametrize("name", ["off", "null", "1e-4", "3", "2024-01-01", "a: b", "Blech 3 µm"])
def test_text_that_looks_like_something_else_survives_yaml(write, name):
    content = full_contents()[0]
    content["model"]["name"] = name
    content["recipe"]["lr"] = 1e-4
    config = config_from_dict(content, where="test")
    assert load_config(write(config_to_yaml(config))) == config


def test_yaml_keeps_the_order_and_writes_lists_on_one_line(write):
    text = config_to_yaml(load_config(write(MINIMAL)))
    assert text.startswith(
        "output_dir: outputs/tiny\nimage_size: 64\nepochs: 2\nseed: 0\ntask:\n  type: detection\nmodel:\n"
    )
    assert "    return_blocks: [0, 1, 2]\n" in text


def test_config_from_dict_names_the_place_and_leaves_its_input_alone():
    content = full_contents()[0]
    before = json.dumps(content)
    config_from_dict(content, where="best.pth")
    assert json.dumps(content) == before
    content["epochs"] = math.pi
    with pytest.raises(ConfigError, match=r"^best\.pth: epochs: got 3\.14159\d*, needs an integer$"):
        config_from_dict(content, where="best.pth")


def blocks_of(config: Any) -> list[Any]:
    values = [getattr(config, field.name) for field in fields(config)]
    return [config] + [block for value in values if is_dataclass(value) for block in blocks_of(value)]


def test_two_loads_share_nothing(write):
    path = write(MINIMAL + "loss: {mal: 2}\n")
    first, changed, second = load_config(path), load_config(path, ["loss.mal=3", "seed=4"]), load_config(path)
    assert first == second
    assert (changed.loss.mal, changed.seed) == (3.0, 4)
    assert not {id(block) for block in blocks_of(first)} & {id(block) for block in blocks_of(second)}
    content = config_to_dict(first)
    content["data"]["mean"][0] = 9
    assert first.data.mean[0] == 0.485


def test_load_block(write):
    path = write(MODEL + "data: {nonsense: 1}\n")
    model = load_block(path, "model", ModelOptions)
    assert isinstance(model, ModelOptions)
    assert model.hidden_dim == 64
    with pytest.raises(
        ConfigError, match=r"^x\.yml: there is no block 'loss'\. The file has: model, data\.$"
    ):
        load_block(path, "loss", ModelOptions)
    write(MODEL.replace("hidden_dim", "hiden_dim"))
    with pytest.raises(
        ConfigError, match=r"^x\.yml: unknown key 'model\.hiden_dim'. Did you mean 'hidden_dim'\?"
    ):
        load_block(path, "model", ModelOptions)
    write("model: 3\n")
    with pytest.raises(
        ConfigError, match=r"^x\.yml: model: got 3 for the size, needs a size \(nano, lite, s,"
    ):
        load_block(path, "model", ModelOptions)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "_base_").glob("model_*.yml")), ids=lambda path: path.stem
)
def test_shipped_model_loads(path):
    size = path.stem.removeprefix("model_")
    assert describe_architecture(load_block(path, "model", ModelOptions)).removeprefix("deimv2-") == size


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda path: path.stem)
def test_shipped_config_loads(path, quickstart_as_detector):
    config = load_config(path)
    assert config_from_dict(config_to_dict(config), where="test") == config
    is_fusion = config.task.type == "text_fusion"
    assert quickstart_as_detector == ([config.task.detector] if is_fusion else [])


@pytest.fixture
def quickstart_as_detector(monkeypatch):
    """Pretends that every detector was trained with quickstart.yml; the paths that were asked for."""
    detector = config_to_dict(load_config(ROOT / "configs" / "quickstart.yml"))
    asked = []

    def defaults_from(self, block):
        asked.append(block["detector"])
        options = {name: detector[name] for name in ("model", "image_size", "data")}
        return TaskDefaults(options=options, source=asked[-1], fixed_blocks=("model",))

    monkeypatch.setattr(TextFusionTask, "defaults_from", defaults_from)
    return asked


@pytest.mark.usefixtures("quickstart_as_detector")
def test_an_experiment_rests_on_the_options_that_its_task_gives(write):
    task = "task: {type: text_fusion, detector: d.pth}"
    path = write(f"output_dir: x\nepochs: 2\n{task}\ndata: {{batch_size: 5}}\n")
    config = load_config(path, ["image_size=[64, 96]"])
    assert config.model == load_config(ROOT / "configs" / "quickstart.yml").model
    assert (config.image_size_hw, config.data.batch_size) == ((64, 96), 5)
    assert config.data.root == "data/quickstart"
    assert load_config(path, ["model.hidden_dim=128"]) == load_config(path)
    message = "--set: model: differs from that of d.pth, which the task keeps as it is. Remove the block."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_config(path, ["model.hidden_dim=64"])
    # A size would also bring the recipe of a detector, even if it is the detector's own size.
    for size in ("nano", "s"):
        with pytest.raises(ConfigError, match="which the task keeps as it is"):
            load_config(path, [f"model={size}"])


RENAMED = [
    ("multimodal={detector: x}", "'multimodal' is now 'task'. Rename it and give it 'type: text_fusion'."),
    ("multimodal.detector=x", "'multimodal' is now 'task'. Rename it and give it 'type: text_fusion'."),
    ("evaluation.suppression={}", "'evaluation.suppression' is now 'evaluation.nms'. Rename it."),
    (
        "recipe.max_refused_steps=3",
        "'recipe.max_refused_steps' is now 'recipe.max_skipped_steps'. Rename it.",
    ),
]


@pytest.mark.parametrize(("override", "message"), RENAMED)
def test_a_key_of_the_first_version_is_told_its_name(write, override, message):
    assert problems_of(write(MINIMAL), override) == [f"--set: {message}"]


def test_only_the_task_that_an_experiment_names_is_imported(tmp_path):
    code = (
        "import sys; from deim.config.loader import load_config; "
        f"config = load_config({str(ROOT / 'configs' / 'quickstart.yml')!r}); "
        "assert config.task.type == 'detection'; "
        "assert not any(name.split('.')[0] == 'multimodal' for name in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_a_task_that_does_not_exist_is_refused(write):
    assert problems_of(write(MINIMAL), "task.type=segmentation") == [
        "--set: task.type: got 'segmentation', needs 'detection', 'faster_rcnn', 'pretraining' or "
        "'text_fusion'"
    ]


def test_shipped_configs_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "deim" / "config" / "catalog.py"))
    with pytest.raises(ConfigError) as caught:
        shipped_configs_dir()
    in_package, in_checkout = tmp_path / "deim" / "shipped_configs", tmp_path / "configs"
    assert f"neither {in_package} nor {in_checkout} exists" in str(caught.value)
    in_checkout.mkdir()
    assert shipped_configs_dir() == in_checkout
    in_package.mkdir(parents=True)
    assert shipped_configs_dir() == in_package


@pytest.mark.parametrize("arguments", [["x.yml"], ["-c", "x.yml"], ["--config", "x.yml"]])
def test_show_config_prints_the_resolved_config(write, call, arguments):
    write(MINIMAL)
    overrides = ["seed=3", "epochs=7", "data.batch_size=1"]
    expected = config_to_yaml(load_config("x.yml", overrides))
    options = [*arguments, "--set", *overrides[:2], "--set", overrides[2]]
    assert call("show_config", *options) == (0, expected, "")


def test_show_config_prints_problems_without_a_traceback(write, call):
    write(MINIMAL)
    message = "--set: unknown key 'epoch'. Did you mean 'epochs'?\n"
    assert call("show_config", "x.yml", "--set", "epoch=3") == (2, "", message)


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}: is a folder, not a config file. Name a config file"):
        find_config(tmp_path)
