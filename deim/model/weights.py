"""Starting weights: which files can be read, and how their keys map to this project's."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, nn

from deim.errors import CheckpointError
from deim.model.backbone.timm import TimmOptions, load_features
from deim.model.baselines.faster_rcnn import FasterRcnn
from deim.model.detector import Detector
from deim.model.finite import DIVERGED, describe_non_finite, find_non_finite
from deim.model.pretraining.network import PretrainingNetwork
from deim.model.weights_file import read_weights_file

logger = logging.getLogger(__name__)

AnyDetector = Detector | FasterRcnn
AnyModel = AnyDetector | PretrainingNetwork
"""A model with a backbone."""

MIN_SHARE = 0.9
"""A file that fills a smaller share of a model than this is the wrong file."""

COMPUTED_KEYS: Final = ("decoder.anchors", "decoder.valid_mask")
"""Official files hold these for one image size; this project computes them from the input."""

CLASS_KEYS: Final = re.compile(
    r"decoder\.(enc_score_head|dec_score_head\.\d+|denoising_class_embed)\.|roi_heads\.box_predictor\."
)
"""Tensors whose shape follows from the number of classes."""

BACKBONE, BODY, PRETRAINING_HEADS = "backbone.", "body.", "heads."
"""Beginnings of the names of tensors in files of `deim pretrain`; `body.` follows `backbone.` for timm."""

SOURCES: Final = (
    (re.compile(r"vitt(plus)?_distill\.pt"), "linked in the README of github.com/Intellindust-AI-Lab/DEIMv2"),
    (re.compile(r"dinov3_vits16.*\.pth"), "on Meta's DINOv3 download page, under the DINOv3 license"),
)
"""Names of well-known weight files, and where they can be downloaded."""

HUGGING_FACE_KEYS: Final = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^embeddings\.register_tokens$"), "storage_tokens"),
    (re.compile(r"^embeddings\.(cls_token|mask_token)$"), r"\1"),
    (re.compile(r"^embeddings\.patch_embeddings\."), "patch_embed.proj."),
    (re.compile(r"^layer\.(\d+)\."), r"blocks.\1."),
    (re.compile(r"\.attention\.o_proj\."), ".attn.proj."),
    (re.compile(r"\.layer_scale([12])\.lambda1$"), r".ls\1.gamma"),
)
"""Names of DINOv3 tensors at Hugging Face and at Meta, except attention inputs and feed-forward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """Result of `load_initial_weights`."""

    part: Literal["detector", "backbone"]
    share: float
    """Share of the part's elements that the file filled, in [0, 1]; without the tensors in `replaced`."""
    replaced: tuple[str, ...]
    """Class-dependent tensors that keep their random values, because the file has other classes."""
    adapted: tuple[str, ...] = ()
    """Convolutions that were adapted to another number of image channels; see `adapt_filters`."""


def load_initial_weights(
    model: AnyModel, path: Path, *, class_names: Sequence[str] | None = None
) -> LoadReport:
    """Fill a model, or its backbone, from a weights file.

    Args:
        model: The detector; changed in place.
        path: `.pth`, `.pt` or `.safetensors`.
        class_names: Classes of the detector. If a checkpoint names other classes, or the same classes in
            another order, its class-dependent tensors are not loaded. None compares the number only.

    Returns:
        The result, which is also logged.

    Raises:
        CheckpointError: If the file is missing, damaged, of an unknown kind, holds NaN, or fills less than
            90 % of the detector or of the backbone.
    """
    source = next((where for name, where in SOURCES if name.fullmatch(path.name)), None)
    where = f"It is {source}: put it there." if source else "Check the path."
    advice = f"{where} Or start from random weights with --set model.init_from=null"
    content = read_weights_file(path, advice=advice)
    state, module = _recognize(content, path, model)
    part: Literal["detector", "backbone"] = "detector" if module is model else "backbone"
    class_names = class_names or content.get("class_names", ())
    has_other_classes = list(class_names) != list(content.get("class_names", class_names))
    current = module.state_dict()
    _raise_if_non_finite(state, path)
    adapted = _adapt_pixel_filters(state, current, endings=model.backbone.pixel_filter_keys)
    fitting = {
        key: value
        for key, value in state.items()
        if key in current
        and current[key].shape == value.shape
        and current[key].is_complex() == value.is_complex()
        and not (has_other_classes and CLASS_KEYS.match(key))
    }
    unfilled = [key for key in current if key not in fitting]
    replaced = tuple(key for key in unfilled if CLASS_KEYS.match(key) and key in state)
    missing = [key for key in unfilled if key not in replaced]
    unexpected = [key for key in state if key not in current]
    num_required = sum(current[key].numel() for key in current if key not in replaced)
    share = sum(current[key].numel() for key in fitting) / num_required
    if share < MIN_SHARE:
        raise CheckpointError(
            f"{path}: fills only {share:.0%} of the {part}, at least {MIN_SHARE:.0%} is needed. It is "
            f"probably of another model size. First tensors without a match: {', '.join(missing[:3])}."
        )
    module.load_state_dict(fitting, strict=False)
    report = LoadReport(part=part, share=share, replaced=replaced, adapted=adapted)
    _log(report, path, missing=missing, unexpected=unexpected)
    return report


