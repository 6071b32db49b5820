"""The command `deim` and the tools that call it: help, names, shipped configs and the installed package."""

import ast
import os
import subprocess
import sys
import tomllib
from argparse import SUPPRESS
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import deim
from deim.cli.arguments import CommandParser
from deim.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
MEASURING = {ROOT / "tools" / f"compare_{what}.py" for what in ("starts", "training")}
TOOLS = sorted({*(ROOT / "tools").glob("*.py")} - MEASURING)
HELP = """
import contextlib, io, sys
from deim.cli.main import COMMANDS, main
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([name, "--help"])
    assert out.getvalue().startswith(f"usage: deim {name} "), name
heavy = {"torch", "numpy", "matplotlib", "PIL", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_of_every_command_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=str)
def test_the_overview_lists_all_commands(arguments: list[str], call: Callable) -> None:
    code, out, err = call(*(arguments or ["-h"]))
    assert (code, err) == (0, "")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)


def test_an_unknown_command_is_answered_with_the_nearest(call: Callable) -> None:
    assert call("trian") == (2, "", "deim: there is no command 'trian'. Did you mean 'train'?\n")


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_a_tool_is_a_door_to_a_command(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6
    command = ast.literal_eval(lines[-1].partition("command=")[2].removesuffix("))"))
    assert command[0] in COMMANDS
    assert lines[0].endswith(f'; the same as `deim {" ".join(command)}`."""')


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_in_a_sentence(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[str, str] = {}

    def add_argument(self: CommandParser, *names: str, **options: object) -> object:
        texts[names[-1]] = str(options.get("help"))
        return super(CommandParser, self).add_argument(*names, **options)

    monkeypatch.setattr(CommandParser, "add_argument", add_argument)
    import_module(COMMANDS[command][0]).build_parser()
    texts.pop("--help")
    wrong = {name: text for name, text in texts.items() if not (text[0].isupper() and text.endswith("."))}
    assert wrong == {}
    assert all(summary[0].isupper() and summary.endswith(".") for _, summary in COMMANDS.values())


def test_help_states_defaults() -> None:
    parser = CommandParser()
    parser.add_argument("--size", default=(640, 512), help="Image size.")
    parser.add_argument("--force", action="store_true", help="Do it.")
    parser.add_argument("--hidden", default=SUPPRESS, help="Nothing.")
    text = parser.format_help()
    assert "Image size. Default: 640 512." in text
    assert text.count("Default") == 1


def test_choices_are_those_of_the_rooms() -> None:
    """They are repeated in the commands so that `--help` does not import the rooms."""
    from multimodal.ablation import variants
    from multimodal.cli import ablate_text, text_bank
    from multimodal.encoders import open_clip

    assert ablate_text.VARIANTS == variants.ABLATED_VARIANTS
    assert text_bank.DEFAULT_MODEL == open_clip.DEFAULT_MODEL
    assert text_bank.DEFAULT_WEIGHTS == open_clip.DEFAULT_WEIGHTS


def test_shipped_configs_are_listed_with_their_first_line(call: Callable) -> None:
    code, out, _ = call("config", "list")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert names == sorted(path.stem for path in (ROOT / "configs").glob("*.yml"))
    assert all(len(line) <= 140 and line.endswith(".") for line in out.splitlines())


@pytest.mark.parametrize("name", ["neu_det", "neu_det.yml", "configs/neu_det.yml"])
def test_a_shipped_config_is_found_by_its_name(name: str, call: Callable) -> None:
    code, out, err = call("config", "show", name, "--set", "epochs=7")
    assert (code, err) == (0, "")
    config = yaml.safe_load(out)
    assert (config["output_dir"], config["epochs"]) == ("outputs/neu_det", 7)
    assert call("config", "show", "-c", name, "--set", "epochs=7")[1] == out


def test_a_file_comes_before_a_shipped_config(call: Callable, tmp_path: Path) -> None:
    (tmp_path / "neu_det").write_text("epochs: 0\n")
    code, _, err = call("config", "show", "neu_det")
    assert code == 2
    assert "neu_det: missing key 'image_size'" in err


def test_an_unknown_config_is_answered_with_the_nearest(call: Callable) -> None:
    code, out, err = call("config", "show", "quickstrat")
    assert (code, out) == (2, "")
    assert err.startswith("quickstrat: no such config file (looked in ")
    assert "Did you mean 'quickstart'?" in err
    code, _, err = call("config", "show")
    assert (code, err.partition(":")[0]) == (2, "deim config show")


def test_one_version_is_given_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == deim.__version__
    assert citation["version"] == project["version"] == version("deim-defects") == deim.__version__
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])


