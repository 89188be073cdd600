"""Checkpoints: written whole or not at all, verified when read, the previous one kept.

A checkpoint is what `torch.save` writes, a zip archive, with the SHA-256 of everything before it as the archive's
comment: other readers skip it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lm.base.errors import CheckpointError, is_out_of_memory
from lm.base.files import check_regular, write_atomic

# Number of the layout below; a reader refuses newer ones.
FORMAT = 1
_DIGEST_BYTES = hashlib.sha256().digest_size
# Read at a time for the checksum, as a checkpoint may be larger than memory is free.
_BLOCK_BYTES = 1 << 20
_REMEDY = "put a good copy in its place, or train again"


def save_checkpoint(path: Path, state: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write `state` (tensors and plain types) to `path`; keep what was there as `<stem>.prev.pt` if asked.

    A damaged file is not kept: it would take the place of the good one that the run was continued from.
    """
    previous = _previous(path) if keep_previous and _is_good(path) else None
    write_atomic(path, lambda file: _write({"format": FORMAT} | state, file), previous=previous)


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    torch.save(state, file)
    file.seek(-2, os.SEEK_END)  # the archive ends in the length of its comment, 0 so far
    file.write(_DIGEST_BYTES.to_bytes(2, "little"))
    file.flush()
    with open(file.name, "rb") as written:
        file.write(hashlib.file_digest(written, "sha256").digest())


def _is_as_written(path: Path) -> bool:
    """Whether every byte of a checkpoint is the one that was written, by its checksum."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 22))
        if (end := file.read()).startswith(b"PK\5\6") and end.endswith(b"\0\0"):  # of an archive without a comment
            with zipfile.ZipFile(path) as archive:  # written by torch.save alone, with a CRC-32 for every tensor
                return archive.testzip() is None
        file.seek(0)
        digest = hashlib.sha256()
        covered = size - _DIGEST_BYTES
        for start in range(0, covered, _BLOCK_BYTES):
            digest.update(file.read(min(_BLOCK_BYTES, covered - start)))
        return file.read() == digest.digest()


def _is_good(path: Path) -> bool:
    try:
        check_regular(path)
        return _is_as_written(path)
    except Exception:  # no file, or one of the dozen kinds that zipfile raises
        return False


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, to the CPU.

    Only tensors and plain types are unpickled, so a file from a stranger runs no code; the checksum is verified.

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint, or of a newer format.
    """
    try:
        check_regular(path)
        if not _is_as_written(path):
            raise CheckpointError(f"{path}: damaged, or no checkpoint: the checksum differs; {_REMEDY}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; {_REMEDY}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for what is no checkpoint
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights_only" in str(error) or isinstance(error, pickle.UnpicklingError):  # advises to read them anyway
            reason = "it holds, or seems to hold, objects that could run code; only tensors and plain types are read"
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}); {_REMEDY}") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise CheckpointError(f"{path}: not a checkpoint of this program; {_REMEDY}")
    if state["format"] > FORMAT:
        raise CheckpointError(f"{path}: format {state['format']} is newer than this program's {FORMAT}; update it")
    return state


def check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, naming the file at `path` and the weight, if a weight is not finite."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{path}: {name} has values that are not finite, as after a divergence; {_REMEDY}")


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Report what the content of a readable checkpoint lacks, or has in another size or kind, as CheckpointError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"{path}: does not fit this run or program ({reason}); {_REMEDY}") from error


def load_latest(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The checkpoint at `path`, else the one before it; (None, "") when there is neither.

    Returns:
        the state, and a warning when the newest could not be used.

    Raises:
        CheckpointError: there are files, but none is usable.
    """
    candidates = [candidate for candidate in (path, _previous(path)) if candidate.exists()]
    problems: list[str] = []
    for candidate in candidates:
        try:
            return load_checkpoint(candidate), "; ".join(problems)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}; or delete them, to start the run anew")
    return None, ""


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.prev{path.suffix}")
