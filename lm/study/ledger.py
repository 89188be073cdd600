"""The ledger of a study, `runs.jsonl`: one line per finished run."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from lm.base.errors import ConfigError
from lm.base.files import LineFile, check_regular, naming
from lm.base.locks import lock

# What a record holds under these keys, where it has them.
_RECORD_KINDS = {"status": str, "seed": int, "dataset": str} | dict.fromkeys(
    ("config", "activation", "versions", "git"), dict
)
logger = logging.getLogger(__name__)


def read_ledger(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Records of the ledger file `path`, one per `id` (the last line wins); no file: none.

    A last line that a killed writer left unfinished is skipped with a warning; any other damage is a ConfigError.
    """
    try:
        check_regular(Path(path))
        with open(path, "rb") as file:
            lock(file.fileno(), shared=True)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = parse_line(line)
        if record is not None:
            records[record["id"]] = check_record(record, f"{path}:{number}")
        elif number == len(lines):  # no newline after it
            logger.warning("%s:%d: skipped the last line, which was not written to its end", path, number)
        else:
            raise ConfigError(f"{path}:{number}: not a JSON object with an id; restore or delete the line")
    return list(records.values())


def check_record(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The record of a run, if what it holds is of the kinds that a run writes. Raises ConfigError, naming the key."""
    for key, kind in _RECORD_KINDS.items():
        value = record.get(key)
        if key in record and type(value) is not kind and not (value is None and kind is dict):
            raise ConfigError(f"{where}: {key}: {str(value)[:60]!r} is no {kind.__name__}; restore it or delete it")
    return record


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of a run in a line; None where there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("id"), str) else None


def append_ledger(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Add `record` as one line: all of it or nothing, with any number of processes appending at once.

    Not-a-number and infinity become null, which JSON has and they are not. What a killed writer left behind the last
    newline is completed if it is a whole record, else cut off. Raises OSError, naming the file, when the disk is full.
    """
    if not isinstance(record.get("id"), str):
        raise ValueError("a ledger record needs an id")
    line = json.dumps(_finite(record), sort_keys=True, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        _append(path, line)


def _append(path: Path, line: bytes) -> None:
    if path.exists():
        check_regular(path)
    file = LineFile(path)
    try:
        lock(file.descriptor)  # closing the file releases it, also when the process is killed
        if parse_line(file.partial_line()) is not None:
            line = b"\n" + line
        else:
            file.cut_partial_line()
        file.append(line)
        file.sync()
    finally:
        file.close()


def _finite(value: Any) -> Any:
    """`value` with every non-finite number replaced by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
