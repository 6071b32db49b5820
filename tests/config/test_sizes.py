"""One option chooses the size of the model: its architecture and its recipe, from any file and from --set."""

from pathlib import Path

import pytest

from deim.config.catalog import SIZES, list_shipped
from deim.config.loader import config_from_dict, config_to_dict, config_to_yaml, load_config
from deim.config.schema import Config
from deim.errors import ConfigError
from deim.model.build import describe_architecture, load_size

REST = "output_dir: out\nimage_size: 128\nepochs: 7\ndata: {root: some/folder}\n"
RECIPES = {  # of the reference, which has neither nano nor lite
    "lite": (1e-3, 5e-4, 1e-4, 20),
    "s": (5e-4, 2.5e-5, 1e-4, 20),
    "m": (5e-4, 2.5e-5, 1e-4, 6),
    "l": (5e-4, 1.25e-5, 1.25e-4, 3),
    "x": (5e-4, 1e-5, 1.25e-4, 3),
}
LENGTHS = {"s": 132, "m": 102, "l": 68, "x": 58}


@pytest.fixture
def write(tmp_path: Path):
    def write_file(text: str, name: str = "own.yml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def recipe_of(config: Config) -> tuple[float, float, float, int]:
    recipe = config.recipe
    return recipe.lr, recipe.backbone_lr, recipe.weight_decay, config.augment.multi_scale_repeat


def problem_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("size", SIZES)
def test_a_size_brings_its_architecture_and_its_recipe(write, size: str) -> None:
    config = load_config(write(f"{REST}model: {size}\n"))
    assert config.model == load_size(size)
    assert recipe_of(config) == RECIPES.get(size, (1e-3, 1e-3, 1e-4, 20))
    assert (config.image_size, config.epochs, config.augment.mosaic) == (128, 7, 0.0)


@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("after", SIZES)
def test_nothing_is_left_of_a_size_that_is_replaced(write, before: str, after: str) -> None:
    as_if_new = load_config(write(f"{REST}model: {after}\n"))
    path = write(f"{REST}model: {before}\n")
    assert load_config(path, [f"model={after}"]) == load_config(path, [f"model.size={after}"]) == as_if_new
    write(f"_base_: own.yml\nmodel: {{size: {after}}}\n", "above.yml")
    assert load_config(path.with_name("above.yml")) == as_if_new
    resolved = write(config_to_yaml(load_config(path)), "resolved.yml")
    assert load_config(resolved, [f"model={after}"]) == as_if_new


@pytest.mark.parametrize(
    "model",
    ["model: {size: m, decoder: {num_queries: 500}}", "model:\n  decoder: {num_queries: 500}\n  size: M"],
)
def test_more_keys_change_the_size(write, model: str) -> None:
    config = load_config(write(f"{REST}{model}\nrecipe: {{lr: 3.0e-4}}\n"))
    assert (config.model.decoder.num_queries, config.model.hidden_dim) == (500, 256)
    assert recipe_of(config) == (3e-4, *RECIPES["m"][1:])


@pytest.mark.parametrize("overrides", [["model=l", "recipe.lr=2e-4"], ["recipe.lr=2e-4", "model=l"]])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_order_of_overrides_does_not_matter(write, overrides: list[str], number: int) -> None:
    overrides.insert(number, "model.decoder.num_denoising=7")
    config = load_config(write(f"{REST}model: nano\n"), overrides)
    assert (config.model.hidden_dim, config.model.decoder.num_denoising) == (224, 7)
    assert recipe_of(config) == (2e-4, *RECIPES["l"][1:])


@pytest.mark.parametrize(
    ("spelling", "size"), [("S", "s"), ("deimv2-x", "x"), ("DEIMv2_L", "l"), ("Nano", "nano")]
)
def test_a_size_in_other_spellings(write, spelling: str, size: str) -> None:
    assert load_config(write(f"{REST}model: {spelling}\n")).model == load_size(size)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("small", "s"), ("medium", "m"), ("large", "l"), ("xl", "x"), ("nanno", "nano"), ("deimv2-mm", "m")],
)
def test_a_misspelled_size_names_the_nearest(write, given: str, nearest: str) -> None:
    path = write(f"{REST}model: {given}\n")
    message = (
        f"model: got '{given}' for the size, needs a size (nano, lite, s, m, l, x) or a block of options. "
        f"Did you mean '{nearest}'?"
    )
    assert problem_of(path) == f"{path}: {message}"
    assert problem_of(write(REST + "model: m\n"), f"model={given}") == f"--set: {message}"


