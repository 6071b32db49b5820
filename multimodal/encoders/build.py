"""What a text encoder offers, and its choice: a new one is added to the union and to the `match`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from deim.config.loader import decode
from deim.config.nodes import Node
from multimodal.encoders.hashed import HashedEncoderOptions, HashedTextEncoder
from multimodal.encoders.open_clip import OpenClipEncoderOptions, load_open_clip_encoder

TextEncoderOptions = OpenClipEncoderOptions | HashedEncoderOptions


class TextEncoder(Protocol):
    """Turns texts into vectors whose cosines can be compared; only building a text bank needs one."""

    @property
    def identity(self) -> str:
        """Name of the encoder and its weights, as reports and checkpoints show it."""

    @property
    def weights_hash(self) -> str | None:
        """SHA-256 of the weights; None if there are none."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed N texts that hold a word each: (N, D) float32 on the CPU, of norm 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    encoder: TextEncoderOptions


def read_encoder_options(block: Node) -> TextEncoderOptions:
    """Read the block `task.encoder` outside a config; each node names the argument that gave it.

    Raises:
        ConfigError: If there is no such encoder, or it has no such option.
    """
    return decode(_Choice, Node({"encoder": block}, block.where), path="task").encoder


def build_encoder(options: TextEncoderOptions) -> TextEncoder:
    """Build a text encoder.

    Raises:
        ConfigError: If open_clip is not installed, or does not know the model or the tag.
        CheckpointError: If the weights are missing or damaged, or do not fit the model.
    """
    match options:
        case HashedEncoderOptions():
            return HashedTextEncoder()
        case OpenClipEncoderOptions():
            return load_open_clip_encoder(options)
