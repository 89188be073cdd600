r"""Word vectors as text, in word2vec's format: a line with their number and size, then a word and its values a line.

Files without the first line, as GloVe's, are read too. A word of this project may hold white space (a character may be
a space), which the format has no room for: it stands there as `<U+0020>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lm.base.errors import ConfigError
from lm.base.files import check_regular, write_atomic

_ESCAPED = re.compile(r"<U\+([0-9A-F]{4,6})>")


def _escape(word: str) -> str:
    return "".join(f"<U+{ord(letter):04X}>" if letter.isspace() else letter for letter in word)


def _unescape(word: str) -> str:
    def letter(found: re.Match[str]) -> str:
        code = int(found[1], 16)
        return chr(code) if code < 0x110000 and chr(code).isspace() else found[0]

    return _ESCAPED.sub(letter, word) if "<U+" in word else word


def write_vectors(path: Path, words: Sequence[str], vectors_VE: np.ndarray) -> None:
    """Write one vector a word, each value so that it is read back as the same float32. Raises OSError."""
    line = " ".join(["%s", *["%.9g"] * vectors_VE.shape[1]]) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(f"{len(words)} {vectors_VE.shape[1]}\n".encode())
        for word, vector in zip(words, vectors_VE.tolist(), strict=True):
            file.write((line % (_escape(word), *vector)).encode())

    write_atomic(path, write)


def read_vectors(path: Path, vocab: Mapping[str, int], size: int) -> dict[int, np.ndarray]:
    """Id of a word -> its vector, float32 (`size`,), for the words of `vocab`; of a word that comes twice the first.

    Raises:
        ConfigError: the file cannot be read, is no file of such vectors, or holds none of the words.
    """
    found: dict[int, np.ndarray] = {}
    try:
        check_regular(path)
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and _is_header(path, line.split(), size):
                    continue
                word, *values = line.rstrip().rsplit(" ", size)  # words of other files may hold spaces
                index = vocab.get(_unescape(word))
                if index is not None and index not in found:
                    found[index] = _vector(path, number, values, size)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--init-vectors: {path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if not found:
        raise ConfigError(f"--init-vectors: {path}: holds none of the {len(vocab):,} types of the corpus")
    return found


def _is_header(path: Path, fields: list[str], size: int) -> bool:
    """Whether the first line is the number of vectors and their size. Raises ConfigError for another size."""
    header = len(fields) == 2 and all(field.isdecimal() and len(field) < 20 for field in fields)
    if not fields:
        raise ConfigError(f"--init-vectors: {path}: its first line is empty; delete it")
    width = int(fields[1]) if header else len(fields) - 1
    if width != size:
        raise ConfigError(f"--init-vectors: {path}: no vectors of {size} values (--emsize), but of {width}")
    return header


def _vector(path: Path, number: int, values: list[str], size: int) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what is too large is refused below
            vector = np.array(values, dtype=np.float32)
    except ValueError:
        vector = np.empty(0, dtype=np.float32)
    if len(vector) != size or not np.isfinite(vector).all():
        raise ConfigError(f"--init-vectors: {path}:{number}: not a word and {size} finite values")
    return vector
