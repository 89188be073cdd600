"""Locks on files, held by a process until it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from lm.base.files import naming


def take_lock(path: Path, *, wait: bool) -> int | None:
    """Lock file `path` for as long as the returned descriptor is open, at most until the process ends.

    Returns None if another process holds it and `wait` is false. Raises OSError, naming the file, where it cannot be
    made, or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with naming(path):
            descriptor = _lock(path, wait)
        if descriptor is None or holds(path, descriptor):
            return descriptor
        os.close(descriptor)  # deleted between opening and locking


def holds(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked still is the one of that name: it may have been deleted, and made anew."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(path: Path, wait: bool) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
