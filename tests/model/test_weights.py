"""Starting weights: the files that are understood, and the words with which others are refused."""

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deim.errors import CheckpointError
from deim.model.detector import Detector
from deim.model.weights import load_initial_weights
from deim.model.weights_file import read_weights_file
from tests.model.tiny import Kind, random_images, tiny_detector

State = dict[str, Tensor]
DINOV3_KINDS: list[Kind] = ["dinov3", "dinov3_swiglu"]
NUM_LAYERS = 3


def copy_of(module: torch.nn.Module) -> State:
    return {key: value.clone() for key, value in module.state_dict().items()}


def official_state(source: Detector) -> State:
    """As official files: with anchors for one size, infinite where invalid, and an integer scale."""
    state = copy_of(source)
    state["decoder.anchors"] = torch.full((1, 84, 4), math.inf)
    state["decoder.valid_mask"] = torch.ones(1, 84, 1, dtype=torch.bool)
    state["decoder.reg_scale"] = torch.tensor([4])
    state["decoder.decoder.reg_scale"] = torch.tensor([4])
    return state


def assert_equal_states(ours: State, theirs: State, *, but: tuple[str, ...] = ()) -> None:
    assert set(ours) == set(theirs)
    assert [key for key in ours if key not in but and not torch.equal(ours[key], theirs[key])] == []


