"""The detector: backbone, encoder, decoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from deim.model.backbone.spatial_adapter import SpatialAdapterBackbone
from deim.model.decoder.decoder import Decoder
from deim.model.encoder.hybrid import HybridEncoder
from deim.structures import ModelOutput, Target

SIZE_MULTIPLE = 32


class Detector(nn.Module):
    """DEIMv2 detector.

    Source:
        DEIMv2 (arXiv:2509.20787).
    """

    def __init__(self, backbone: SpatialAdapterBackbone, encoder: HybridEncoder, *, decoder: Decoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.backbone.vit.patch_embed.proj.in_channels

    @property
    def num_classes(self) -> int:
        """C, the classes that are told apart."""
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
            targets: Ground truth, an image each; used in training mode for denoising queries.
            max_boxes: Boxes of the fullest image, where `images` are a part of a larger batch: with it, and a
                `noise_seed` in each target, the parts get the denoising queries that the whole would.
            with_queries: In evaluation mode, give `query_features` (B, Q, D), what the last class head reads,
                too.

        Returns:
            `pred_logits` (B, Q, C) and `pred_boxes` (B, Q, 4); in training mode all supervised outputs too.

        Raises:
            ValueError: If the images have other channels, the height or the width is not a multiple of 32,
                the numbers of images and targets differ, or the queries are asked for in training mode.
        """
        if images.shape[-3] != self.channels:
            raise ValueError(
                f"images: got {images.shape[-3]} channels, the detector is built for {self.channels}. Give "
                f"it images as data.channels says."
            )
        height, width = images.shape[-2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise ValueError(
                f"images: got {height}x{width} px. Height and width must be multiples of {SIZE_MULTIPLE}. "
                f"Resize or pad the images, or set image_size to such a size."
            )
        if targets is not None and len(targets) != images.shape[0]:
            raise ValueError(f"targets: got {len(targets)} for {images.shape[0]} images. Give one an image.")
        features = self.encoder(self.backbone(images))
        return self.decoder(features, targets, max_boxes=max_boxes, with_queries=with_queries)
