"""Locks on files, held by a process until it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def take_lock(path: Path, *, wait: bool) -> int | None:
    """Lock file `path` for as long as the returned descriptor is open, at most until the process ends.

    Returns None if another process holds it and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