def load_backbone_weights(model: AnyModel, options: TimmOptions) -> None:
    """Fill a backbone of timm with the weights that its options name, which must fit exactly; in place.

    Raises:
        CheckpointError: If they are missing, damaged, of another network, or hold NaN.
    """
    backbone = model.backbone
    state = load_features(options)
    _raise_if_non_finite(state, Path(options.weights))
    adapted = _adapt_pixel_filters(
        state, backbone.pretrained.state_dict(), endings=backbone.pixel_filter_keys
    )
    backbone.pretrained.load_state_dict(state)
    report = LoadReport(part="backbone", share=1.0, replaced=(), adapted=adapted)
    _log(report, f"{options.name}, {options.weights} weights", missing=[], unexpected=[])


def adapt_filters(filters: Tensor, channels: int) -> Tensor:
    """Adapt the filters of a convolution to another number of image channels.

    The response to gray images, whose channels are all equal, does not change. With more channels than
    before, the first keep their filters and the new ones get the mean; with fewer, all get the mean. Then all
    are scaled by old / new: three channels become one as their sum, and four as the three and their mean,
    times 3/4.

    Args:
        filters: (out, C, height, width) float.
        channels: C of the result, at least 1.
    """
    before = filters.shape[1]
    if channels == before:
        return filters
    kept = filters if channels > before else filters[:, :0]
    mean = filters.mean(dim=1, keepdim=True).expand(-1, channels - kept.shape[1], -1, -1)
    return torch.cat([kept, mean], dim=1) * (before / channels)


def _adapt_pixel_filters(
    state: dict[str, Tensor], current: Mapping[str, Tensor], *, endings: tuple[str, ...]
) -> tuple[str, ...]:
    """Adapt the convolutions that see the image, in place, and name them."""
    adapted = []
    for key in [key for key in state if key in current and key.endswith(endings)]:
        theirs, ours = state[key], current[key]
        others = (theirs.shape[:1] + theirs.shape[2:], ours.shape[:1] + ours.shape[2:])
        if theirs.ndim == 4 and others[0] == others[1] and theirs.shape != ours.shape:
            state[key] = adapt_filters(theirs, ours.shape[1])
            adapted.append(f"{key} ({theirs.shape[1]} to {ours.shape[1]} channels)")
    return tuple(adapted)


