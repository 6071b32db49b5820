"""Detectors by the name of a shipped size, and the name of a detector."""

from dataclasses import replace
from typing import Final

from deim.config.catalog import SIZES, find_size
from deim.config.loader import load_block
from deim.model.backbone.timm import RANDOM, TimmOptions
from deim.model.detector import Detector, ModelOptions

SIZES_BESIDE_DEIMV2: Final = ("nano", "lite")
"""Sizes that are not DEIMv2's."""


def load_size(name: str) -> ModelOptions:
    """Read the architecture of one of the shipped sizes, `SIZES`.

    Raises:
        ConfigError: If there is no such size.
    """
    return load_block(find_size(name, "build_variant"), "model", ModelOptions)


def build_variant(name: str, *, num_classes: int) -> Detector:
    """Build one of the shipped sizes, `SIZES`, with random weights.

    Raises:
        ConfigError: If there is no such size.
    """
    return Detector(load_size(name), num_classes)


def describe_architecture(options: ModelOptions) -> str:
    """Return `nano`, `lite` or `deimv2-m` if a model is exactly of that size, and `custom` otherwise.

    Starting weights do not matter, nor does denoising, which is for training only.
    """
    architecture = _without_training(options)
    size = next((size for size in SIZES if _without_training(load_size(size)) == architecture), None)
    return "custom" if size is None else size if size in SIZES_BESIDE_DEIMV2 else f"deimv2-{size}"


def _without_training(options: ModelOptions) -> ModelOptions:
    decoder = replace(options.decoder, num_denoising=0, label_noise_ratio=0.0, box_noise_scale=0.0)
    backbone = options.backbone
    if isinstance(backbone, TimmOptions):
        backbone = replace(backbone, weights=RANDOM, frozen_stages=0)
    return replace(options, decoder=decoder, backbone=backbone, init_from=None)
