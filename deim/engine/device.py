"""Device and precision of a run."""

from typing import Literal

import torch

from deim.engine.distributed import DistributedContext
from deim.engine.step import Precision
from deim.errors import ConfigError


def select_device(name: str, *, distributed: DistributedContext | None = None) -> torch.device:
    """Turn `runtime.device` into a device: `auto` takes CUDA if there is one, each process its GPU.

    Raises:
        ConfigError: If there is no such device, or several processes would share one GPU.
    """
    if distributed is not None and distributed.size > 1:
        if name.startswith("cuda:"):
            raise ConfigError(
                f"runtime.device: got {name!r} for several processes, each of which needs another GPU. Use "
                f"'auto', and choose the GPUs with CUDA_VISIBLE_DEVICES."
            )
        if name in ("auto", "cuda") and torch.cuda.is_available():
            return distributed.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"runtime.device: got {name!r}. Use 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"runtime.device: got {name!r}, this machine has {torch.cuda.device_count()} CUDA devices. "
            f"Use --set runtime.device=auto"
        )
    return device


def select_precision(amp: Literal["auto", "bf16", "fp16", "off"], device: torch.device) -> Precision:
    """Turn `runtime.amp` into a type; auto: bf16 on GPUs that support it, else fp16; off on a CPU.

    Raises:
        ConfigError: If fp16 is asked for on a CPU.
    """
    on_cuda = device.type == "cuda"
    if amp == "fp16" and not on_cuda:
        raise ConfigError("runtime.amp: fp16 needs a GPU. Use 'auto', 'bf16' or 'off'.")
    if amp == "auto":
        has_bf16 = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        amp = "bf16" if has_bf16 else "fp16" if on_cuda else "off"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
    return Precision(
        device_type=device.type,
        dtype=dtypes[amp],
        scaler=torch.amp.GradScaler(device.type, enabled=amp == "fp16"),
    )
