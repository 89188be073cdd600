"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import site
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# The folder that holds the package: the repository's, or site-packages where it is installed.
ROOT = Path(__file__).resolve().parent.parent.parent
# For `os.open`, which else writes other line ends on Windows.
_BINARY = getattr(os, "O_BINARY", 0)
# How the names of scratch folders begin; the host and the process that made one follow.
_SCRATCH = ".lm-scratch-"


def write_atomic(path: Path, write: Callable[[BinaryIO], Any], *, previous: Path | None = None) -> None:
    """Write a file, and its folders, so that a reader sees the old or the new one, whatever happens in between.

    `write` fills a temporary file beside `path`, which is flushed to disk and renamed. On any error the temporary
    file is removed and `path` is as it was. With `previous`, what was there is kept under that name; a process killed
    between the two renames leaves it there alone.

    Raises OSError, naming `path`, where the disk is full or not writable, and where a device, a FIFO or a folder has
    that name: a rename would put the file in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "is there and no regular file", str(path))
    # A file's name has 255 bytes at most, and the temporary one is longer.
    temporary = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if previous and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "nt":  # which opens no folders
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def check_regular(path: Path) -> None:
    """Raise OSError, naming `path`, for all but files: a pipe or a device could be waited for without end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def same_place(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths are one place, links followed; what is not there yet counts as well."""
    return Path(one).resolve() == Path(other).resolve()


def read_file(path: Path) -> bytes:
    """Content of a regular file. Raises OSError, naming `path`."""
    check_regular(path)
    return path.read_bytes()


def file_sha256(path: Path) -> str:
    """Checksum of a regular file, read in blocks. Raises OSError, naming `path`."""
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise the failure behind any error inside, with `path` as its file.

    A failed or interrupted write names no file, and `torch.save` covers it with an error of its own.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError | KeyboardInterrupt):
            cause = cause.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error
        if cause is not None:
            raise cause from None
        raise


class LineFile:
    """A text file that grows by whole lines: each is with the operating system when `write` returns, or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o644)

    def write(self, text: str) -> None:
        """`append` lines of text."""
        self.append(text.encode("utf-8", "surrogateescape"))  # names of files may hold any bytes

    def append(self, lines: bytes) -> None:
        """Append lines. Raises OSError, naming the file, and cuts off what did not fit whole."""
        size = self.size
        try:
            with naming(self._path):
                while lines:
                    lines = lines[os.write(self.descriptor, lines) :]
        except BaseException:
            self.truncate(size)
            raise

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self.descriptor).st_size

    def truncate(self, size: int) -> None:
        """Cut the file off after `size` bytes, if it is longer."""
        if size < self.size:
            os.ftruncate(self.descriptor, size)

    def partial_line(self) -> bytes:
        """What follows the last newline: half a line, that the next one would be appended to; mostly nothing."""
        found = b""
        end = self.size
        while end and b"\n" not in found:
            start = max(0, end - (1 << 16))
            os.lseek(self.descriptor, start, os.SEEK_SET)  # Windows has no pread; lines are appended all the same
            found = os.read(self.descriptor, end - start) + found
            end = start
        return found[found.rfind(b"\n") + 1 :]

    def cut_partial_line(self) -> None:
        """Cut off what `partial_line` finds."""
        self.truncate(self.size - len(self.partial_line()))

    def sync(self) -> None:
        """Wait until the disk has it all."""
        with naming(self._path):
            os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the file; nothing is left to be written."""
        os.close(self.descriptor)


def import_path() -> str:
    """PYTHONPATH with which another process finds this very package: unchanged where it is installed."""
    installed = {Path(path).resolve() for path in (*site.getsitepackages(), site.getusersitepackages())}
    ours = [] if ROOT in installed else [str(ROOT)]  # it would come before the standard library there
    return os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A new folder inside `place`, on its file system, removed at the end. Those of killed processes go first."""
    for left in scratch_folders(place):
        owner, _, process = left.name.rpartition("-")
        host = owner.rpartition("-")[0]  # without the random part
        if host == f"{_SCRATCH}{platform.node()}" and not _is_alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{platform.node()}-", suffix=f"-{os.getpid()}", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scratch_folders(place: Path) -> list[Path]:
    """What `scratch_folder` has made in `place`, in use or left by killed processes."""
    return [path for path in place.glob(f"{_SCRATCH}*") if path.name.rpartition("-")[2].isdigit()]


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # a signal of number 0 is none there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left of their `write_atomic`; only where no other process writes."""
    for temporary in folder.glob(".*.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file's whole content by `write_atomic`."""
    write_atomic(path, lambda file: file.write(content))


def json_bytes(value: Any) -> bytes:
    """A value as the indented JSON of a file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write a value as `json_bytes` by `write_atomic`."""
    write_bytes(path, json_bytes(value))
