"""What a report was made from: data, weights, machine and versions."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

DISTRIBUTIONS = {
    "deim": "deim-defects",
    "torch": "torch",
    "torchvision": "torchvision",
    "faster_coco_eval": "faster-coco-eval",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """Which annotations were scored; the counts come from the metrics."""

    annotations_file: str
    """Name of the annotation file, without its folder."""
    sha256: str
    """Hash of the annotations, see `CocoSplit.annotations_sha256`."""
    image_dir: str
    """Where the images lay, for the pictures."""
    normal_class: str | None
    """Class that marks a good surface; None if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """Which weights were scored."""

    path: str
    """Where the checkpoint lay."""
    sha256: str
    """Hash of that file, see `sha256_of_file`."""
    epoch: int | None
    """0-based epoch it was written after; None if it holds weights only."""
    weights: Literal["ema", "raw"]
    """Averaged weights or those of the last step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """Which model was scored."""

    name: str
    """Name of the model, such as `deimv2_s`."""
    parameters: int
    """Number of its parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimePerImage:
    """Mean time for one image, in milliseconds; None where it was not measured."""

    network: float | None
    """Network and postprocess."""
    total: float | None
    """Reading and preparing the image included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What the predictions of a report came from."""

    split: str
    """Name of the split, such as `val`."""
    dataset: DatasetInfo
    checkpoint: CheckpointInfo
    model: ModelInfo
    image_size_hw: tuple[int, int]
    """Size of the network input, in pixels."""
    resize: str
    """How images were brought to that size, such as `stretch` or `letterbox`."""
    tiles: Mapping[str, Any] | None = None
    """`TilesOptions`, by which images were cut first; None if they were not."""
    time_per_image_ms: TimePerImage
    device: str
    """The device in words, such as `cpu` or `NVIDIA RTX 3060`."""
    versions: Mapping[str, str | None]
    """Version of each package, see `installed_versions`."""
    max_detections: int
    """Raw detections kept an image."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"image_size_hw": list(self.image_size_hw)}


def provenance_from_report(report: Mapping[str, Any]) -> Provenance:
    """What a report was made from, to make it again.

    Args:
        report: From `build_report`.
    """
    dataset = {name: report["dataset"][name] for name in DatasetInfo.__dataclass_fields__}
    height, width = report["image_size_hw"]
    return Provenance(
        split=report["split"],
        dataset=DatasetInfo(**dataset),
        checkpoint=CheckpointInfo(**report["checkpoint"]),
        model=ModelInfo(**report["model"]),
        image_size_hw=(height, width),
        resize=report["resize"],
        tiles=report.get("tiles"),  # reports of before have none
        time_per_image_ms=TimePerImage(**report["time_per_image_ms"]),
        device=report["device"],
        versions=report["versions"],
        max_detections=report["max_detections"],
    )


def installed_versions() -> dict[str, str | None]:
    """Versions of what can change the numbers.

    Returns:
        Version by `deim`, `torch`, `torchvision`, `faster_coco_eval` and `python`; None for a package that
        runs from a checkout without being installed.
    """
    versions = {key: _version(distribution) for key, distribution in DISTRIBUTIONS.items()}
    return {**versions, "python": platform.python_version()}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
