"""Files that appear complete or not at all, and locks."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that a reader sees the old or the new one, whatever happens in between.

    `write` fills a temporary file beside `path`, which is flushed to disk and renamed. On any error the temporary
    file is removed and `path` is as it was. Raises OSError, naming `path`, where the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if failure := _os_error(error):
            raise OSError(failure.errno, failure.strerror or str(failure), str(path)) from error
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _os_error(error: BaseException | None) -> OSError | None:
    """The file system's failure behind an error: `torch.save` ends with one of its own after a failed write."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left of their `write_atomic`; only where no other process writes."""
    for temporary in folder.glob(".*.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


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
