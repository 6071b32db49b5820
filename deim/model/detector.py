"""The detector: backbone, encoder, decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from deim.config.catalog import SIZE_OR_BLOCK
from deim.config.checks import WIDTH, check, outside
from deim.model.backbone.interface import Backbone, BackboneOptions, build_backbone
from deim.model.decoder.decoder import Decoder
from deim.model.decoder.options import DecoderOptions
from deim.model.encoder.hybrid import HybridEncoder, HybridEncoderOptions
from deim.structures import ModelOutput, Target


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """The detector's architecture and the weights it starts from.

    A config may give a shipped size in place of the options, as `model: m` or `model: {size: m}`.
    """

    description = SIZE_OR_BLOCK
    loader_keys = ("size",)
    hidden_dim: int
    """Width of encoder and decoder; a multiple of 4 and of the numbers of attention heads."""
    backbone: BackboneOptions
    encoder: HybridEncoderOptions = field(default_factory=HybridEncoderOptions)
    decoder: DecoderOptions = field(default_factory=DecoderOptions)
    init_from: str | None = None
    """Weights to start from: a checkpoint of this project, an official DEIMv2 file, or a backbone file."""

    def __post_init__(self) -> None:
        heads = {max(self.encoder.num_heads, 1), max(self.decoder.num_heads, 1), 4}
        check(
            [
                *outside(4, WIDTH, hidden_dim=self.hidden_dim),
                (
                    any(self.hidden_dim % number != 0 for number in heads),
                    f"hidden_dim: {self.hidden_dim} is not a multiple of 4 and of the numbers of heads",
                ),
            ]
        )


class Detector(nn.Module):
    """DEIMv2 detector (arXiv:2509.20787), built with random weights; `weights.py` loads others."""

    def __init__(self, options: ModelOptions, num_classes: int, *, channels: int = 3) -> None:
        super().__init__()
        self.backbone = build_backbone(options.backbone, options.hidden_dim, in_channels=channels)
        self.encoder = HybridEncoder(options.encoder, options.hidden_dim)
        self.decoder = Decoder(options.decoder, options.hidden_dim, num_classes=num_classes)

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return self.backbone.in_channels

    @property
    def large_parts(self) -> tuple[Backbone, HybridEncoder]:
        """The parts that are compiled, and whose activations may be recomputed."""
        return self.backbone, self.encoder

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return self.decoder.num_classes

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target] | None = None,
        *,
        max_boxes: int | None = None,
        with_queries: bool = False,
    ) -> ModelOutput:
        """Detect objects.

        Args:
            images: (B, channels, H, W) float, normalized; H and W multiples of 32.
            targets: Ground truth, one target for each image; training mode makes denoising queries of it.
            max_boxes: Largest number of boxes in an image of the whole batch, where `images` is a
                micro-batch of it. With it, and a `noise_seed` in each target, the micro-batches get the
                denoising queries that the whole batch would get.
            with_queries: Also return `query_features` (B, Q, D), the input of the last class head. Only in
                evaluation mode.

        Returns:
            `pred_logits` (B, Q, C) and `pred_boxes` (B, Q, 4); in training mode all supervised outputs too.

        Raises:
            ValueError: If the number of channels is wrong, the height or the width is not a multiple of 32,
                the numbers of images and targets differ, or `with_queries` is set in training mode.
        """
        if images.shape[-3] != self.channels:
            raise ValueError(
                f"images: got {images.shape[-3]} channels, the detector is built for {self.channels}. "
                f"Prepare the images with data.channels of its config."
            )
        height, width = images.shape[-2:]
        multiple = self.backbone.strides[-1]
        if height % multiple or width % multiple:
            raise ValueError(
                f"images: got {height}x{width} px. Height and width must be multiples of {multiple}. "
                f"Resize or pad the images, or set image_size to such a size."
            )
        if targets is not None and len(targets) != images.shape[0]:
            raise ValueError(
                f"targets: got {len(targets)} for {images.shape[0]} images. Pass one target for each image."
            )
        features = self.encoder(self.backbone(images))
        return self.decoder(features, targets, max_boxes=max_boxes, with_queries=with_queries)
