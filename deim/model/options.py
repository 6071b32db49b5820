"""TODO."""

from dataclasses import dataclass, field

from deim.config.checks import below, check
from deim.model.backbone.options import DinoV3Options, VitTinyOptions
from deim.model.decoder.options import DecoderOptions
from deim.model.encoder.options import HybridEncoderOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """The detector's architecture and the weights it starts from."""

    name: str
    """Name in logs and reports, such as `deimv2-m`."""
    hidden_dim: int
    """Width of encoder and decoder; a multiple of 4 and of the numbers of heads."""
    backbone: VitTinyOptions | DinoV3Options
    encoder: HybridEncoderOptions = field(default_factory=HybridEncoderOptions)
    decoder: DecoderOptions = field(default_factory=DecoderOptions)
    init_from: str | None = None
    """Weights to start from: a checkpoint of this project, an official DEIMv2 file, or a backbone file."""

    def __post_init__(self) -> None:
        heads = {max(self.encoder.num_heads, 1), max(self.decoder.num_heads, 1), 4}
        check(
            [
                *below(4, hidden_dim=self.hidden_dim),
                (
                    any(self.hidden_dim % number != 0 for number in heads),
                    f"hidden_dim: {self.hidden_dim} is not a multiple of 4 and of the numbers of heads",
                ),
            ]
        )
