"""The choice of the text encoder: a new one is added to the union and to the `match`."""

from dataclasses import dataclass

from deim.config.loader import decode
from deim.config.nodes import Node
from multimodal.encoders.hashed import HashedEncoderOptions, HashedTextEncoder
from multimodal.encoders.interface import TextEncoder
from multimodal.encoders.open_clip import OpenClipEncoderOptions, load_open_clip_encoder

TextEncoderOptions = OpenClipEncoderOptions | HashedEncoderOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    encoder: TextEncoderOptions


def read_encoder_options(block: Node) -> TextEncoderOptions:
    """Read the block `task.encoder` outside a config, such as from the arguments of a command.

    Args:
        block: Its `type` and options, with the places where they were given.

    Raises:
        ConfigError: If there is no such encoder, or it has no such option.
    """
    return decode(_Choice, Node({"encoder": block}, block.where), path="task").encoder


def build_encoder(options: TextEncoderOptions) -> TextEncoder:
    """Build a text encoder.

    Args:
        options: The `encoder` block of a text fusion.

    Raises:
        ConfigError: If open_clip is not installed, or does not know the model or the tag.
        CheckpointError: If the weights are missing or damaged, or do not fit the model.
    """
    match options:
        case HashedEncoderOptions():
            return HashedTextEncoder()
        case OpenClipEncoderOptions():
            return load_open_clip_encoder(options)
