"""How much memory a run takes, on a GPU or in this process."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from deim.errors import TrainingError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PROCESS_STATUS = Path("/proc/self/status")
PROCESS_RESET = Path("/proc/self/clear_refs")
MACHINE_STATUS = Path("/proc/meminfo")
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

STEP_ADVICE = (
    "Lower data.batch_size, keep the size of a step with data.effective_batch_size, or set "
    "runtime.activation_checkpointing=true; then resume with --force."
)
VALIDATION_ADVICE = "Lower data.eval_batch_size, then resume with --resume auto."


def reset_peak(device: torch.device) -> None:
    """Measure the peak from now on; on systems other than Linux the peak of a CPU process only grows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PROCESS_RESET.exists():
        with suppress(OSError):  # not allowed in some containers
            PROCESS_RESET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the most memory held since `reset_peak`, by tensors on a GPU or by the process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    high_water = _kilobytes(PROCESS_STATUS, "VmHWM")
    if high_water is None and resource is not None:
        high_water = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.platform == "darwin":  # bytes there, KiB elsewhere
            high_water //= 1024
    return 1024 * (high_water or 0)


def limit_bytes(device: torch.device) -> int | None:
    """Return the memory that this process can have, including what it holds; None if that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    available, held = _kilobytes(MACHINE_STATUS, "MemAvailable"), _kilobytes(PROCESS_STATUS, "VmRSS")
    if available is None or held is None:
        return None
    machine = 1024 * (available + held)
    container = CONTAINER_LIMIT.read_text(encoding="ascii").strip() if CONTAINER_LIMIT.exists() else "max"
    return min(machine, int(container)) if container.isdigit() else machine


@contextmanager
def explain_out_of_memory(where: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into a TrainingError that says where, such as `in validation`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(f"out of memory {where}. {advice}") from None


def gigabytes(num_bytes: float) -> str:
    """Return text such as `10.2 GB`, in units of 2^30 bytes."""
    return f"{num_bytes / 2**30:.1f} GB"


def _kilobytes(path: Path, name: str) -> int | None:
    if not path.exists():
        return None
    match = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(encoding="ascii"), flags=re.MULTILINE)
    return None if match is None else int(match[1])
