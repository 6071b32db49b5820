"""The engine on a system without Unix's process functions: it imports, trains and evaluates."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deim.config.loader import config_to_yaml
from deim.config.schema import Config

ROOT = Path(__file__).parents[2]

HIDE = """
import os, multiprocessing, signal, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl"):
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
sys.modules.pop("resource", None)
for name in ("setpgid", "fork", "forkpty", "posix_fallocate", "pread", "pwrite", "O_DIRECTORY"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1"):
    delattr(signal, name)
multiprocessing.set_start_method("spawn", force=True)
"""

RUN = """
if __name__ == "__main__":
    import pkgutil, importlib
    import deim.engine
    for module in pkgutil.iter_modules(deim.engine.__path__):
        importlib.import_module(f"deim.engine.{module.name}")
    from deim.cli.main import main
    sys.exit(main(["train", "-c", sys.argv[1]]))
"""


def test_a_run_without_unix(tmp_path: Path, tiny_set: Path, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(
        tiny_set,
        tmp_path / "run",
        "epochs=1",
        "runtime.preflight=true",
        "data.num_workers=1",
        "evaluation.bootstrap_resamples=2",
    )
    (tmp_path / "tiny.yml").write_text(config_to_yaml(config), encoding="utf-8")
    script = tmp_path / "hidden.py"
    script.write_text(HIDE + RUN, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "tiny.yml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.json").is_file()