@pytest.mark.parametrize("given", ["7", "null", "[m]", "{size: {a: 1}}", "{size: true}", "'?'"])
def test_what_is_no_size_names_the_sizes(write, given: str) -> None:
    path = write(f"{REST}model: {given}\n")
    assert problem_of(path).endswith("needs a size (nano, lite, s, m, l, x) or a block of options.")


def test_a_missing_model_and_a_misspelled_key_name_the_size(write) -> None:
    assert problem_of(write(REST)).endswith("Give a size (nano, lite, s, m, l, x) or a block of options.")
    assert "unknown key 'model.sise'. Did you mean 'size'?" in problem_of(
        write(f"{REST}model: {{sise: m}}\n")
    )


def test_a_config_in_plain_types_may_name_a_size() -> None:
    plain = {"output_dir": "o", "image_size": 64, "epochs": 1, "data": {"root": "x"}, "model": "s"}
    config = config_from_dict(plain, where="here")
    assert config.model == load_size("s")
    assert config_from_dict(config_to_dict(config), where="here", overrides=["model=x"]).model == load_size(
        "x"
    )


@pytest.mark.parametrize("size", ["s", "m", "l", "x"])
def test_the_shipped_experiments_have_the_recipe_of_the_reference(size: str) -> None:
    name = f"deimv2_{size}_1024"
    assert name in list_shipped()
    config = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yml")
    assert (config.model, recipe_of(config), config.epochs) == (load_size(size), RECIPES[size], LENGTHS[size])
    augment = config.augment
    assert (augment.mosaic, augment.mix_up, augment.copy_blend, augment.crop) == (0.5, 0.5, 0.5, 0.8)


@pytest.mark.parametrize(
    "base", ["deimv2_m_1024", "deimv2_m_1024.yml", "deim://deimv2_m_1024.yml", "configs/deimv2_m_1024.yml"]
)
def test_a_file_anywhere_may_name_a_shipped_base(write, base: str) -> None:
    config = load_config(write(f"_base_: {base}\nmodel: l\nimage_size: 320\n"))
    assert (config.model, config.image_size, config.epochs) == (load_size("l"), 320, 102)
    assert recipe_of(config) == RECIPES["l"]


def test_the_shared_blocks_are_bases_too(write) -> None:
    config = load_config(write("_base_: [quickstart, augment_full]\n"))
    assert (config.model, config.augment.mosaic) == (load_size("lite"), 0.5)


def test_a_preset_of_augmentation_replaces_the_one_before_it(write) -> None:
    presets = ("none", "conservative", "full", "industrial")
    alone = {p: load_config(write(f"_base_: [quickstart, augment_{p}]\n")).augment for p in presets}
    for before in presets:
        for after in presets:
            path = write(f"_base_: [quickstart, augment_{before}, augment_{after}]\n")
            assert load_config(path).augment == alone[after]


def test_a_file_beside_the_config_comes_first_except_after_deim(write) -> None:
    write(f"{REST}model: s\n", "quickstart.yml")
    assert load_config(write("_base_: quickstart.yml\n")).model == load_size("s")
    assert load_config(write("_base_: deim://quickstart.yml\n")).model == load_size("lite")
    same_name = write("_base_: deim://deeppcb\nepochs: 3\n", "deeppcb.yml")
    assert load_config(same_name).epochs == 3


@pytest.mark.parametrize("size", SIZES)
def test_the_name_of_a_model_follows_from_its_architecture(size: str) -> None:
    name = size if size in ("nano", "lite") else f"deimv2-{size}"
    assert describe_architecture(load_size(size)) == name


@pytest.mark.parametrize(
    "change", ["decoder.num_layers=5", "encoder.expansion=0.5", "backbone.adapter_width=24"]
)
def test_a_changed_architecture_has_no_name_of_a_size(write, change: str) -> None:
    path = write(f"{REST}model: {{size: m, name: deimv2-m}}\n")  # `name` is an option of older configs
    assert describe_architecture(load_config(path, [f"model.{change}"]).model) == "custom"
    training = load_config(path, ["model.decoder.num_denoising=0", "model.init_from=x.pth"])
    assert describe_architecture(training.model) == "deimv2-m"
