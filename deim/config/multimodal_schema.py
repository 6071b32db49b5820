"""Options of phase 2: the frozen detector, its text, the fusion head and its training."""

from dataclasses import dataclass, field
from typing import Literal

from deim.config.checks import below, check, not_fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenClipEncoderConfig:
    """Texts are embedded by the text tower of a CLIP model."""

    type: Literal["open_clip"] = "open_clip"
    weights: str = "laion2b_s34b_b79k"
    """Tag of pretrained weights, or path of a model folder or weights file."""
    clip_model: str | None = None
    """Name of the model; null: ViT-B-32 for a tag, or what the folder says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedEncoderConfig:
    """Texts become bags of words without meaning: needs no weights; for tests and the quickstart."""

    type: Literal["hashed"]


HybridEncoderOptions = OpenClipEncoderConfig | HashedEncoderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionLossConfig:
    """Weights of the terms of phase 2; boxes have none."""

    mal: float = 1.0
    """Weight of the matchability-aware classification loss on the fused logits."""
    contrastive: float = 0.5
    """Weight of the choice between the text of the classes and of the background."""
    margin: float = 0.25
    """Weight of the distance between classes that the detector confuses."""
    anchor: float = 0.1
    """Weight of the nearness of the adapted text to the text itself."""

    def __post_init__(self) -> None:
        check(
            below(0, mal=self.mal, contrastive=self.contrastive, margin=self.margin, anchor=self.anchor),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MultimodalConfig:
    """Phase 2: a head that fuses text into the class scores of a frozen detector.

    Model, image size, data, loss and evaluation are the detector's where the experiment does not give them.
    """

    detector: str
    """Checkpoint of phase 1, such as outputs/deimv2_1024/best.pth; it stays as it is."""
    text_bank: str | None = None
    """File of tools/build_text_bank.py; null embeds `prompts` by `encoder` when the run starts."""
    prompts: str = "configs/prompts/industrial.yml"
    """YAML file with the texts of each class; not used with `text_bank`."""
    encoder: HybridEncoderOptions = field(default_factory=OpenClipEncoderConfig)
    """What embeds the prompts; not used with `text_bank`."""
    hidden_dim: int = 1024
    """Hidden width of the projection of the queries."""
    adapter_dim: int = 256
    """Hidden width of the adapter of the text."""
    class_head_from_epoch: int | None = None
    """First epoch (0-based) in which the detector's last class head is trained too; null never does."""
    confusion_share: float = 0.05
    """Classes of which the detector confuses more than this share of boxes are pulled apart; [0, 1]."""
    class_tolerance: float = 0.01
    """Loss of AP of a class, in [0, 1], beyond which the detector alone is said to be better for it."""
    cache: bool = True
    """Keep what the frozen detector finds in files, and read it from the second epoch on."""
    cache_dir: str = "outputs/feature_cache"
    """Folder of these files; each combination of detector, data and augmentation has its own in it."""
    cached_views: int = 1
    """Augmented views of each image that are cached, one an epoch in turn; 1 without augmentation."""
    loss: FusionLossConfig = field(default_factory=FusionLossConfig)

    def __post_init__(self) -> None:
        check(
            [
                *below(
                    1,
                    hidden_dim=self.hidden_dim,
                    adapter_dim=self.adapter_dim,
                    cached_views=self.cached_views,
                ),
                *below(0, class_head_from_epoch=self.class_head_from_epoch),
                *not_fraction(confusion_share=self.confusion_share, class_tolerance=self.class_tolerance),
            ]
        )
