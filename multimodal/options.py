"""Options of the task `text_fusion`: the frozen detector, its text, the fusion head and its training."""

from dataclasses import dataclass, field
from typing import Literal

from deim.config.checks import EPOCHS, REPEATS, WIDTH, check, not_fraction, outside
from multimodal.encoders.build import TextEncoderOptions
from multimodal.encoders.open_clip import OpenClipEncoderOptions
from multimodal.loss import FusionLossOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFusionOptions:
    """A head that fuses text into the class scores of a frozen detector.

    Model, image size, data, loss and evaluation are the detector's where the experiment does not give them.
    """

    type: Literal["text_fusion"] = "text_fusion"
    detector: str
    """Checkpoint of a detector, such as outputs/deimv2_1024/best.pth; it is not changed."""
    text_bank: str | None = None
    """File of `deim text-bank`; null embeds `prompts` with `encoder` when the run starts."""
    prompts: str = "configs/prompts/industrial.yml"
    """YAML file with the texts of each class; not used with `text_bank`."""
    encoder: TextEncoderOptions = field(default_factory=OpenClipEncoderOptions)
    """Text encoder of the prompts; not used with `text_bank`."""
    hidden_dim: int = 1024
    """Hidden width of the projection of the queries."""
    adapter_dim: int = 256
    """Hidden width of the adapter of the text."""
    class_head_from_epoch: int | None = None
    """First epoch (0-based) in which the detector's last class head is trained too; null never trains it."""
    confusion_share: float = 0.05
    """Share of boxes in [0, 1] above which a confusion of two classes is penalized by the margin loss."""
    class_tolerance: float = 0.01
    """Decrease of a class's AP, in [0, 1], above which reports recommend the detector alone for it."""
    cache: bool = True
    """Store the outputs of the frozen detector in files, and read them from the second epoch on."""
    cache_dir: str = "outputs/feature_cache"
    """Folder of these files, with a subfolder for each combination of detector, data and augmentation."""
    cached_views: int = 1
    """Augmented views of each image that are stored; epochs use them in turn. 1 without augmentation."""
    loss: FusionLossOptions = field(default_factory=FusionLossOptions)

    def __post_init__(self) -> None:
        sizes = outside(1, WIDTH, hidden_dim=self.hidden_dim, adapter_dim=self.adapter_dim)
        views = outside(1, REPEATS, cached_views=self.cached_views)
        start = outside(0, EPOCHS, class_head_from_epoch=self.class_head_from_epoch)
        shares = not_fraction(confusion_share=self.confusion_share, class_tolerance=self.class_tolerance)
        check([*sizes, *views, *start, *shares])