def test_the_types_of_both_packages_may_be_used() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in ("deim", "multimodal"))


@pytest.mark.slow
def test_the_installed_package_works_in_an_empty_folder(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True)
    site = tmp_path / "site"
    wheel = next(wheels.glob("deim_defects-*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> str:
        command = [sys.executable, site / "bin" / "deim", *arguments]
        environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert (site / "deim" / "py.typed").is_file()
    assert (site / "multimodal" / "py.typed").is_file()
    assert "quickstart " in run("config", "list")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yml").write_text("_base_: deimv2_m_1024\nmodel: l\n", encoding="utf-8")
    assert "  backbone_lr: 1.25e-05\n" in run("config", "show", str(tmp_path / "own" / "mine.yml"))
    assert run("--help").startswith("usage: deim COMMAND")
    assert run("--version").strip()
    assert "output_dir: outputs/quickstart\n" in run("config", "show", "quickstart")
    assert list(empty.iterdir()) == []
    options = ("--train-images", "2", "--val-images", "1", "--test-images", "1", "--max-size", "96", "96")
    assert "train: 2 images" in run("synthetic", "--root", "data", *options)


NAMES = """
import sys
from deim.cli.main import main, run_command
from deim.cli.terminal import safe_output

def show(args):
    print("缺陷 ✓ ü \\udcff")
    print("… 缺陷", file=sys.stderr)
    return 0

with safe_output():
    sys.exit(run_command(show, None))
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8", "shift_jis:strict"])
def test_every_terminal_can_show_every_name(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, check=False, env=environment)
    assert (done.returncode, b"Error" in done.stderr) == (0, False), done.stderr
    shown = done.stdout.decode(encoding.partition(":")[0])
    assert shown.startswith("缺陷" if encoding in ("utf-8", "shift_jis:strict") else "\\u7f3a\\u9677")


@pytest.mark.parametrize("arguments", [["config", "show", "quickstart"], ["train", "--help"], ["--help"]])
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_commands_print_in_any_encoding(arguments: list[str], encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deim", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(os.name == "nt", reason="pipes are closed otherwise there")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_does_not_end_a_command(stream: str, tmp_path: Path) -> None:
    script = NAMES.replace("def show(args):", "def show(args):\n    open(sys.argv[1], 'w').close()")
    script = script.replace('print("… ', 'print("x" * 10**6, file=sys.stderr)\n    print("… ')
    script = script.replace(
        "return 0", "print('y' * 10**6)\n    open(sys.argv[2], 'w').close()\n    return 0"
    )
    reader, writer = os.pipe()
    os.close(reader)
    files = [tmp_path / "begun", tmp_path / "done"]
    with open(writer, "wb") as closed, (tmp_path / "other").open("wb") as other:  # noqa: PTH123  a descriptor
        streams = {"stdout": other, "stderr": other} | {stream: closed}
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, files)],
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            **streams,
        )
    assert done.returncode == 0
    assert all(path.is_file() for path in files)
    assert b"Traceback" not in (tmp_path / "other").read_bytes()
    assert b"Broken" not in (tmp_path / "other").read_bytes()
