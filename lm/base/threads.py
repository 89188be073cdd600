"""How many threads compute, and how they wait for each other, on a machine that others use as well.

    GOMP_SPINCOUNT=300000 python -m lm.bench --preset examples-200 --precision fp32 --threads 2    # spinning
    python -m lm.bench --preset examples-200 --precision fp32 --threads 2                          # as commands do

With `python -c "while True: pass" &` on one of two CPUs the two differ, on a quiet machine they should not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
# Any of these says how OpenMP's threads wait; a user who has set one is not overruled.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Rounds for which a thread of GNU's OpenMP looks whether the others have arrived, some microseconds, before it sleeps.
# It would look for milliseconds, in which the others cannot arrive where another process has their CPU.
_ROUNDS = "1000"
# Seconds over which it is measured how busy the CPUs are.
_SAMPLE = 0.25


def wait_passively() -> None:
    """Let threads that wait for others sleep. Takes effect, here and in child processes, before PyTorch is imported."""
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = _ROUNDS


def usable_cpus() -> int:
    """CPUs that this process may use: of the machine, as its affinity and its container's quota allow; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(cpus, round(int(quota) / int(period))))
    except (OSError, ValueError):  # another system, or "max"
        return cpus


def busy_cpus() -> float:
    """How many of those CPUs others keep busy; 0 where it cannot be known.

    The lower one of two figures: what was running in the last minute may have ended, what runs at this moment may soon.
    """
    try:
        load = os.getloadavg()[0]
        if load < 0.5:
            return 0.0
        import psutil  # a quiet machine starts without it

        percent = psutil.cpu_percent(_SAMPLE, percpu=True)
        return min(load, sum(percent[cpu] for cpu in os.sched_getaffinity(0)) / 100)
    except (OSError, AttributeError, IndexError):
        return 0.0


def are_given() -> bool:
    """Whether the user has said how many threads a process has, as schedulers of clusters do."""
    return "OMP_NUM_THREADS" in os.environ


def continue_with(versions: Mapping[str, Any]) -> None:
    """Compute with the threads of a run that is continued, where its bits can stay the same: by its `versions`, on
    this CPU with this PyTorch."""
    import torch

    from lm.base.provenance import cpu_name  # which imports PyTorch

    threads = versions.get("threads")
    if type(threads) is int and (versions.get("cpu"), versions.get("torch")) == (cpu_name(), str(torch.__version__)):
        torch.set_num_threads(threads)


def choose_threads(flag: str = "OMP_NUM_THREADS=N") -> None:
    """Compute with no more threads than there are CPUs free, unless the user has said how many.

    A thread more than that makes each product wait for a CPU. `flag` is what the user can say it by.
    """
    if are_given():
        return
    import torch

    usual = torch.get_num_threads()
    cpus = min(usual, usable_cpus())
    busy = busy_cpus() if cpus > 1 else 0.0
    threads = max(1, min(cpus, round(usable_cpus() - busy)))
    if threads != usual:
        torch.set_num_threads(threads)
    if threads < cpus:
        logger.info("threads: %d, as other processes keep %.1f of %d CPUs busy; %s decides", threads, busy, cpus, flag)
