"""Which runs a ledger already has: by the `id` of its lines, in which fields added later change nothing.

A sweep asks before each run, and a ledger may have 100,000 lines, 300 MB. So a line is read once, as far as its
identity and status, and parsed when its record is asked for; later only what other processes have added is read.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from lm.base.errors import ConfigError
from lm.base.files import check_regular
from lm.base.locks import lock
from lm.study.ledger import check_record, parse_line

logger = logging.getLogger(__name__)


# Where a line lies in the file, its length and number, and the status that it says.
_Line = tuple[int, int, int, str]
# In JSON a quote inside of a string has a backslash before it, so a key with both its quotes is no text.
_ID = re.compile(rb'"id": "([0-9a-f]{12})"')
_STATUS = re.compile(rb'"status": "([a-z]+)"')


class Settled:
    """Records of the ledger `path` and, beside them, those that are entered here and are no lines of it."""

    def __init__(self, path: Path) -> None:
        """Read the ledger. Raises ConfigError as `refresh`."""
        self._path = path
        self._entered: dict[str, dict[str, Any]] = {}
        self._forget()
        self.refresh()

    def _forget(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._stamp: tuple[int, ...] = ()
        self._end = self._number = 0
        self._last = b""

    def refresh(self) -> None:
        """Read what was added since the last time, or all of a file that was changed otherwise.

        A last line that a killed writer left unfinished is skipped with a warning. Raises ConfigError for any other
        damage.
        """
        try:
            check_regular(self._path)
            with open(self._path, "rb") as file:
                if self._stamp == _stamp(file.fileno()):
                    return
                lock(file.fileno(), shared=True)
                file.seek(self._end - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._forget()
                self._stamp = _stamp(file.fileno())
                file.seek(self._end)
                for line in file:
                    self._read(line)
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error}") from None

    def _read(self, line: bytes) -> None:
        """Take in the line at the end of what is read. Whole ones only, for a writer may complete the last."""
        whole = line.endswith(b"\n")
        if line.strip():
            where = f"{self._path}:{self._number + 1}"
            if (seen := _glance(line) or _look(line, where)) is None:
                if whole:
                    raise ConfigError(f"{where}: not a JSON object with an id; restore or delete the line")
                logger.warning("%s: skipped the last line, which was not written to its end", where)
                return
            identity, status = seen
            self._lines[identity] = self._end, len(line), self._number + 1, status
            if self._entered:
                self._entered.pop(identity, None)
        if whole:
            self._end += len(line)
            self._number += 1
            self._last = line

    def status(self, identity: str) -> str:
        """How the run ended, by the ledger or by what was entered; empty: it is in neither."""
        if identity in self._entered:
            return self._entered[identity].get("status", "")
        return self._lines[identity][3] if identity in self._lines else ""

    def get(self, identity: str) -> dict[str, Any] | None:
        """The record of a run. Raises ConfigError where its line holds what no run writes."""
        if identity in self._entered:
            return self._entered[identity]
        if (line := self._lines.get(identity)) is None:
            return None
        start, length, number, _ = line
        with open(self._path, "rb") as file:
            file.seek(start)
            record = parse_line(file.read(length))
        if record is None:
            raise ConfigError(f"{self._path}:{number}: not a JSON object with an id; restore or delete the line")
        return check_record(record, f"{self._path}:{number}")

    def __getitem__(self, identity: str) -> dict[str, Any]:
        """The record of a run that is known to have one."""
        record = self.get(identity)
        assert record is not None, identity
        return record

    def enter(self, identity: str, record: dict[str, Any]) -> None:
        """Keep a record until a line of the ledger takes its place."""
        self._entered[identity] = record


def _stamp(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _glance(line: bytes) -> tuple[str, str] | None:
    """Identity and status of a line as `append_ledger` writes it, without parsing it; None for another."""
    identity = _ID.search(line)
    status = _STATUS.search(line)
    if identity is None or status is None or line[:1] != b"{" or line[-2:] != b"}\n":
        return None
    return identity[1].decode(), status[1].decode()


def _look(line: bytes, where: str) -> tuple[str, str] | None:
    """The same of any line; None for one that is no record of a run. Raises ConfigError as `check_record`."""
    record = parse_line(line)
    return None if record is None else (record["id"], check_record(record, where).get("status", ""))
