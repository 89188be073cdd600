"""The texts of a corpus as streams, read in blocks whatever their size; a source is hashable, by its files."""

from __future__ import annotations

import codecs
import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lm.base.errors import CorpusError
from lm.text.formats import file_chunks
from lm.text.reading import find_word

# A line longer than this is handed on in pieces, cut at a space between two words.
_LONG_LINE = 1 << 22
_INNER_SPACE = re.compile(r"(?<=\S) (?=\S)")


class Text(ABC):
    """The text of a split. Equal texts are one key: `survey` and `digest` read a file once, as long as it stays."""

    name: str
    """what messages call it"""
    exact: ClassVar[bool] = False
    r"""whether the text is bytes cut out of more: they stay as they are, \r too, and its end ends no line"""

    @abstractmethod
    def chunks(self) -> Iterator[bytes]:
        """The text from its start, UTF-8. Raises CorpusError where it cannot be read."""

    def blocks(self, errors: str = "strict") -> Iterator[str]:
        r"""The text in blocks of lines that end in \n; the last line, and one of megabytes, may come without its end.

        Args:
            errors: what becomes of bytes that are no UTF-8, as in `bytes.decode`.
        """
        decoder = codecs.getincrementaldecoder("utf-8" if self.exact else "utf-8-sig")(errors)
        carriage = "" if self.exact else survey(self).carriage
        rest = ""
        for chunk in self.chunks():
            seen = len(rest)
            rest += decoder.decode(chunk)
            if end := rest.rfind("\r" if carriage == "\r" else "\n", seen) + 1:
                yield _newlines(rest[:end], carriage)
                rest = rest[end:]
            elif len(rest) > _LONG_LINE and (spaces := [space.start() for space in _INNER_SPACE.finditer(rest, seen)]):
                yield rest[: spaces[-1]]
                rest = rest[spaces[-1] :]
        if rest := rest + decoder.decode(b"", final=True):
            yield _newlines(rest, carriage)


def _newlines(block: str, carriage: str) -> str:
    r"""`block` with lines ended by \n, where `carriage` is \r or \r\n; see `lm.text.reading.universal_newlines`."""
    return block.replace(carriage, "\n") if carriage else block


@dataclass(frozen=True)
class Survey:
    """What one reading of a text tells: its checksum, its number of line ends, and what ends its lines beside a \\n."""

    sha256: str
    lines: int
    carriage: str
    r"""\r\n or, in a text without \n, \r; empty: there is no \r"""


@functools.lru_cache(maxsize=64)
def survey(text: Text) -> Survey:
    """Read a text to its end. Raises CorpusError, naming it, where it is no UTF-8 text, or holds no word."""
    sha256 = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape" if text.exact else "strict")
    newlines = returns = read = 0
    a_word = False
    for chunk in text.chunks():
        sha256.update(chunk)
        newlines += chunk.count(b"\n")
        returns += chunk.count(b"\r")
        pending = len(decoder.getstate()[0])
        try:
            part = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            where = read - pending + error.start
            raise CorpusError(f"{text.name}: not UTF-8 text: {error.reason} at byte {where}") from error
        if b"\0" in chunk:
            where = read + chunk.index(b"\0")
            raise CorpusError(f"{text.name}: not UTF-8 text: a NUL at byte {where} (UTF-16, or a binary file?)")
        a_word = a_word or find_word(part) is not None
        read += len(chunk)
    if (unfinished := len(decoder.getstate()[0])) and not text.exact:
        raise CorpusError(f"{text.name}: not UTF-8 text: unexpected end of data at byte {read - unfinished}")
    if not a_word:
        raise CorpusError(f"{text.name}: empty, holds no word")
    carriage = "" if not returns else "\r\n" if newlines else "\r"
    return Survey(sha256.hexdigest(), newlines, carriage)


@functools.lru_cache(maxsize=64)
def digest(text: Text, algorithm: str) -> str:
    """Checksum of a text by any algorithm that `hashlib` has."""
    found = hashlib.new(algorithm)
    for chunk in text.chunks():
        found.update(chunk)
    return found.hexdigest()


@dataclass(frozen=True)
class MemoryText(Text):
    """A text in memory."""

    name: str
    content: bytes

    def chunks(self) -> Iterator[bytes]:  # noqa: D102 - as the base class
        yield self.content


@dataclass(frozen=True)
class FileText(Text):
    """The text of one or more files; `stamps` are another where a file was changed."""

    files: tuple[Path, ...]
    stamps: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, files: Sequence[Path]) -> FileText:
        """The text of `files`, in this order. Raises CorpusError where one is not there."""
        return cls(tuple(files), tuple(map(_stamp, files)))

    @property
    def name(self) -> str:  # type: ignore[override]
        """The file, or their folder."""
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)

    def chunks(self) -> Iterator[bytes]:  # noqa: D102 - as the base class
        several = len(self.files) > 1
        for path in self.files:
            last = b""
            for chunk in file_chunks(path):
                yield chunk.removeprefix(codecs.BOM_UTF8) if several and not last else chunk
                last = chunk
            if several and not last.endswith(b"\n"):
                yield b"\n"


@dataclass(frozen=True)
class CutText(Text):
    """Bytes `start` to `stop` of the file `path`."""

    exact = True
    path: Path
    stamp: tuple[int, ...]
    start: int
    stop: int

    @classmethod
    def of(cls, path: Path, start: int, stop: int) -> CutText:
        """The bytes of `path`. Raises CorpusError where it is not there."""
        return cls(path, _stamp(path), start, stop)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The file."""
        return str(self.path)

    def chunks(self) -> Iterator[bytes]:  # noqa: D102 - as the base class
        read = 0
        for chunk in file_chunks(self.path):
            if part := chunk[max(0, self.start - read) : max(0, self.stop - read)]:
                yield part
            read += len(chunk)
            if read >= self.stop:
                return


@dataclass(frozen=True)
class RewrittenText(Text):
    """Another text's blocks, each passed through `rewrite`, which sees whole lines."""

    of: Text
    rewrite: Callable[[str], str]

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the other text."""
        return self.of.name

    def chunks(self) -> Iterator[bytes]:  # noqa: D102 - as the base class
        for block in self.of.blocks():
            yield self.rewrite(block).encode()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
