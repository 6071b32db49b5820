"""Embed the texts of each class into the text bank of phase 2, and show how alike the classes are in words.

python tools/build_text_bank.py configs/prompts/industrial.yml --checkpoint outputs/deimv2_1024/best.pth
python tools/build_text_bank.py configs/prompts/industrial.yml --weights weights/ViT-B-32
python tools/build_text_bank.py configs/prompts/industrial.yml --encoder hashed
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from deim.engine.checkpoints import read_checkpoint
from deim.errors import ConfigError, DeimError
from multimodal.encoders.build import TextEncoderOptions, build_encoder
from multimodal.encoders.hashed import HashedEncoderOptions
from multimodal.encoders.open_clip import OpenClipEncoderOptions
from multimodal.encoders.open_clip_files import DEFAULT_MODEL, DEFAULT_WEIGHTS
from multimodal.prompts import load_prompts
from multimodal.text_bank import CLOSE_COSINE, TextBank, build_text_bank, class_cosines, save_text_bank


def build(args: argparse.Namespace) -> None:
    """Read the prompts, embed them, write the bank and print what it says."""
    prompts = load_prompts(args.prompts)
    class_names = args.classes
    if args.checkpoint is not None:
        class_names = read_checkpoint(args.checkpoint)["class_names"]
    bank = build_text_bank(
        prompts, build_encoder(_encoder_options(args)), class_names, where=str(args.prompts)
    )
    save_text_bank(bank, args.output)
    print(_describe(bank))
    print(f"\ntext bank  {args.output}")


def _encoder_options(args: argparse.Namespace) -> TextEncoderOptions:
    if args.encoder == "open_clip":
        return OpenClipEncoderOptions(weights=args.weights or DEFAULT_WEIGHTS, clip_model=args.model)
    if args.model or args.weights:
        raise ConfigError("--model, --weights: the encoder 'hashed' has neither. Leave them out.")
    return HashedEncoderOptions(type="hashed")


def _describe(bank: TextBank) -> str:
    """Sizes, encoder, both matrices and the classes that are hardly told apart."""
    num_classes, num_prompts, dim = bank.prompts.shape
    cosines = class_cosines(bank)
    lines = [
        f"{num_classes} classes with {num_prompts} prompts, {len(bank.background)} of the background, "
        f"{dim} numbers each",
        f"encoder  {bank.encoder}",
        f"weights  {bank.weights_hash or 'none'}",
        "\ncosines between classes, raw",
        _matrix(bank.class_names, cosines.raw),
        "\ncentered: less the mean over classes, as the fusion head starts",
        _matrix(bank.class_names, cosines.centered),
    ]
    lines += [
        f"\nwarning: {pair.first} and {pair.second}: cosine {pair.raw:.3f} raw, {pair.centered:.3f} centered. "
        f"Above {CLOSE_COSINE} texts are hardly told apart: say more of what sets them apart."
        for pair in cosines.close_pairs
    ]
    return "\n".join(lines)


def _matrix(names: Sequence[str], cosines: Tensor) -> str:
    width = max(len(name) for name in names)
    head = " " * width + "".join(f"{label:>8}" for label in range(len(names)))
    rows = [
        f"{name:<{width}}" + "".join(f"{value:>8.3f}" for value in row)
        for name, row in zip(names, cosines.tolist(), strict=True)
    ]
    return "\n".join([head, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, report errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", type=Path, help="YAML file, such as configs/prompts/industrial.yml")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--checkpoint", type=Path, help="best.pth of the detector; gives the classes")
    order.add_argument("--classes", nargs="+", metavar="NAME", help="or their names; default: as in the file")
    parser.add_argument(
        "--encoder",
        choices=["open_clip", "hashed"],
        default="open_clip",
        help="default: open_clip; hashed needs no weights and has no meaning",
    )
    parser.add_argument("--model", help=f"of open_clip; default: {DEFAULT_MODEL}, or what the folder says")
    parser.add_argument(
        "--weights",
        metavar="TAG_OR_PATH",
        help=f"of open_clip: tag, model folder or file; default: {DEFAULT_WEIGHTS}",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/text_bank.safetensors"),
        help="default: outputs/text_bank.safetensors",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        build(args)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
