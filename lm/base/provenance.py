"""What made a result: the code's commit, the machine and the versions of what it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lm.base.files import ROOT


def git_state() -> dict[str, Any]:
    """Commit of the code and whether it was changed since; both None outside a checkout of this project.

    Installed, the package may lie inside somebody else's checkout, whose commit says nothing about it.
    """

    # A hook of another repository, or a user, may have set GIT_DIR and its like.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or "CEILING" in key}

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(ROOT), *arguments]
            answer = subprocess.run(command, capture_output=True, check=True, timeout=30, env=environment).stdout
            return os.fsdecode(answer).strip()  # paths, in whatever encoding
        except (OSError, subprocess.SubprocessError):
            return None

    this_file = Path(__file__).resolve().relative_to(ROOT).as_posix()
    # Fails where the commit does not hold this very file, as after `pip install --target` into a checkout.
    found = git("rev-parse", "--show-toplevel", "HEAD", f"HEAD:{this_file}")
    top, commit = found.splitlines()[:2] if found else ("", "")
    if not found or Path(top) != ROOT:
        return {"commit": None, "dirty": None}
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/lm", ":/requirements.txt")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def cpu_name() -> str:
    """Model name of the CPU with its family and model numbers: a virtual machine's name may say no more than "EPYC"."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    first = {key.strip(): value.strip() for key, _, value in lines}
    if "model name" not in first:
        return platform.machine()
    numbers = [f"{key.split()[-1]} {first[key]}" for key in ("cpu family", "model") if key in first]
    return f"{first['model name']} ({', '.join(numbers)})" if numbers else first["model name"]


def versions(device: torch.device, precision: str) -> dict[str, Any]:
    """What decides the bits and the speed of a run, next to its configuration."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which no checkpoint may hold
        "tokenizers": version("tokenizers"),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "precision": precision,
    }
