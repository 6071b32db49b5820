"""Pretrain the backbone of a detector on images without annotations, for `model.init_from` of deim train.

Images below data.root are taken, a tenth of them to validate on. If the folder is a dataset, those of its
training and validation splits are taken, and the boxes are not used.

Examples:
  deim pretrain -c pretrain_nano --set data.root=data/unlabeled
  deim pretrain -c pretrain_nano --set data.root=data/unlabeled task.method.type=masked_images
  deim pretrain --resume outputs/pretrain_nano
  deim train -c deimv2_640 --set model=nano model.init_from=outputs/pretrain_nano/backbone.safetensors
"""

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deim.cli.arguments import new_parser
from deim.cli.train import Finish, add_run_arguments, build_from_arguments, run_training

if TYPE_CHECKING:
    from torch import nn

    from deim.config.schema import Config
    from deim.engine.distributed import DistributedContext
    from deim.engine.trainer import Trainer
    from deim.engine.validation import Validation


def build_parser() -> ArgumentParser:
    """Return the parser of `deim pretrain`."""
    parser = new_parser("pretrain", __doc__)
    add_run_arguments(parser)
    return parser


def run(args: Namespace) -> None:
    """Pretrain and write the backbone; with torchrun, in every process."""
    run_training(args, command="pretrain", prepare=_prepare)


def _prepare(
    config: "Config", distributed: "DistributedContext", *, args: Namespace, resume_from: Path | None
) -> "tuple[Trainer, Finish]":
    from deim.data.unlabeled import build_unlabeled_splits
    from deim.engine.pretraining_task import build_held_out_loader, validate_pretraining

    splits = build_unlabeled_splits(config.data)
    held_out = build_held_out_loader(config, splits.val, distributed)

    def validate(model: "nn.Module") -> "Validation":
        return validate_pretraining(trainer.run, model, held_out)

    trainer = build_from_arguments(
        config, splits, distributed, validate=validate, args=args, resume_from=resume_from
    )
    return trainer, partial(_write, trainer)


def _write(trainer: "Trainer", folder: Path, distributed: "DistributedContext") -> None:
    """Write the best weights as a file to start from."""
    from deim.engine.pretraining_task import BACKBONE_FILE, write_backbone

    if distributed.is_main:
        best = trainer.progress.best
        path = folder / BACKBONE_FILE
        write_backbone(trainer.checkpoints.best_path, path)
        if best is not None:
            print(f"\nbest epoch: {best.epoch + 1}, loss of held-out images {-best.score:.4f}")
        print(f"backbone   {path}\n\nTo start from it: deim train -c CONFIG --set model.init_from={path}")
