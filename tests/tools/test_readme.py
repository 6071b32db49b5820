"""The README: its Python blocks run, its commands are accepted, and its files exist."""

import re
import shlex
import shutil
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from deim.cli.benchmark_step import count_flops
from deim.cli.main import COMMANDS
from deim.config.catalog import SIZES, find_config, find_size
from deim.model.build import build_variant

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMAND_LINES = [
    line.partition("   #")[0].strip().removeprefix("$ ")
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if line.startswith(("deim ", "$ deim "))
]
PYTHON = [block for language, block in BLOCKS if language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.splitlines()[0])
def test_python_blocks_run(
    block: str, tiny_run: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs" / "quickstart").mkdir(parents=True)
    shutil.copyfile(tiny_run / "best.pth", tmp_path / "outputs" / "quickstart" / "best.pth")
    for number in (1, 2):
        shutil.copyfile(tiny_set / "images" / f"val_{number}.png", tmp_path / f"part_{number}.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    if "terms" in names:
        assert isinstance(names["model"], torch.nn.Module)
        assert any(parameter.grad is not None for parameter in names["model"].parameters())
    else:
        assert len(names["names"]) == len(names["detections"].boxes_xyxy)


def test_there_are_two_python_blocks_and_many_commands() -> None:
    assert len(PYTHON) == 2
    assert len(COMMAND_LINES) > 12


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_are_accepted(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    parser = import_module(COMMANDS[name][0]).build_parser()
    assert isinstance(parser.parse_args(arguments), Namespace)


def test_named_scripts_and_linked_files_exist() -> None:
    scripts = set(re.findall(r"tools/\w+\.py", README))
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tools").glob("*.py")} - scripts == {
        "tools/benchmark_evaluation.py",
        "tools/compare_starts.py",
        "tools/compare_training.py",
    }
    links = re.findall(r"\]\(([\w./]+)\)", README)
    missing = [name for name in [*scripts, *links] if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("size", SIZES)
def test_the_table_of_sizes_is_right(size: str) -> None:
    (row,) = re.findall(rf"^\| `{size}` \|(.*)\|$", README, flags=re.MULTILINE)
    parameters, *gflops, config, weights = (cell.strip() for cell in row.split("|"))
    model = build_variant(size, num_classes=6)
    assert parameters == f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"
    text = find_config(config.strip("`")).read_text(encoding="utf-8")
    assert f"\nmodel: {size}\n" in text
    texts = text + find_size(size, "README.md").read_text(encoding="utf-8")
    assert weights == "none" or weights.strip("`") in texts
    if size in ("nano", "lite", "s"):  # the larger ones take too long
        assert gflops[0] == f"{count_flops(model, image_size=640) / 1e9:.1f}"
