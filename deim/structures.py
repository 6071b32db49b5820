"""The data that passes between the rooms, and the legend of shapes and box formats.

Shape letters, everywhere in the project:
    B batch · Q queries · C classes · D hidden dim · L levels · H, W height and width · N boxes of an image ·
    K kept detections · R bins of the edge distribution (`reg_max`).

Box formats, always in the name of the variable or the function:
    cxcywh: center x, center y, width, height. In `Target.boxes` and `pred_boxes` as fractions of the network
        input, in [0, 1].
    xyxy: left, top, right, bottom. In `Detections` in pixels of the original image.
    xywh: left, top, width, height in pixels: the format of COCO files, used only to read and write them.

Sizes are (height, width) and end in `_hw`; any other order says so in the name.
"""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Position of the network input in the original image.

    A point at fractions (x, y) of the network input is the pixel (x · span_w + shift_x, y · span_h + shift_y)
    of the original. A stretched image has span = original size and shift = 0; a letterboxed one has a longer
    span on the padded axis.
    """

    orig_size_hw: tuple[int, int]
    """Size of the original image, in pixels."""
    span_hw: tuple[float, float]
    """Size of the whole network input, padding included, in pixels of the original."""
    shift_yx: tuple[float, float]
    """Position of the input's top left corner in the original, in pixels; of a whole image 0 or, with
    padding, negative."""
    tile_xyxy: tuple[int, int, int, int] | None = None
    """The part of the original that the input shows, in pixels; None if it shows all of it."""


class Target(TypedDict):
    """The ground truth of one image, as the network sees it. N may be 0."""

    boxes: Tensor
    """(N, 4) float, cxcywh in [0, 1]."""
    labels: Tensor
    """(N,) int64, 0-based class index."""
    area: NotRequired[Tensor]
    """(N,) float, box area in pixels of the network input."""
    image_id: NotRequired[int]
    """The id in the annotation file."""
    file_name: NotRequired[str]
    """The name in the annotation file, for messages."""
    placement: NotRequired[Placement]
    """Where the input lies in the original image."""
    noise_seed: NotRequired[int]
    """Seed of the image's denoising noise in this epoch; without it torch's global generator is used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoisingMeta:
    """The denoising queries of a batch, as the loss needs them."""

    query_idx: tuple[Tensor, ...]
    """For each image (num_groups · N,) int64, the positive queries of its boxes, group by group."""
    target_idx: tuple[Tensor, ...]
    """For each image (num_groups · N,) int64, the box that each of these queries was made from."""
    num_groups: int
    """Number of noised copies of every box."""
    num_queries: int
    """Denoising queries of an image: positives, negatives and padding."""


class LayerOutput(TypedDict):
    """Output of one supervised head for a batch."""

    pred_logits: Tensor
    """(B, Q, C) float, before the sigmoid."""
    pred_boxes: Tensor
    """(B, Q, 4) float, cxcywh; about [0, 1], not clipped."""
    pred_corners: NotRequired[Tensor]
    """(B, Q, 4·(R+1)) float: logits of the distances of left, top, right, bottom edge; refining layers."""
    ref_points: NotRequired[Tensor]
    """(B, Q, 4) float, cxcywh: the boxes that `pred_corners` refine, without gradient."""


class ModelOutput(LayerOutput):
    """Output of the detector: the last layer's and, in training mode, all other supervised outputs."""

    aux_outputs: NotRequired[list[LayerOutput]]
    """All decoder layers except the last, in order."""
    pre_outputs: NotRequired[LayerOutput]
    """Box head of the first layer, before any refinement by distributions."""
    enc_outputs: NotRequired[LayerOutput]
    """The encoder tokens that were selected as queries."""
    dn_outputs: NotRequired[list[LayerOutput]]
    """Denoising queries through all decoder layers; absent if no image of the batch has a box."""
    dn_pre_outputs: NotRequired[LayerOutput]
    """Denoising queries through the first layer's box head."""
    dn_meta: NotRequired[DenoisingMeta]
    """The denoising queries and their boxes."""
    bin_values: NotRequired[Tensor]
    """(R+1,) float, ascending: the distance that each bin of `pred_corners` stands for."""
    reg_scale: NotRequired[Tensor]
    """(1,) float: distances are in units of box side / reg_scale."""
    query_features: NotRequired[Tensor]
    """(B, Q, D) float: input of the last class head; only in evaluation mode and on request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """The detections of one image, best score first."""

    boxes_xyxy: Tensor
    """(K, 4) float, pixels of the original image."""
    scores: Tensor
    """(K,) float in [0, 1], descending."""
    labels: Tensor
    """(K,) int64, 0-based class index."""
    queries: Tensor
    """(K,) int64, the query of each detection. A query may give several, with different labels. Queries of an
    image in tiles are numbered through its tiles."""

    def take(self, kept: Tensor) -> "Detections":
        """Select detections by a (K,) bool mask, or by int64 positions in ascending order."""
        return Detections(
            boxes_xyxy=self.boxes_xyxy[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            queries=self.queries[kept],
        )
