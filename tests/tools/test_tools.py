"""The commands, from a COCO folder to weights, a report and predictions, and their error messages."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from deim.config.catalog import shipped_configs_dir
from deim.config.loader import load_config
from deim.data.batch import Batch
from deim.engine.device import select_precision
from deim.engine.optimizer import build_optimizer
from deim.engine.step import StepContext, train_step
from deim.loss.criterion import Criterion
from deim.model.detector import Detector
from deim.structures import Target

TOOLS = Path(__file__).resolve().parents[2] / "tools"
QUICK = [
    "image_size=64",
    "epochs=1",
    "data.synthetic=null",
    "data.normal_class=null",
    "data.num_workers=0",
    "data.batch_size=3",
    "schedule.no_aug_epochs=0",
    "evaluation.every_epochs=1",
    "runtime.device=cpu",
    "runtime.tensorboard=false",
    "runtime.preflight=false",
]
WRITTEN = {"best.pth", "last.pth", "report", "report.html", "report.json", "metrics.jsonl", "config.yml"}


def run_command(tool: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOLS / f"{tool}.py"), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def config_path(name: str) -> Path:
    return shipped_configs_dir() / f"{name}.yml"


@pytest.mark.slow
def test_train_evaluate_and_predict_from_the_command_line(tiny_set: Path, tmp_path: Path) -> None:
    options = [*QUICK, f"data.root={tiny_set}", "output_dir=run"]
    done = run_command("train", "-c", config_path("quickstart"), "--set", *options, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == WRITTEN
    for part in ("timeline:", "epoch 1/1", "weights  run/best.pth", "report   run/report.html"):
        assert part in done.stdout
    assert "\nall" in done.stdout

    before = contents(run)
    again = run_command("train", "-c", config_path("quickstart"), "--set", *options, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.startswith("run: already holds a run (last.pth, best.pth, report.json, ")
    assert contents(run) == before

    evaluated = run_command("evaluate", "run/best.pth", "--split", "test", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    report = json.loads((run / "evaluation_test.json").read_text())
    assert report["num_images"] == 3
    assert report["operating_points"]["chosen_on"] == "val"
    assert "report  run/evaluation_test.html" in evaluated.stdout
    assert "Parts: escape rate" in evaluated.stdout

    everything = ("--score-threshold", "0", "--output", "found")
    predicted = run_command("predict", "run/best.pth", tiny_set / "images", *everything, cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    results = json.loads((tmp_path / "found" / "predictions.json").read_text())
    images = sorted(path.name for path in (tiny_set / "images").iterdir())
    assert sorted({entry["file_name"] for entry in results}) == images
    assert {entry["category_name"] for entry in results} <= {"pit", "scratch", "crack"}
    assert len(list((tmp_path / "found" / "annotated").glob("*.png"))) == len(images)


def test_a_misspelled_option_is_answered_with_the_nearest_name(call: Callable, tmp_path: Path) -> None:
    options = ["data.batchsize=2", "output_dir=run"]
    code, out, err = call("train", "-c", config_path("quickstart"), "--set", *options)
    assert (code, out) == (2, "")
    assert "unknown key 'data.batchsize'" in err
    assert "batch_size" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dataset_is_reported_with_the_fix(call: Callable, tmp_path: Path) -> None:
    code, _, err = call("train", "-c", config_path("deimv2_1024"))
    assert code == 2
    assert err == (
        f"data.root: there is no folder 'data/defects' (looked in {tmp_path}). It must hold a dataset: COCO "
        f"with annotations/*.json and images/, or a JSON file in each split's folder; YOLO with a data.yaml, "
        f"an obj.data, or a classes.txt and a text file for each image; VOC with XML files in Annotations/ "
        f"or beside the images. Name your dataset with --set data.root=FOLDER, or make a synthetic one with "
        f"deim synthetic --root data/defects\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["epochs=0"], "epochs: got 0, needs at least 1"),
        (["image_size=100"], "image_size: got 100x100, both must be multiples of 32"),
        (["data.batch_size=two"], "data.batch_size: got 'two', needs an integer"),
        (["batch_size"], "--set: got 'batch_size', needs key.path=value"),
        (
            ["epochs=3", "schedule={augment_start_epoch: 2, mix_end_epoch: 1}"],
            "schedule.mix_end_epoch: got 1, but mosaic and mix-up begin after 2 epochs",
        ),
        (["runtime.device=tpu"], "runtime.device: got 'tpu'."),
        (["model.init_from=lost.pth"], "lost.pth: no such weights file"),
        (["data.train_annotations=lost.json"], "lost.json: no such annotation file."),
        (["data.images=pictures"], "pictures does not exist. Set data.images to the right one."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_end_training_with_a_message_and_no_folder(
    options: list[str], message: str, call: Callable, tmp_path: Path, tiny_set: Path
) -> None:
    rest = [*QUICK, f"data.root={tiny_set}", "output_dir=run", *options]
    code, _, err = call("train", "-c", config_path("quickstart"), "--set", *rest)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tool", ["train", "show_config"])
def test_a_missing_config_is_named(tool: str, call: Callable) -> None:
    code, out, err = call(tool, "-c", "lost.yml")
    assert (code, out) == (2, "")
    assert "lost.yml: no such config file" in err


def test_resuming_from_a_missing_checkpoint_is_refused(call: Callable, tmp_path: Path) -> None:
    code, _, err = call("train", "-c", config_path("quickstart"), "--resume", "lost.pth")
    assert code == 2
    assert err.startswith("lost.pth: no such checkpoint to resume from (looked in ")
    assert list(tmp_path.iterdir()) == []


def test_evaluating_a_missing_file_or_split_is_refused(
    call: Callable, tiny_run: Path, write_coco: Callable[..., Path]
) -> None:
    code, _, err = call("evaluate", "lost.pth")
    assert code == 2
    assert err.startswith("lost.pth: no such weights file")
    write_coco(Path("undivided"), num_images={"train": 3, "val": 2})
    code, _, err = call("evaluate", tiny_run / "best.pth", "--split", "test", "--set", "data.root=undivided")
    assert code == 2
    assert err.startswith("split 'test': undivided has only train, val. To divide a dataset into train, val")
    code, _, err = call("evaluate", tiny_run / "best.pth", "--set", "data.root=lost")
    assert code == 2
    assert "lost/annotations/train.json: no such annotation file." in err


def test_predicting_a_missing_or_damaged_image_is_refused(
    call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = call("predict", tiny_run / "best.pth", "empty")
    assert code == 2
    assert err.startswith("empty: there is no image. Give an image, or a folder of .")
    code, _, err = call("predict", tiny_run / "best.pth", "lost")
    assert (code, err) == (2, f"lost: no such image or folder (looked in {tmp_path}).\n")
    (tmp_path / "part.png").write_bytes(b"no image")
    code, _, err = call("predict", tiny_run / "best.pth", "part.png", "--set", "runtime.device=tpu")
    assert code == 2
    assert "got 'tpu'" in err
    code, out, err = call("predict", tiny_run / "best.pth", "part.png", "--output", "found")
    assert code == 1
    assert "failed     1 image: part.png" in out
    assert "part.png: the image is damaged" in err


def test_predict_takes_image_ids_from_annotations(
    call: Callable, tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    annotations = tiny_set / "annotations" / "val.json"
    arguments = ["--annotations", annotations, "--output", "found", "--score-threshold", "0"]
    code, out, err = call("predict", tiny_run / "best.pth", tiny_set / "images", *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("80 detections in 4 images\n")
    results = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert {entry["image_id"] for entry in results} == {10, 11, 12, 13}
    annotated = tmp_path / "found" / "annotated"
    assert {path.name for path in annotated.iterdir()} == {f"val_{i}.png" for i in range(4)}
    with Image.open(annotated / "val_0.png") as drawn:
        assert drawn.size == Image.open(tiny_set / "images" / "val_0.png").size


def test_predict_never_overwrites_an_image(call: Callable, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "part.png"
    Image.new("RGB", (64, 48), (90, 90, 90)).save(path)
    before = path.read_bytes()
    call("predict", tiny_run / "best.pth", "images", "--output", "images")
    assert path.read_bytes() == before


def test_annotations_without_any_of_the_images_are_refused(
    call: Callable, tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "ids.json").write_text('{"images": [{"id": 1, "file_name": "folder/other.png"}]}')
    code, _, err = call("predict", tiny_run / "best.pth", tiny_set / "images", "--annotations", "ids.json")
    assert code == 2
    assert "ids.json" in err


def spoil_annotation(field: str, value: object) -> Callable[[dict], None]:
    return lambda coco: coco["annotations"][0].update({field: value})


@pytest.mark.parametrize(
    ("split", "spoil", "message"),
    [
        (
            "train",
            spoil_annotation("bbox", [1, 1, 0, 5]),
            "has width 0.0 px. Boxes need width and height",
        ),
        ("train", spoil_annotation("bbox", [500, 1, 5, 5]), "lies outside its image"),
        ("train", spoil_annotation("category_id", 4), "has category id 4, which is not in 'categories'"),
        ("train", spoil_annotation("area", -5), "has area -5. It must be a number from 0, or null"),
        ("train", spoil_annotation("image_id", 2**70), "It must be a whole number of at most 63 bits"),
        ("train", lambda coco: coco["categories"][0].update(name=" "), "It must be text that is not empty"),
        (
            "train",
            lambda coco: coco["images"][0].update(file_name="lost.png"),
            "'lost.png' (id 10) is",
        ),
        ("train", lambda coco: coco.pop("images"), "not a COCO file, got annotations, categories"),
        (
            "val",
            lambda coco: coco["categories"].append({"id": 99, "name": "dent"}),
            "class 'dent' of split val is not in train",
        ),
    ],
    ids=[
        "no width",
        "outside",
        "unknown category",
        "negative area",
        "huge id",
        "no name",
        "lost image",
        "no images",
        "class of val only",
    ],
)
def test_wrong_annotations_end_with_a_message_and_code_2(
    split: str,
    spoil: Callable[[dict], None],
    message: str,
    call: Callable,
    write_coco: Callable[..., Path],
    tmp_path: Path,
) -> None:
    root = write_coco(tmp_path / "set")
    file = root / "annotations" / f"{split}.json"
    coco = json.loads(file.read_text())
    spoil(coco)
    file.write_text(json.dumps(coco))
    code, _, err = call(
        "train", "-c", config_path("neu_det"), "--set", *QUICK, "data.root=set", "output_dir=run"
    )
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("arguments", [[], ["--overwrite"]], ids=["new", "overwriting"])
def test_a_run_that_fails_before_its_first_step_leaves_what_was_there(
    arguments: list[str], call: Callable, write_coco: Callable[..., Path], tiny_run: Path, tmp_path: Path
) -> None:
    root = write_coco(tmp_path / "set")
    for path in (root / "images").glob("train_*"):
        truncate(path)
    if arguments:
        shutil.copytree(tiny_run, tmp_path / "run")
        (tmp_path / "run" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    options = [*QUICK, "data.root=set", "output_dir=run"]
    code, _, err = call("train", "-c", config_path("neu_det"), *arguments, "--set", *options)
    assert code == 2
    assert "the image is damaged" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["config.yml", "metrics.jsonl", "tensorboard"])
def test_a_folder_with_any_file_of_a_run_is_left_alone(
    name: str, call: Callable, tiny_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    options = [*QUICK, f"data.root={tiny_set}", "output_dir=run"]
    code, _, err = call("train", "-c", config_path("neu_det"), "--set", *options)
    assert code == 2
    assert err.startswith(f"run: already holds a run ({name}).")
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_resuming_never_replaces_files_that_no_stopped_run_wrote(
    call: Callable, tmp_path: Path, tiny_set: Path
) -> None:
    report = tmp_path / "run" / "report" / "thesis.tex"
    report.parent.mkdir(parents=True)
    report.write_text("years of work")
    (tmp_path / "run" / "config.yml").write_text("mine: true\n")
    options = [*QUICK, f"data.root={tiny_set}", "output_dir=run"]
    code, _, err = call("train", "-c", config_path("quickstart"), "--resume", "auto", "--set", *options)
    assert code == 2
    assert "run: already holds a run (" in err
    assert report.read_text() == "years of work"


@pytest.mark.slow
def test_resuming_into_the_folder_of_another_run_is_refused_unless_it_may_be_overwritten(
    call: Callable, tiny_set: Path, tmp_path: Path
) -> None:
    options = [*QUICK, f"data.root={tiny_set}", "epochs=2"]
    for name in ("first", "second"):
        code, _, err = call(
            "train",
            "-c",
            config_path("neu_det"),
            "--set",
            *options,
            f"output_dir={name}",
            f"seed={len(name)}",
        )
        assert (code, err) == (0, "")
    before = contents(tmp_path)
    again = ["--resume", "first/last.pth", "--set", *options, "seed=5"]
    code, _, err = call("train", "-c", config_path("neu_det"), *again, "output_dir=second")
    assert code == 2
    assert err.startswith("second: already holds a run (")
    assert contents(tmp_path) == before
    code, _, err = call("train", "-c", config_path("neu_det"), "--overwrite", *again, "output_dir=second")
    assert (code, err) == (0, "")
    assert contents(tmp_path / "second")["best.pth"] == before["first/best.pth"]


@pytest.mark.parametrize("tool", ["evaluate", "predict"])
def test_an_output_that_cannot_be_written_ends_with_a_message(
    tool: str, call: Callable, tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    arguments = [tiny_set / "images"] if tool == "predict" else []
    for output in ["file/in"] if tool == "predict" else ["file/in", "folder"]:
        code, _, err = call(tool, tiny_run / "best.pth", *arguments, "--output", output)
        assert code == 2
        assert str(output).split("/")[0] in err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_image_without_extension_is_predicted(
    call: Callable, tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    shutil.copyfile(tiny_set / "images" / "val_0.png", tmp_path / "part")
    code, _, err = call("predict", tiny_run / "best.pth", "part", "--output", "found")
    assert (code, err) == (0, "")
    assert (tmp_path / "found" / "annotated" / "part.png").is_file()


@pytest.mark.slow
def test_a_step_of_deimv2_1024_on_a_cpu_is_finite() -> None:
    config = load_config(config_path("deimv2_1024"))
    torch.manual_seed(0)
    model = Detector(config.model, 6).train()
    targets: list[Target] = [
        {
            "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.2, 0.8, 0.02, 0.02]]),
            "labels": torch.tensor([0, 5]),
        }
    ]
    before = model.decoder.dec_score_head[0].weight.detach().clone()
    context = StepContext(
        model=model,
        criterion=Criterion(config.loss, matcher_change_epoch=99),
        optimizer=build_optimizer(model, config.recipe),
        precision=select_precision("off", torch.device("cpu")),
        clip_grad_norm=config.recipe.clip_grad_norm,
    )
    batch = Batch(images=torch.randn(1, 3, *config.image_size_hw), targets=targets)
    result = train_step(context, batch, epoch=0)
    assert result.skip_reason is None
    assert 0 < result.loss < 1000
    assert result.grad_norm > 0
    assert not torch.equal(model.decoder.dec_score_head[0].weight, before)


@pytest.mark.slow
def test_two_runs_are_compared_and_a_report_is_written_again(
    call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    few = ["--set", "evaluation.bootstrap_resamples=20"]
    for name in ("first", "second"):
        shutil.copytree(tiny_run, tmp_path / name)
        code, out, err = call("evaluate", f"{name}/best.pth", "--output", f"{name}/report.json", *few)
        assert (code, err) == (0, "")
        assert f"report  {name}/report.html" in out
    code, out, err = call("compare", "first", "second", "--output", "comparison.json")
    assert (code, err) == (0, "")
    assert "second against first: mAP50 +0.000" in out
    assert "not distinguishable" in out
    assert (tmp_path / "comparison.html").is_file()
    (tmp_path / "first" / "report.html").unlink()
    code, out, err = call("evaluate", "first/report.json")
    assert (code, err) == (0, "")
    assert (tmp_path / "first" / "report.html").is_file()
    code, _, err = call("evaluate", "first/report.json", "--split", "test")
    assert code == 2
    assert "a report is written again from its own files" in err
    code, _, err = call("compare", "first", "lost")
    assert code == 2
    assert err.startswith("lost: no such run folder or report.")
    (tmp_path / "empty").mkdir()
    code, _, err = call("evaluate", "empty")
    assert code == 2
    assert err.startswith("empty: ")


def test_the_benchmark_of_evaluation_finds_the_same_numbers_as_pycocotools(call: Callable) -> None:
    pytest.importorskip("pycocotools")
    code, out, err = call("benchmark_evaluation", "--images", "20", "--boxes", "30")
    assert (code, err) == (0, "")
    numbers = json.loads(out)
    assert numbers["largest_difference"] < 1e-9
    assert min(numbers["coco_s"], numbers["pycocotools_s"], numbers["peak_mb"]) > 0


def test_the_benchmark_of_loading_prints_stages_and_caches(call: Callable) -> None:
    sizes = ("--size", "64", "--images", "1", "--steps", "1", "--batch", "2")
    code, out, err = call("benchmark", "data", *sizes)
    assert (code, err) == (0, "")
    *table, line = out.splitlines()
    stages = ["decode and resize", "augment", "normalize and collate"]
    assert [row.split("  ")[0] for row in table[:3]] == stages
    numbers = json.loads(line)
    assert numbers["all_images_per_s"] > 0
    assert numbers["all_disk_cache_images_per_s"] > 0
