"""Damaged and hostile files of every kind: each is read or ends in a message, never in a traceback, soon."""

import json
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deim.cli.evaluate import print_report
from deim.config.loader import config_from_dict, config_to_dict, load_config
from deim.curation.check import check_dataset, read_for_check
from deim.data.formats.read import find_dataset
from deim.data.image_cache import DiskCache
from deim.data.images.input_format import InputFormat
from deim.data.images.load import read_input
from deim.engine.checkpoints import AveragedWeights, Checkpoint, ResumeState, read_checkpoint, save_checkpoint
from deim.engine.log import RunLog
from deim.engine.progress import BestScore, Progress
from deim.engine.seeding import RandomStates
from deim.engine.trained_detector import load_trained
from deim.errors import DeimError
from deim.files import sha256_of_file
from deim.inference.predictor import stored_points
from deim.metrics.assignment import compute_overlaps
from deim.metrics.convergence import describe_convergence, read_convergence
from deim.model.detector import Detector
from deim.model.weights import load_initial_weights
from deim.records import to_json
from deim.report.build import build_report
from deim.report.compare import compare_runs, describe_comparison, read_runs
from deim.report.files import ReportFiles, read_report_inputs, read_tables
from deim.report.schema import read_report, write_record
from deim.structures import Placement
from multimodal.encoders.hashed import HashedTextEncoder
from multimodal.feature_cache import DetectorOutputStore
from multimodal.prompts import load_prompts
from multimodal.task import TASK, read_state
from multimodal.text_bank import build_text_bank, describe_text_bank, load_text_bank, save_text_bank
from tests.conftest import TINY
from tests.data.small_sets import noise, write_small_set
from tests.hostile import spoil
from tests.multimodal.conftest import PROMPTS
from tests.multimodal.fused import trained_fused
from tests.report.random_reports import make_inputs, make_report, report_of

MAX_SECONDS = 4.0
"""A small file may take 2 s; the machine may be busy."""


@dataclass(frozen=True)
class Target:
    """A kind of file: how a good one is made, and what reads it."""

    name: str
    kind: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    """Takes the path that `make` returned."""
    trials: int = 400
    """Files of the default suite."""


FORMAT = InputFormat(size_hw=(64, 64))


def check(root: Path) -> None:
    raws, unread = read_for_check(find_dataset(root))
    check_dataset(raws, unread=unread, input_format=FORMAT, decode=False)


def make_coco(root: Path) -> Path:
    write_small_set(root)
    return root / "annotations" / "train.json"


