"""Locks on files, held by a process until it ends."""

from __future__ import annotations

import os
from pathlib import Path

from lm.base.files import naming


def lock(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file until its descriptor is closed; the kernel closes those of a process that is killed.

    Returns False if another process holds it and `wait` is false. Raises OSError where files cannot be locked.
    """
    from portalocker import LockFlags, exceptions
    from portalocker import lock as take  # here, for it imports what this system has

    flags = LockFlags.SHARED if shared else LockFlags.EXCLUSIVE
    try:
        take(descriptor, flags if wait else flags | LockFlags.NON_BLOCKING)
    except exceptions.AlreadyLocked:
        return False
    except exceptions.LockException as error:
        raise error.__cause__ if isinstance(error.__cause__, OSError) else OSError(str(error)) from None
    return True


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
        taken = lock(descriptor, wait=wait)
    except BaseException:
        os.close(descriptor)
        raise
    if not taken:
        os.close(descriptor)
    return descriptor if taken else None
