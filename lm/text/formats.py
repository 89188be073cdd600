r"""Files of text: plain or compressed, JSON lines or Parquet.

| file | its text |
|---|---|
| `.txt`, `.tokens` | as it stands, UTF-8 with or without a byte order mark |
| `.jsonl` | of each line, the string `text` of the object on it |
| `.parquet` | of each row, the string column `text` |

`.txt`, `.tokens` and `.jsonl` may be compressed, with `.gz` or `.zst` after that. A row ends with \n, if it does not
already.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from lm.base.errors import CorpusError
from lm.base.files import check_regular

EXTENSIONS = r"\.(?:(?:txt|tokens|jsonl)(?:\.gz|\.zst)?|parquet)"
# The object's key, or the column, that holds the text.
FIELD = "text"
# Bytes that are read at a time; about as many characters are tokenized at a time, in 20 times as much memory.
_CHUNK = 1 << 21


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Files by their names, numbers in them by value: part-2 comes before part-10."""
    return sorted(paths, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)])


def file_chunks(path: Path) -> Iterator[bytes]:
    """The text of a file. Raises CorpusError, naming it, where it cannot be read or holds something else."""
    try:
        check_regular(path)
        if path.suffix == ".parquet":
            yield from _rows(path, _parquet_rows(path))
            return
        with _decompressed(path) as file:
            if ".jsonl" in path.suffixes:
                yield from _rows(path, map(_json_text, file))
                return
            while chunk := file.read(_CHUNK):
                yield chunk
    except (EOFError, zlib.error, zipfile.BadZipFile, KeyError) as error:
        raise CorpusError(f"{path}: cannot be decompressed: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decompressed(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zip":
        return zipfile.ZipFile(path).open(path.stem)
    if path.suffix == ".zst":
        import pyarrow  # takes a tenth of a second, and the standard library has Zstandard from Python 3.14 on only

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return open(path, "rb")


def _rows(path: Path, rows: Iterable[Any]) -> Iterator[bytes]:
    """Rows as lines, some megabytes at a time. Raises CorpusError, naming the row, where one is no text."""
    pieces: list[bytes] = []
    size = 0
    for number, row in enumerate(rows, 1):
        try:
            pieces.append((row if row.endswith("\n") else f"{row}\n").encode())
        except (AttributeError, TypeError, UnicodeEncodeError):
            raise CorpusError(f"{path}: row {number} has no text in {FIELD!r}") from None
        size += len(pieces[-1])
        if size > _CHUNK:
            yield b"".join(pieces)
            pieces.clear()
            size = 0
    if pieces:
        yield b"".join(pieces)


def _json_text(line: bytes) -> Any:
    try:
        return json.loads(line)[FIELD]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if FIELD not in (names := file.schema_arrow.names):
                raise CorpusError(f"{path}: has no column {FIELD!r}, only {', '.join(names)}")
            for batch in file.iter_batches(1000, columns=[FIELD]):
                yield from batch[FIELD].to_pylist()
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{path}: not a Parquet file: {' '.join(str(error).split())[:200]}") from error
