"""The choice of the text encoder: a new one is added to the union and to the `match`."""

from multimodal.encoders.hashed import HashedEncoderOptions, HashedTextEncoder
from multimodal.encoders.interface import TextEncoder
from multimodal.encoders.open_clip import OpenClipEncoderOptions, load_open_clip_encoder

TextEncoderOptions = OpenClipEncoderOptions | HashedEncoderOptions


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
