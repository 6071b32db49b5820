"""Flip single bits in each kind of file that the project writes, and count what reading does about it.

    python -m tests.bit_flips --flips 1000

A flip is *noticed* if reading raises an error of the project, logs a warning, or a cache says that it has no
such entry; *harmless* if the same values are read; *silent* otherwise, which must never happen. The exit code
is 1 if any is silent.
"""

import argparse
import logging
import lzma
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deim.config.loader import config_from_dict, config_to_yaml, load_config
from deim.engine.checkpoints import read_checkpoint
from deim.engine.log import RunLog
from deim.engine.run_folder import prepare_run_dir
from deim.errors import DeimError
from deim.metrics.convergence import read_convergence
from deim.report.files import ReportFiles, read_report_inputs
from multimodal.feature_cache import DetectorOutputStore
from multimodal.text_bank import load_text_bank
from tests.conftest import TINY
from tests.test_fuzz import (
    make_bank,
    make_cached_image,
    make_checkpoint,
    make_detector_outputs,
    make_fused_checkpoint,
    make_log,
    make_report_files,
    open_image_cache,
)

ENDS_SHARE = 0.05
"""Every second flip falls into this share of a file at its start or its end, where its structure is."""


@dataclass(frozen=True)
class SealedFile:
    """A kind of file: how a good one is made, and what reads it; None stands for a cache without an entry."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]


def make_old_checkpoint(root: Path) -> Path:
    """A checkpoint of the first version."""
    root.mkdir()
    content = (Path(__file__).parent / "fixtures" / "wave1" / "best.pth.xz").read_bytes()
    (root / "best.pth").write_bytes(lzma.decompress(content))
    return root / "best.pth"


def make_config(root: Path) -> Path:
    """The config.yml of a run."""
    config = config_from_dict(TINY, where="tiny", overrides=[f"data.root={root}", f"output_dir={root}"])
    with prepare_run_dir(root, config_yaml=config_to_yaml(config), continues_here=False):
        return root / "config.yml"


def table_of(name: str) -> Callable[[Path], Path]:
    return lambda root: getattr(ReportFiles(make_report_files(root)), name)


def read_log(path: Path) -> object:
    """Read a log for its report, and for a resumed run, without changing it."""
    content = path.read_bytes()
    convergence = read_convergence(path, planned_epochs=8)
    RunLog(path.parent).keep_until(epoch=5, step=15)
    kept = path.read_bytes()
    path.write_bytes(content)
    return convergence, kept.count(b"\n")


KINDS: Mapping[str, SealedFile] = {
    "last.pth": SealedFile(make_checkpoint, read_checkpoint),
    "best.pth of the first version": SealedFile(make_old_checkpoint, read_checkpoint),
    "best.pth with text fusion": SealedFile(make_fused_checkpoint, read_checkpoint),
    "text bank": SealedFile(make_bank, load_text_bank),
    "cached image": SealedFile(make_cached_image, lambda path: open_image_cache(path.parents[1]).get(0)),
    "cached detector outputs": SealedFile(
        make_detector_outputs, lambda path: DetectorOutputStore(path.parents[1]).read((0, 0))
    ),
    "report.json": SealedFile(make_report_files, read_report_inputs),
    "predictions.json": SealedFile(
        table_of("predictions"), lambda path: read_report_inputs(path.parents[1] / "report.json")
    ),
    "ground_truth.json": SealedFile(
        table_of("ground_truth"), lambda path: read_report_inputs(path.parents[1] / "report.json")
    ),
    "metrics.jsonl": SealedFile(make_log, read_log),
    "config.yml": SealedFile(make_config, load_config),
}


def flip_bits(kind: str, root: Path, *, flips: int, seed: int = 0) -> Counter[str]:
    """Return how many flips of a kind of file were `noticed`, `harmless` and `silent`."""
    file, rng, outcomes = KINDS[kind], random.Random(f"{kind} {seed}"), Counter[str]()
    path = file.make(root)
    good = path.read_bytes()
    expected = _plain(file.read(path))
    for number in range(flips):
        bit = _choose_bit(8 * len(good), rng, at_end=number % 2 == 1)
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        outcomes[_outcome(file, path, expected)] += 1
    path.write_bytes(good)
    return outcomes


def _choose_bit(num_bits: int, rng: random.Random, *, at_end: bool) -> int:
    if not at_end:
        return rng.randrange(num_bits)
    place = rng.randrange(max(1, round(ENDS_SHARE * num_bits)))
    return rng.choice([place, num_bits - 1 - place])


def _outcome(file: SealedFile, path: Path, expected: object) -> str:
    listener = _Listener()
    logging.getLogger().addHandler(listener)
    try:
        value = file.read(path)
    except DeimError:
        return "noticed"
    finally:
        logging.getLogger().removeHandler(listener)
    if value is None or listener.has_heard:
        return "noticed"
    return "harmless" if _plain(value) == expected else "silent"


class _Listener(logging.Handler):
    """Hears whether anything is logged as a warning."""

    has_heard = False

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        self.has_heard = True


def _plain(value: Any) -> object:
    """Turn what was read into values that can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if is_dataclass(value):
        return [(field.name, _plain(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, Mapping):
        return [(repr(key), _plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    names = () if isinstance(value, type) else getattr(type(value), "__slots__", ())
    return [_plain(getattr(value, name)) for name in names] or repr(value)


def main() -> int:
    """Print a row for each kind of file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=1000, help="Flips for each kind of file.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the choice of bits.")
    args = parser.parse_args()
    rows, num_silent = ["| file | flips | noticed | harmless | silent |", "|---|---|---|---|---|"], 0
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = flip_bits(kind, Path(folder, "files"), flips=args.flips, seed=args.seed)
        counts = [outcomes[name] for name in ("noticed", "harmless", "silent")]
        num_silent += outcomes["silent"]
        rows.append(f"| {kind} | {args.flips} | {' | '.join(map(str, counts))} |")
    sys.stdout.write("\n".join(rows) + "\n")
    return int(num_silent > 0)


if __name__ == "__main__":
    sys.exit(main())
