"""The folder of a run: what it holds, which run may be written there, and how an old run is replaced."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deim.engine.checkpoints import previous_path
from deim.engine.task import TASKS, load_task
from deim.errors import CheckpointError, TrainingError
from deim.files import SEAL_KEY, UNSEALED, not_a_file, remove_unfinished, seal, write_text

RUN_FILES = (
    "last.pth",
    "last.previous.pth",
    "best.pth",
    "best_before_final_stage.pth",
    "report.json",
    "report.html",
    "report",
    "metrics.jsonl",
    "config.yml",
    "tensorboard",
)
"""Names that a run of any task writes; a folder with one of these holds a run."""
FIRST_FILES = {"config.yml", "metrics.jsonl", "tensorboard"}
"""What a run writes before its first checkpoint."""

REPLACED = ".replaced"
"""Folder within the run's, in which an overwritten run waits until the new one ends with a checkpoint."""


def run_paths(folder: Path) -> list[Path]:
    """Return all that a run of any task may write to its folder, or that replacing a run may remove."""
    names = RUN_FILES + tuple(name for task in TASKS for name in load_task(task).run_files)
    return [folder / name for name in names]


def run_files(folder: Path) -> list[Path]:
    """Return those of `run_paths` that exist."""
    return [path for path in run_paths(folder) if path.exists()]


def find_resume(folder: Path, resume: str | None) -> Path | None:
    """Return the checkpoint to resume from: None, `auto` for last.pth of the folder if it exists, or a path.

    The path is that of a checkpoint, or of the folder of a run.

    Raises:
        CheckpointError: If the named checkpoint does not exist.
    """
    if resume is None:
        return None
    path = folder if resume == "auto" else Path(resume)
    last = path / "last.pth"
    if last.is_file() or previous_path(last).is_file():
        return last
    if resume == "auto":
        return None
    if not path.is_file():
        problem = not_a_file(path, "checkpoint to resume from")
        raise CheckpointError(f"{path}: {problem}. Use --resume auto, or the path of a last.pth.")
    return path


def refuse_existing_run(folder: Path, *, resume_from: Path | None, may_restart: bool = False) -> None:
    """Refuse to write over a run, unless it is the one that is resumed.

    With `may_restart`, a run that was stopped before its first checkpoint may be started again.

    Raises:
        TrainingError: If the folder holds another run.
    """
    if resume_from is not None and resume_from.resolve().parent == folder.resolve():
        return
    present = [path.name for path in run_files(folder)]
    if present and not (may_restart and set(present) <= FIRST_FILES):
        raise TrainingError(
            f"{folder}: already holds a run ({', '.join(present)}). Resume it with --resume auto, replace "
            f"it with --overwrite, or choose another folder with --set output_dir=FOLDER."
        )


@contextmanager
def prepare_run_dir(folder: Path, *, config_yaml: str, continues_here: bool) -> Iterator[None]:
    """Make the folder of a run with its `config.yml`; after an error within, the old run is back.

    The files of a run that does not continue in this folder are set aside.

    Raises:
        TrainingError: If a file stands where they would go.
        OSError: If the folder cannot be written.
    """
    if not continues_here:
        _set_aside(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yml", seal(f"# {SEAL_KEY}: {UNSEALED}\n{config_yaml}".encode()).decode())
        yield
    except BaseException:
        if not continues_here:
            finalize_run_dir(folder, has_begun=False)
        raise


def finalize_run_dir(folder: Path, *, has_begun: bool) -> None:
    """Keep a run that has begun, or restore the one that it overwrites; called when it ends."""
    if not has_begun:
        remove_unfinished(folder)
        for path in run_files(folder):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        _put_back(folder)
    shutil.rmtree(folder / REPLACED, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _set_aside(folder: Path) -> None:
    """Move the files of a run to `REPLACED`; after an error all of them are back where they were."""
    aside = folder / REPLACED
    if aside.is_dir():  # an overwriting run was killed here
        finalize_run_dir(folder, has_begun=(folder / "best.pth").is_file())
    elif aside.exists():
        raise TrainingError(
            f"{aside}: a file stands where --overwrite keeps the old run until the new one has a checkpoint. "
            f"Move it away, or choose another folder with --set output_dir=FOLDER."
        )
    try:
        for path in run_files(folder):
            aside.mkdir(exist_ok=True)
            path.replace(aside / path.name)
    except BaseException:
        _put_back(folder)
        raise


def _put_back(folder: Path) -> None:
    """Move the files of a run that was set aside to where they were."""
    aside = folder / REPLACED
    if aside.is_dir():
        for path in aside.iterdir():
            path.replace(folder / path.name)
        aside.rmdir()