def to_hugging_face(state: State) -> State:
    """Meta's names of DINOv3 tensors to those of Hugging Face; they have no key bias, mask or periods."""
    renamed: State = {}
    for key, value in state.items():
        if key.endswith(("bias_mask", "periods")):
            continue
        if (inner := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key)) is not None:
            block, kind = inner.groups()
            for name, part in zip("qkv", value.chunk(3), strict=True):
                if (name, kind) != ("k", "bias"):
                    renamed[f"layer.{block}.attention.{name}_proj.{kind}"] = part.clone()
            continue
        new = re.sub(r"^blocks\.", "layer.", key)
        new = re.sub(r"\.attn\.proj\.", ".attention.o_proj.", new)
        new = re.sub(r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1", new)
        new = re.sub(r"\.mlp\.(fc1|w2)\.", ".mlp.up_proj.", new)
        new = re.sub(r"\.mlp\.(fc2|w3)\.", ".mlp.down_proj.", new)
        new = re.sub(r"\.mlp\.w1\.", ".mlp.gate_proj.", new)
        new = re.sub(r"^patch_embed\.proj\.", "embeddings.patch_embeddings.", new)
        new = re.sub(r"^storage_tokens$", "embeddings.register_tokens", new)
        new = re.sub(r"^(cls_token|mask_token)$", r"embeddings.\1", new)
        renamed[new] = value[None].clone() if key == "mask_token" else value.clone()
    return renamed


@pytest.fixture
def source():
    """The model whose weights are in the file."""
    return tiny_detector(seed=1, shake=0.05)


@pytest.fixture
def target():
    """The model that loads it."""
    return tiny_detector(seed=2, shake=0.05)


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    def save_file_(document: object, name: str = "weights.pth") -> Path:
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(document, path)
        else:
            torch.save(document, path)
        return path

    return save_file_


# Detector files


@pytest.mark.parametrize(
    "wrap", [lambda s: {"ema": {"module": s, "updates": 7}, "model": {}}, lambda s: {"model": s}]
)
def test_official_files_load_whole_with_anchors_and_integer_scale(source, target, save, wrap):
    report = load_initial_weights(target, save(wrap(official_state(source))))
    assert (report.part, report.share, report.replaced) == ("detector", 1.0, ())
    assert_equal_states(copy_of(target), copy_of(source))
    assert target.decoder.reg_scale.dtype == torch.float32
    images = random_images(1)
    with torch.no_grad():
        assert torch.equal(target.eval()(images)["pred_boxes"], source.eval()(images)["pred_boxes"])


def test_official_file_of_other_classes_keeps_the_random_class_tensors_and_names_them(save, caplog):
    coco = tiny_detector(num_classes=80, seed=1, shake=0.05)
    target = tiny_detector(num_classes=6, seed=2, shake=0.05)
    before = copy_of(target)
    with caplog.at_level(logging.INFO, logger="deim"):
        report = load_initial_weights(target, save({"ema": {"module": official_state(coco)}}))
    heads = ["enc_score_head", *(f"dec_score_head.{i}" for i in range(NUM_LAYERS))]
    expected = {f"decoder.{head}.{kind}" for head in heads for kind in ("weight", "bias")}
    expected.add("decoder.denoising_class_embed.weight")
    assert set(report.replaced) == expected
    assert report.share == 1.0
    after = copy_of(target)
    assert_equal_states(after, copy_of(coco), but=report.replaced)
    assert all(torch.equal(after[key], before[key]) for key in report.replaced)
    assert "decoder.enc_score_head.weight" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_own_checkpoints_give_the_weights_that_they_name(source, target, save, kind):
    raw, averaged = copy_of(source), copy_of(tiny_detector(seed=3, shake=0.05))
    document = {"format": 1, "weights": kind, "model": raw, "ema": {"model": averaged, "updates": 5}}
    report = load_initial_weights(target, save(document))
    assert report.part == "detector"
    assert_equal_states(copy_of(target), raw if kind == "raw" else averaged)


def test_plain_state_dict_as_safetensors_loads(source, target, save):
    state = {key: value for key, value in copy_of(source).items() if not key.startswith("decoder.decoder.up")}
    report = load_initial_weights(target, save(state, "model.safetensors"))
    assert report.part == "detector"
    assert_equal_states(copy_of(target), copy_of(source))


# Backbone files


def test_vit_tiny_file_fills_the_backbone_and_nothing_else(source, target, save):
    before = copy_of(target)
    report = load_initial_weights(target, save(copy_of(source.backbone.pretrained), "vitt_distill.pt"))
    assert (report.part, report.share) == ("backbone", 1.0)
    assert_equal_states(copy_of(target.backbone.pretrained), copy_of(source.backbone.pretrained))
    outside = [key for key in before if not key.startswith("backbone.dinov3.")]
    assert all(torch.equal(target.state_dict()[key], before[key]) for key in outside)


@pytest.mark.parametrize("kind", DINOV3_KINDS)
def test_dinov3_file_loads_even_if_its_bias_masks_were_never_filled(save, kind):
    source, target = (tiny_detector(kind, seed=seed, shake=0.05) for seed in (1, 2))
    state = copy_of(source.backbone.pretrained)
    for key in [key for key in state if key.endswith("bias_mask")]:
        state[key] = torch.full_like(state[key], math.nan)
    report = load_initial_weights(target, save(state))
    assert report.part == "backbone"
    assert_equal_states(copy_of(target.backbone.pretrained), copy_of(source.backbone.pretrained))


@pytest.mark.parametrize("kind", DINOV3_KINDS)
@pytest.mark.parametrize("prefix", ["", "model.", "model.layer."])
def test_hugging_face_file_gives_the_outputs_of_the_model_it_was_renamed_from(save, kind, prefix, caplog):
    source, target = (tiny_detector(kind, seed=seed, shake=0.05) for seed in (1, 2))
    state = to_hugging_face(copy_of(source.backbone.pretrained))
    if prefix == "model.layer.":
        state = {re.sub(r"^layer\.", prefix, key): value for key, value in state.items()}
    else:
        state = {prefix + key: value for key, value in state.items()}
    report = load_initial_weights(target, save(state, "model.safetensors"))
    assert report.part == "backbone"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    ours, theirs = copy_of(target.backbone.pretrained), copy_of(source.backbone.pretrained)
    biases = tuple(key for key in ours if key.endswith("qkv.bias"))
    assert_equal_states(ours, theirs, but=biases)
    for key in biases:
        query, keys, value = ours[key].chunk(3)
        assert keys.abs().max() == 0
        assert torch.equal(torch.cat([query, value]), torch.cat(theirs[key].chunk(3)[::2]))
    images = random_images(1)
    with torch.no_grad():
        maps = zip(
            target.backbone.pretrained.eval()(images), source.backbone.pretrained.eval()(images), strict=True
        )
    assert all(torch.equal(item, other) for item, other in maps)


# Files that are refused


def refusal(target: Detector, path: Path) -> str:
    """The message; the model must be left as it was."""
    before = copy_of(target)
    with pytest.raises(CheckpointError) as caught:
        load_initial_weights(target, path)
    assert_equal_states(copy_of(target), before)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_file_of_another_size_is_refused_with_the_share_that_fits(target, save):
    other = tiny_detector(hidden_dim=64, dim=64)
    message = refusal(target, save({"model": copy_of(other)}))
    actual = re.match(
        r"fills only (\d+)% of the detector, at least 90% is needed\. It is probably of", message
    )
    assert actual is not None
    assert 0 <= int(actual[1]) < 20
    ours = copy_of(target)
    first = next(key for key, value in ours.items() if value.shape != copy_of(other)[key].shape)
    assert f"First tensors without a match: {first}, " in message


def test_the_share_counts_elements(target, source, save):
    state = copy_of(source.backbone.pretrained)
    kept = {key: value for key, value in state.items() if not key.startswith("blocks.2.")}
    share = sum(value.numel() for value in kept.values()) / sum(value.numel() for value in state.values())
    assert refusal(target, save(kept)).startswith(f"fills only {share:.0%} of the backbone")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_truncated_file_is_refused(target, source, save, name, kept):
    path = save(copy_of(source.backbone.pretrained), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    message = refusal(target, path)
    assert re.match(r"damaged, truncated or not a weights file \(.+\)\. Use another copy\.$", message)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("vitt_distill.pt", "Intellindust-AI-Lab/DEIMv2"),
        ("dinov3_vits16_pretrain_lvd1689m-08c60483.pth", "Meta's DINOv3 download page"),
        ("best.pth", "Check the path."),
    ],
)
def test_a_missing_file_is_refused_with_its_name_and_where_it_can_be_had(target, tmp_path, name, where):
    message = refusal(target, tmp_path / name)
    assert message.startswith("no such weights file. ")
    assert where in message
    assert "--set model.init_from=null" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(target, source, save, value):
    state = copy_of(source)
    state["encoder.lateral_convs.0.conv.weight"][0, 0] = value
    assert refusal(target, save({"model": state})).startswith(
        "1 tensors hold NaN or infinity, first encoder.lateral_convs.0.conv.weight. The run that wrote it had"
    )