def make_yolo(root: Path) -> Path:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    noise(1).save(root / "images" / "a.png")
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.2\n1 0.25 0.25 0.1 0.1\n")
    (root / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames:\n  0: pit\n  1: scratch\n")
    return root / "data.yaml"


def make_labels(root: Path) -> Path:
    make_yolo(root)
    return root / "labels" / "a.txt"


def make_voc(root: Path) -> Path:
    root.mkdir(parents=True)
    noise(1).save(root / "a.png")
    (root / "a.xml").write_text(
        "<annotation>\n<filename>a.png</filename>\n<size><width>40</width><height>30</height></size>\n<object>\n"
        "<name>pit</name>\n<bndbox><xmin>4</xmin><ymin>6</ymin><xmax>14</xmax><ymax>18</ymax></bndbox>\n"
        "</object>\n</annotation>\n"
    )
    return root / "a.xml"


def make_image(suffix: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        root.mkdir(parents=True)
        exif = Image.Exif()
        exif[274], exif[282] = 6, 72.0
        noise(1).save(root / f"a{suffix}", exif=exif)
        return root / f"a{suffix}"

    return make


def make_config(root: Path) -> Path:
    root.mkdir(parents=True)
    configs = Path(__file__).parents[1] / "configs"
    (root / "c.yml").write_text(
        f"_base_: {configs / 'quickstart.yml'}\nepochs: 3\nimage_size: 64\ndata:\n  batch_size: 2\n"
        "recipe:\n  lr: 1e-3\n  betas: [0.9, 0.99]\n"
    )
    return root / "c.yml"


def make_prompts(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "prompts.yml").write_text(PROMPTS)
    return root / "prompts.yml"


def make_bank(root: Path) -> Path:
    save_text_bank(
        build_text_bank(load_prompts(make_prompts(root)), HashedTextEncoder()), root / "b.safetensors"
    )
    return root / "b.safetensors"


def read_bank(path: Path) -> None:
    describe_text_bank(load_text_bank(path))


def make_checkpoint(root: Path) -> Path:
    """A checkpoint that training can be resumed from, with operating points."""
    root.mkdir(parents=True)
    config = config_from_dict(TINY, where="tiny", overrides=[f"data.root={root}", f"output_dir={root}"])
    model = Detector(config.model, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    points: Any = to_json(make_report(root / "images").operating_points)
    points["classes"] = [points["classes"][0] | {"name": name} for name in ("pit", "scratch")]
    checkpoint = Checkpoint(
        config=config_to_dict(config),
        task="detection",
        task_state={},
        class_names=("pit", "scratch"),
        category_ids=(3, 7),
        model=model.state_dict(),
        ema=AveragedWeights(model=model.state_dict(), updates=1),
        weights="ema",
        epoch=4,
        best=BestScore(score=0.25, epoch=3, weights="ema"),
        operating_points=points,
        resume=ResumeState(
            optimizer=optimizer.state_dict(),
            scaler={},
            random=RandomStates.capture(),
            progress=Progress(epoch=5, step=20),
            fingerprints={"training": "a"},
            batch_size=4,
            steps_per_epoch=4,
        ),
    )
    save_checkpoint(checkpoint, root / "last.pth")
    return root / "last.pth"


def make_fused_checkpoint(root: Path) -> Path:
    """A checkpoint with text fusion, whose state of the task can be wrong at any depth."""
    path = make_checkpoint(root)
    before = read_checkpoint(path)
    plain = dict(before.config) | {"task": {"type": "text_fusion", "detector": "detector.pth"}}
    config = config_from_dict(plain, where="fused")
    state = trained_fused(config, class_names=before.class_names).task_state
    checkpoint = replace(before, config=config_to_dict(config), task="text_fusion", task_state=state)
    model = TASK.build_stored_model(config, checkpoint, path).state_dict()
    ema = AveragedWeights(model=model, updates=1)
    save_checkpoint(replace(checkpoint, model=model, ema=ema, resume=None), path)
    return path


def read_fused(path: Path) -> None:
    read_detector(path)
    read_state(read_checkpoint(path), path)


def make_cached_image(root: Path) -> Path:
    cache = open_image_cache(root)
    cache.put(0, (torch.zeros(3, 8, 8), Placement(orig_size_hw=(5, 7), span_hw=(8, 8), shift_yx=(0, 0))))
    return next(cache.folder.iterdir())


def open_image_cache(root: Path) -> DiskCache:
    return DiskCache(root, [Path(__file__)], name="train", key="", image_bytes=768, max_bytes=2**20)


def make_detector_outputs(root: Path) -> Path:
    store = DetectorOutputStore(root)
    store.write((0, 0), {"pred_logits": torch.ones(20, 3), "labels": torch.tensor([2])})
    return store.path((0, 0))


def unsealed(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Make files as versions before the seal did: damage is then only noticed by what reads the values."""

    def make_unsealed(root: Path) -> Path:
        path = make(root)
        for sealed in (path, root / "report.json"):
            if sealed.is_file():
                sealed.write_text(re.sub(r'"seal": "crc32:\w+",\s*', "", sealed.read_text()))
        return path

    return make_unsealed


def read_detector(path: Path) -> None:
    trained = load_trained(path, device=torch.device("cpu"))
    stored_points(trained)


def read_starting_weights(path: Path) -> None:
    config = config_from_dict(TINY, where="tiny", overrides=["data.root=x", "output_dir=x"])
    load_initial_weights(Detector(config.model, 2), path)


def make_report_files(root: Path) -> Path:
    """A report, the tables and the log behind it, without its page."""
    inputs = make_inputs(root / "images", num_images=4, num_resamples=2)
    files, truth = ReportFiles(root / "report.json"), inputs.ground_truth
    files.folder.mkdir()
    files.ground_truth.write_text(json.dumps(truth.to_coco()))
    results = list(inputs.detections.to_coco(truth.image_ids, truth.category_ids))
    files.predictions.write_text(json.dumps(results))
    write_record(report_of(inputs, files=hashes_of(files)), files.report)
    return files.report


def hashes_of(files: ReportFiles) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in (files.ground_truth, files.predictions)}


def read_report_again(path: Path) -> None:
    """Print the report and compare it with itself."""
    print_report(build_report(read_report_inputs(path), files={}))
    print_report(read_report(path))
    describe_comparison(compare_runs(read_runs([path, path], split="val"), num_resamples=2))


def read_tables_again(path: Path) -> None:
    """Read tables of a report that knows their present hashes."""
    files = ReportFiles(path.parents[1] / "report.json")
    report = replace(read_report(files.report), files=hashes_of(files))
    compute_overlaps(*read_tables(report, files))


def make_log(root: Path) -> Path:
    root.mkdir(parents=True)
    log = RunLog(root)
    for epoch in range(8):
        log.write("epoch", epoch=epoch, step=epoch * 3, ap=0.1 * epoch, ap50=0.1 * epoch, seconds=2.5)
    return root / "metrics.jsonl"


def read_log(path: Path) -> None:
    convergence = read_convergence(path, planned_epochs=8)
    if convergence is not None:
        describe_convergence(convergence)
    RunLog(path.parent).keep_until(epoch=5, step=15)


TARGETS = [
    Target("coco", "json", make_coco, lambda path: check(path.parents[1])),
    Target("yolo", "yaml", make_yolo, lambda path: check(path.parent)),
    Target("labels", "text", make_labels, lambda path: check(path.parents[1])),
    Target("voc", "xml", make_voc, lambda path: check(path.parent)),
    Target("config", "yaml", make_config, load_config),
    Target("prompts", "yaml", make_prompts, load_prompts),
    Target("checkpoint", "torch", make_checkpoint, read_detector, trials=30),
    Target("starting_weights", "torch", make_checkpoint, read_starting_weights, trials=30),
    Target("text_bank", "safetensors", make_bank, read_bank),
    Target("fused_checkpoint", "torch", make_fused_checkpoint, read_fused, trials=30),
    Target(
        "cached_image",
        "safetensors",
        make_cached_image,
        lambda path: open_image_cache(path.parents[1]).get(0),
        trials=50,
    ),
    Target(
        "detector_outputs",
        "safetensors",
        make_detector_outputs,
        lambda path: DetectorOutputStore(path.parents[1]).read((0, 0)),
        trials=50,
    ),
    Target("report", "json", unsealed(make_report_files), read_report_again),
    Target("sealed_report", "json", make_report_files, read_report_again, trials=50),
    Target(
        "predictions",
        "json",
        unsealed(lambda root: ReportFiles(make_report_files(root)).predictions),
        read_tables_again,
    ),
    Target(
        "ground_truth",
        "json",
        unsealed(lambda root: ReportFiles(make_report_files(root)).ground_truth),
        read_tables_again,
    ),
    Target("log", "log", unsealed(make_log), read_log),
    *(
        Target(f"image{suffix}", "binary", make_image(suffix), lambda path: read_input(path, FORMAT))
        for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp", ".gif")
    ),
]


def run_trials(target: Target, root: Path, *, trials: int, seed: int) -> None:
    path = target.make(root / "set")
    good = path.read_bytes()
    target.read(path)
    rng = random.Random(f"{target.name} {seed}")
    for trial in range(trials):
        content = spoil(good, target.kind, rng)
        path.write_bytes(content)
        start = time.monotonic()
        try:
            target.read(path)
        except DeimError as error:
            str(error).encode("utf-8")
        except BaseException as error:
            kept = Path(os.environ.get("FUZZ_KEEP", str(root))) / f"{target.name}_{seed}_{trial}"
            kept.write_bytes(content)
            raise AssertionError(f"{target.name}, trial {trial}: {error!r}; the file is {kept}") from error
        seconds = time.monotonic() - start
        assert seconds < MAX_SECONDS, f"{target.name}, trial {trial}: {seconds:.1f} s, {content[:200]!r}"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_damaged_file_ends_in_a_traceback(target: Target, tmp_path: Path) -> None:
    run_trials(target, tmp_path, trials=target.trials, seed=6)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_ten_thousand_damaged_files_end_in_no_traceback(target: Target, tmp_path: Path) -> None:
    total = sum(target.trials for target in TARGETS)
    run_trials(target, tmp_path, trials=round(10_000 * target.trials / total), seed=7)


def test_json_with_every_hostile_value_is_made(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [spoil(b'{"a": [1, {"b": 2}]}', "json", rng) for _ in range(400)]
    assert any(b"9999" in text for text in texts)
    assert any(b"[[[[[[[[" in text for text in texts)
    assert any(b"\\ud800" in text for text in texts)
    assert json.loads('{"a": 1}') == {"a": 1}
