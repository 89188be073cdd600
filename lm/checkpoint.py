"""Checkpoints: written whole or not at all, verified when read, the previous one kept."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from lm.errors import CheckpointError
from lm.files import write_atomic

# Number of the layout below; a reader refuses newer ones.
FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write `state` (tensors and plain types) to `path`; keep what was there as `<stem>.prev.pt` if asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = _previous(path) if keep_previous else None
    write_atomic(path, lambda file: torch.save({"format": FORMAT} | state, file), previous=previous)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Only tensors and plain types are unpickled, so a file from a stranger runs no code; checksums are verified.

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint, or of a newer format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes a CRC-32 for every tensor and never reads it
        if damaged:
            raise CheckpointError(f"{path}: damaged (checksum of {damaged} differs)")
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise CheckpointError(f"{path}: not a checkpoint of this program")
    if state["format"] > FORMAT:
        raise CheckpointError(f"{path}: format {state['format']} is newer than this program's {FORMAT}; update it")
    return state


def load_latest(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any] | None, str]:
    """The checkpoint at `path`, else the one before it; (None, "") when there is neither.

    Returns:
        the state, and a warning when the newest could not be used.

    Raises:
        CheckpointError: there are files, but none is usable.
    """
    candidates = [candidate for candidate in (path, _previous(path)) if candidate.exists()]
    problems = []
    for candidate in candidates:
        try:
            return load_checkpoint(candidate, device), "; ".join(problems)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    return None, ""


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.prev{path.suffix}")
