"""Embed the texts of the classes into a text bank, and show how similar the classes are as text.

Examples:
  deim text-bank configs/prompts/industrial.yml --checkpoint outputs/deimv2_1024/best.pth
  deim text-bank configs/prompts/industrial.yml --weights weights/ViT-B-32
  deim text-bank configs/prompts/industrial.yml --encoder hashed
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from deim.cli.arguments import new_parser
from deim.config.catalog import find_config
from deim.files import refuse_overwriting

DEFAULT_MODEL = "ViT-B-32"
DEFAULT_WEIGHTS = "laion2b_s34b_b79k"


def build_parser() -> ArgumentParser:
    """Return the parser of `deim text-bank`."""
    parser = new_parser("text-bank", __doc__)
    add = parser.add_argument
    add("prompts", type=Path, help="YAML file of texts, such as configs/prompts/industrial.yml.")
    classes = parser.add_mutually_exclusive_group()
    what = "Checkpoint of the detector, whose classes the text bank gets."
    classes.add_argument("--checkpoint", type=Path, help=what)
    what = "Names of the classes; without it, those of the YAML file."
    classes.add_argument("--classes", nargs="+", metavar="NAME", help=what)
    what = "Text encoder, the type of `task.encoder`. hashed needs no weights, but has no meaning."
    add("--encoder", default="open_clip", metavar="TYPE", help=what)
    what = f"Model of open_clip; without it, the model that the weights folder names, or {DEFAULT_MODEL}."
    add("--model", help=what)
    what = f"Weights of the encoder; of open_clip a tag, a folder or a file, without it {DEFAULT_WEIGHTS}."
    add("--weights", metavar="TAG_OR_PATH", help=what)
    add("--output", type=Path, default=Path("outputs/text_bank.safetensors"), help="File to write.")
    return parser


def run(args: Namespace) -> None:
    """Read the prompts, embed them, write the text bank and describe it."""
    from deim.config.nodes import Node
    from deim.engine.checkpoints import find_checkpoint, read_checkpoint
    from multimodal.encoders.build import build_encoder, read_encoder_options
    from multimodal.prompts import load_prompts
    from multimodal.text_bank import build_text_bank, describe_text_bank, save_text_bank

    prompts_path = find_config(args.prompts)
    checkpoint = None if args.checkpoint is None else find_checkpoint(args.checkpoint)
    weights = None if args.weights is None else Path(args.weights)
    refuse_overwriting(
        outputs=[args.output],
        inputs=[path for path in (prompts_path, checkpoint, weights) if path is not None and path.exists()],
    )
    prompts = load_prompts(prompts_path)
    class_names = args.classes
    if checkpoint is not None:
        class_names = read_checkpoint(checkpoint).class_names
    given = {
        "type": Node(args.encoder, "--encoder"),
        "clip_model": Node(args.model, "--model"),
        "weights": Node(args.weights, "--weights"),
    }
    block = Node({name: node for name, node in given.items() if node.value is not None}, "--encoder")
    encoder = build_encoder(read_encoder_options(block))
    bank = build_text_bank(prompts, encoder, class_names, where=str(args.prompts))
    save_text_bank(bank, args.output)
    print(describe_text_bank(bank))
    print(f"\ntext bank  {args.output}")