class Payload:
    """Would make a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_with_code_is_refused_and_the_code_not_run(target, source, save, tmp_path):
    marker = tmp_path / "was_run"
    path = save({"model": copy_of(source), "extra": Payload(marker)})
    assert refusal(target, path).startswith("damaged, truncated or not a weights file (")
    assert not marker.exists()


def test_a_file_without_names_is_refused(save):
    with pytest.raises(CheckpointError, match=r"holds a list\. A weights file holds named tensors\.$"):
        read_weights_file(save([torch.zeros(1)]))


@pytest.mark.parametrize("document", [{}, {"conv1.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}])
def test_weights_of_another_kind_of_network_are_refused(target, save, document):
    message = refusal(target, save(document))
    assert message.startswith(f"not a known kind of weights file, got the keys {list(document)}. Known")


@pytest.mark.parametrize(
    ("names", "taken"),
    [(["pit", "scratch", "crack"], True), (["crack", "pit", "scratch"], False), (["a", "b", "c"], False)],
    ids=["same", "other order", "other names"],
)
def test_class_tensors_of_a_checkpoint_are_taken_only_for_the_same_classes(
    names: list[str], taken: bool, save: Callable[..., Path]
) -> None:
    source, target = tiny_detector("vit_tiny", seed=1), tiny_detector("vit_tiny", seed=2)
    document = {
        "format": 1,
        "weights": "raw",
        "model": copy_of(source),
        "class_names": ["pit", "scratch", "crack"],
    }
    report = load_initial_weights(target, save(document), class_names=names)
    assert torch.equal(
        target.decoder.enc_bbox_head.layers[0].weight, source.decoder.enc_bbox_head.layers[0].weight
    )
    assert torch.equal(target.decoder.enc_score_head.weight, source.decoder.enc_score_head.weight) is taken
    assert bool(report.replaced) is not taken


class OtherBackbone(torch.nn.Module):
    pixel_filter_keys = ()

    def __init__(self):
        super().__init__()
        self.pretrained = torch.nn.Sequential(torch.nn.Linear(2, 3))


def test_a_file_of_any_backbone_is_known_by_the_names_of_its_tensors(target, save):
    target.backbone = OtherBackbone()
    path = save({"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)})
    assert load_initial_weights(target, path).part == "backbone"
    assert target.backbone.pretrained[0].weight.eq(1).all()
