"""Where tensors live: a device by name, checked before anything is loaded, and how much memory it has left."""

from __future__ import annotations

import re

import psutil
import torch

from fedsplit.errors import ConfigError

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


def device_of(name: str | torch.device) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:1`` as a torch device.

    Raises ConfigError for what this machine does not have, and for kinds nobody has tried segments on (``mps``).
    """
    if not _DEVICE.fullmatch(str(name)):
        raise ConfigError(f"--device: found {str(name)!r}, expected cpu, cuda or cuda:NUMBER")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            have = (
                f"{count} CUDA devices (cuda:0 to cuda:{count - 1})" if count else "no CUDA device that torch can use"
            )
            raise ConfigError(f"--device: found {device}, this machine has {have}; run with --device cpu")
    return device


def free_bytes(device: torch.device) -> int:
    """Memory left on the device, as its driver or the system sees it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
