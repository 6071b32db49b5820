"""No command writes over what it reads, or into a folder that it reads, whatever the paths look like."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deim.config.loader import config_to_yaml
from deim.errors import DataError
from deim.files import lies_below, refuse_overwriting
from tests.data.small_sets import write_small_set


@pytest.mark.parametrize(
    ("output", "must_fail"),
    [
        ("in", True),
        ("in/out", True),
        ("in/../in/x/y", True),
        ("link/out", True),
        ("hard.json", True),
        ("a.json", True),
        ("sub/../a.json", True),
        ("sub", True),
        ("out", False),
        ("in/../out", False),
        ("inner", False),
        ("sub/deep/other", False),
    ],
)
def test_outputs_are_compared_by_what_they_are(
    output: str, must_fail: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "sub" / "deep" / "read").mkdir(parents=True)
    (tmp_path / "a.json").write_text("{}")
    os.link(tmp_path / "a.json", tmp_path / "hard.json")
    monkeypatch.chdir(tmp_path)
    inputs = [Path("in"), tmp_path / "sub" / "deep" / "read", Path("a.json")]
    for form in (Path(output), tmp_path / output):
        if must_fail:
            with pytest.raises(DataError, match=r"which is read|in it is read"):
                refuse_overwriting(outputs=[form], inputs=inputs)
        else:
            refuse_overwriting(outputs=[form], inputs=inputs)


def test_a_folder_that_is_not_there_yet_is_compared_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lies in"):
        refuse_overwriting(outputs=[tmp_path / "data" / "run"], inputs=[tmp_path / "x" / ".." / "data"])


@pytest.mark.parametrize(
    ("name", "is_below"),
    [("a/b", True), ("a/../b", True), ("../a", False), ("/etc", False), ("out/../x", False), ("out/x", True)],
)
def test_names_lie_below_a_folder(name: str, is_below: bool, tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "out").symlink_to(tmp_path / "far" / "deep")
    assert lies_below(tmp_path / "set" / name, tmp_path / "set") == is_below


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("output_dir", "set"),
        ("output_dir", "set/run"),
        ("output_dir", "link/run"),
        ("data.disk_cache_dir", "set/cache"),
    ],
)
def test_training_writes_nothing_into_its_data(
    option: str, value: str, call: Callable, tmp_path: Path
) -> None:
    write_small_set(tmp_path / "set")
    (tmp_path / "link").symlink_to("set")
    before = sorted((tmp_path / "set").rglob("*"))
    options = ["data.synthetic=null", "data.root=set", "data.disk_cache_mb=1", f"{option}={value}"]
    code, _, err = call("train", "-c", "quickstart", "--set", *options)
    assert (code, "which is read" in err, f"--set {option}=FOLDER" in err) == (2, True, True)
    assert sorted((tmp_path / "set").rglob("*")) == before


@pytest.mark.parametrize("weights", ["run/best.pth", "run", "same/last.pth"])
def test_training_keeps_the_weights_that_it_begins_with(weights: str, call: Callable, tmp_path: Path) -> None:
    write_small_set(tmp_path / "set")
    (tmp_path / "run").mkdir()
    (tmp_path / "same").symlink_to("run")
    for name in ("best.pth", "last.pth"):
        (tmp_path / "run" / name).write_bytes(b"weights")
    options = ["data.synthetic=null", "data.root=set", "output_dir=run", f"model.init_from={weights}"]
    code, _, err = call("train", "-c", "quickstart", "--overwrite", "--set", *options)
    assert (code, "which is read" in err) == (2, True)
    assert (tmp_path / "run" / "best.pth").read_bytes() == b"weights"


@pytest.mark.parametrize("output", ["prompts.yml", "sub/../prompts.yml", "hard.yml"])
def test_a_text_bank_does_not_replace_its_prompts(output: str, call: Callable, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = "classes:\n  pit: [a pit]\n"
    (tmp_path / "prompts.yml").write_text(text)
    os.link(tmp_path / "prompts.yml", tmp_path / "hard.yml")
    code, _, err = call("text-bank", "prompts.yml", "--encoder", "hashed", "--output", output)
    assert (code, "which is read" in err) == (2, True)
    assert (tmp_path / "prompts.yml").read_text() == text


def test_evaluation_and_comparison_replace_nothing_they_read(
    call: Callable, tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    code, _, err = call("evaluate", tiny_run, "--output", tiny_set / "report.json")
    assert (code, "which is read" in err) == (2, True)
    for name in ("a", "b"):
        assert call("evaluate", tiny_run, "--output", f"{name}.json")[0] == 0
    before = (tmp_path / "a.json").read_bytes()
    for output in ("a.json", "x/../b.json", "b/new.json"):
        code, _, err = call("compare", "a.json", "b.json", "--output", output)
        assert (code, "which is read" in err) == (2, True)
    assert (tmp_path / "a.json").read_bytes() == before
    assert call("compare", "a.json", "b.json", "--output", "c.json")[0] == 0


@pytest.mark.parametrize("arguments", [(), ("--overwrite",), ("--resume", "auto")])
def test_a_config_of_the_user_is_not_replaced_by_that_of_the_run(
    arguments: tuple[str, ...], tiny_set: Path, tmp_path: Path, tiny_config: Callable, call: Callable
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=1")
    mine = tmp_path / "run" / "config.yml"
    mine.parent.mkdir()
    mine.write_text(f"# my notes\n{config_to_yaml(config)}", encoding="utf-8")
    before = mine.read_text(encoding="utf-8")
    code, _, message = call("train", "-c", mine, *arguments)
    assert (code, "config.yml, which is read" in message) == (2, True)
    assert mine.read_text(encoding="utf-8") == before


def test_a_run_may_be_trained_again_from_its_config(
    tiny_set: Path, tmp_path: Path, tiny_config: Callable, call: Callable
) -> None:
    experiment = tmp_path / "experiment.yml"
    experiment.write_text(config_to_yaml(tiny_config(tiny_set, tmp_path / "run", "epochs=1")))
    assert call("train", "-c", experiment)[0] == 0
    assert call("train", "-c", tmp_path / "run" / "config.yml", "--overwrite")[0] == 0