def check_kinds(weights: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a weight is of another kind of numbers than a model's, such as integers."""
    for key, value in weights.items():
        dtype = current[key].dtype if key in current else value.dtype
        if (dtype.is_floating_point, dtype.is_complex) != (value.is_floating_point(), value.is_complex()):
            raise ValueError(f"{key}: got {value.dtype}, needs {dtype}.")


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of names, shapes, types and values of tensors; their order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _recognize(
    content: Mapping[str, Any], path: Path, model: AnyModel
) -> tuple[dict[str, Tensor], nn.Module]:
    """Return the averaged weights if there are any, with this project's keys, and the part that they fill.

    A file is recognized by its keys: a detector file is a checkpoint of this project or of official DEIMv2;
    one with the backbone alone is of `deim pretrain`; other backbone files have the keys of `pretrained`, or
    are DINOv3 files of Hugging Face, whose keys are renamed.
    """
    averages = content["ema"] if isinstance(content.get("ema"), Mapping) else {}
    if "weights" in content and "format" in content:
        candidates = [averages.get("model")] if content["weights"] == "ema" else [content.get("model")]
    else:
        candidates = [averages.get("module"), content.get("model"), content]
    weights = next((candidate for candidate in candidates if isinstance(candidate, Mapping)), {})
    state = {
        key: value for key, value in weights.items() if isinstance(value, Tensor) and key not in COMPUTED_KEYS
    }
    in_backbone = {
        key.removeprefix(BACKBONE): value for key, value in state.items() if key.startswith(BACKBONE)
    }
    if in_backbone:
        if any(not key.startswith((BACKBONE, PRETRAINING_HEADS)) for key in state):
            return state, model
        if isinstance(model, FasterRcnn):  # its maps have a pyramid instead of projections
            in_body = {
                key.removeprefix(BODY): value for key, value in in_backbone.items() if key.startswith(BODY)
            }
            return in_body, model.backbone.pretrained
        return in_backbone, cast("nn.Module", model.backbone)
    if any(key.endswith("embeddings.patch_embeddings.weight") for key in state):
        return _from_hugging_face(state), model.backbone.pretrained
    if not model.backbone.pretrained.state_dict().keys().isdisjoint(state):
        return state, model.backbone.pretrained
    raise CheckpointError(
        f"{path}: not a known kind of weights file, got the keys {list(weights)[:3]}. Known "
        f"are checkpoints of this project, official DEIMv2 files, and files of the backbone, such as "
        f"distilled ViT-Tiny files and DINOv3 files of Meta or Hugging Face."
    )


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors and join queries, keys and values; DINOv3 masks the key bias, so it is 0."""
    feed_forward = {"up_proj": "fc1", "down_proj": "fc2"}
    if any(".mlp.gate_proj." in key for key in state):
        feed_forward = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in HUGGING_FACE_KEYS:
            key = pattern.sub(replacement, key)
        for theirs, ours in feed_forward.items():
            key = key.replace(f".mlp.{theirs}.", f".mlp.{ours}.")
        renamed[key] = value.flatten(0, 1) if key == "mask_token" and value.ndim == 3 else value
    joined = {key: value for key, value in renamed.items() if ".attention." not in key}
    for key in [key for key in renamed if key.endswith(".attention.q_proj.weight")]:
        prefix = key.removesuffix("attention.q_proj.weight")
        for kind in ("weight", "bias"):
            query = renamed[f"{prefix}attention.q_proj.{kind}"]
            keys = renamed.get(f"{prefix}attention.k_proj.{kind}", torch.zeros_like(query))
            value = renamed[f"{prefix}attention.v_proj.{kind}"]
            joined[f"{prefix}attn.qkv.{kind}"] = torch.cat([query, keys, value])
    return joined


def _raise_if_non_finite(state: dict[str, Tensor], path: Path) -> None:
    """Drop bias masks that were never filled. Any other NaN is an error."""
    for key in find_non_finite((key, value) for key, value in state.items() if key.endswith("bias_mask")):
        del state[key]  # the mask is a constant, which the model fills itself
    problem = describe_non_finite(state)
    if problem:
        raise CheckpointError(f"{path}: {problem}. {DIVERGED}")


def _log(report: LoadReport, source: object, *, missing: list[str], unexpected: list[str]) -> None:
    logger.info("%s: loaded %.1f %% of the %s", source, 100 * report.share, report.part)
    if report.replaced:
        logger.info("the file has other classes; random weights for: %s", ", ".join(report.replaced))
    if report.adapted:
        logger.info("adapted to the number of image channels: %s", ", ".join(report.adapted))
    constant = ("num_points_scale", "bias_mask", "periods", "rope_embed.periods")
    lost = [key for key in missing if not key.endswith(constant)]
    if lost:
        logger.warning("not in the file, random weights for: %s", ", ".join(lost))
    if unexpected:
        logger.warning("in the file, but not in the model: %s", ", ".join(unexpected))
