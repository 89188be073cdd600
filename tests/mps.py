"""MPS: processes that share one GPU at the same time instead of taking turns."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

logger = logging.getLogger("lm.sitting")


@contextlib.contextmanager
def mps() -> Iterator[str]:
    """Let processes share the GPU by MPS where there is one and it works; yields the device, cuda or cpu."""
    if subprocess.run("nvidia-smi -L", shell=True, capture_output=True, check=False).returncode:
        yield "cpu"
        return
    control = shutil.which("nvidia-cuda-mps-control")
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
    os.environ |= dict.fromkeys(names, f"/tmp/mps-{os.getpid()}") if control else {}
    try:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # the daemon keeps what it inherits open
        probe = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').item()"]
        works = False
        if control:
            with contextlib.suppress(subprocess.TimeoutExpired):  # either may wait for ever where MPS cannot work
                started = not subprocess.run([control, "-d"], check=False, timeout=20, **quiet).returncode
                works = started and not subprocess.run(probe, check=False, timeout=60).returncode
        logger.info("MPS: %s", "on" if works else "not to be had, runs take turns on the GPU")
        if control and not works:
            _stop_mps(control, names)
        yield "cuda"
    finally:
        if control and names[0] in os.environ:
            _stop_mps(control, names)


def _stop_mps(control: str, names: Sequence[str]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([control], input=b"quit\n", check=False, timeout=20, capture_output=True)
    for name in names:
        os.environ.pop(name, None)
