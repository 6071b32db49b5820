"""No command asks the network for anything: every attempt of a process or its children is noted and fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deim.config.loader import load_config
from tests.conftest import TINY
from tests.multimodal.conftest import EXPERIMENT, PROMPTS

ROOT = Path(__file__).resolve().parents[2]
BLOCK = """
import os, socket

def note(what):
    with open(os.environ["ATTEMPTS"], "a") as file:
        file.write(f"{what}\\n")
    raise OSError(f"no network: {what}")

def guarded(method):
    def call(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            note(f"{method.__name__} {address}")
        return method(self, address, *rest)
    return call

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, lambda *call, name=name, **options: note(f"{name} {call}"))
"""
RUN = """
import json, sys
from deim.cli.main import main

if __name__ == "__main__":
    for arguments in json.load(sys.stdin):
        print(">", *arguments, flush=True)
        code = main(arguments)
        assert code == 0, (code, arguments)
"""
ENVIRONMENT_OF_DOWNLOADS = ("NO_ALBUMENTATIONS_UPDATE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def run_offline(folder: Path, commands: list[list[object]]) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run commands in one process without a network; the process, and what was tried."""
    (folder / "offline").mkdir()
    (folder / "offline" / "sitecustomize.py").write_text(BLOCK, encoding="utf-8")
    (folder / "run.py").write_text(RUN, encoding="utf-8")
    attempts = folder / "attempts.txt"
    kept = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT_OF_DOWNLOADS}
    done = subprocess.run(
        [sys.executable, str(folder / "run.py")],
        input=json.dumps([list(map(str, command)) for command in commands]),
        cwd=folder,
        env=kept
        | {
            "PYTHONPATH": f"{folder / 'offline'}{os.pathsep}{ROOT}",
            "ATTEMPTS": str(attempts),
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    return done, attempts.read_text(encoding="utf-8") if attempts.is_file() else ""


def test_the_block_notes_what_is_tried_in_a_process_and_its_children(tmp_path: Path) -> None:
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline" / "sitecustomize.py").write_text(BLOCK, encoding="utf-8")
    ask = "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ask!r}]); {ask}"
    places = {"PYTHONPATH": str(tmp_path / "offline"), "ATTEMPTS": str(tmp_path / "attempts")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | places, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert len((tmp_path / "attempts").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "workers", [2, pytest.param(0, marks=pytest.mark.slow)], ids=["processes", "one process"]
)
def test_no_command_asks_the_network(workers: int, tmp_path: Path, tiny_set: Path) -> None:
    content = TINY | {
        "_base_": "deim://_base_/augment_industrial.yml",
        "output_dir": str(tmp_path / "run"),
        "epochs": 2,
        "data": TINY["data"] | {"root": str(tiny_set), "num_workers": workers},
        "augment": {"photometric": 0.0, "industrial": {"exposure": 1.0, "jpeg": 1.0}},
        "schedule": {"augment_start_epoch": 0, "no_aug_epochs": 0},
        "evaluation": {"bootstrap_resamples": 2},
        "runtime": {"device": "cpu", "tensorboard": True, "preflight": False},
    }
    config, phase2 = tmp_path / "tiny.yml", tmp_path / "phase2.yml"
    config.write_text(json.dumps(content), encoding="utf-8")
    assert load_config(config).augment.industrial is not None
    (tmp_path / "prompts.yml").write_text(PROMPTS, encoding="utf-8")
    best = tmp_path / "run" / "best.pth"
    phase2.write_text(EXPERIMENT.format(folder=tmp_path, detector=best), encoding="utf-8")
    of_phase2 = ("output_dir=fused", "evaluation.bootstrap_resamples=2", "epochs=1")
    done, attempts = run_offline(
        tmp_path,
        [
            ["data", "check", tiny_set, "--image-size", 64],
            ["train", "-c", config],
            ["evaluate", best, "--split", "test"],
            ["predict", best, tiny_set / "images"],
            ["text-bank", tmp_path / "prompts.yml", "--checkpoint", best, "--encoder", "hashed"],
            ["train", "-c", phase2, "--set", *of_phase2],
            ["compare", tmp_path / "run", tmp_path / "run"],
            ["data", "convert", tiny_set, "--to", "voc", "--output", "voc"],
            ["data", "split", tiny_set, "--output", "split"],
            ["data", "stats", tiny_set],
            ["data", "preview", "-c", config],
            ["config", "show", "-c", config],
            ["synthetic", "--root", "made", "--max-size", 100, 100]
            + [f"--{split}-images=1" for split in ("train", "val", "test")],
        ],
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert attempts == ""
