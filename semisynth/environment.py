"""What a figure depends on besides its configuration."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import semisynth


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, device and commit: what a figure depends on besides its configuration."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "semisynth": semisynth.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
    }


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+" if it was changed; None outside one.

    It is read once a process, before the code that was loaded can have been edited much.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
