"""Texts of any size in seconds: made-up words or characters, drawn by Zipf's law.

The n-th most frequent of V types has probability log((n + 1) / n) / log(V + 1), which is 1/n but for the first few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

# Draws at a time, so that the memory of this process stays below that of those whose memory is measured.
_BLOCK = 1 << 18
# Every so many draws are the next entry of the table instead, so that a long text has every type.
_ROUND = 64
_SYLLABLES = ["".join(sounds) for sounds in itertools.product("bcdfghjklmnpqrstvwxz", "aeiou", "bcdfghjklmnpqrstvwxz")]
# Of 57 tokens one ends a line, as in WikiText-103, where the line end is the fourth most frequent of 267,735 types ...
_LINE_END_WORDS = 3
# ... and one of 88 bytes, as in enwik8.
_LINE_END_CHARACTERS = 13


def word_table(types: int, ending: str = "") -> list[bytes]:
    """Line end and made-up words, frequent ones of one syllable and `ending`: `types` with `<unk>`, which they lack."""
    words = ("".join(sounds) for k in itertools.count(1) for sounds in itertools.product(_SYLLABLES, repeat=k))
    table = [f"{word}{ending} ".encode() for word in itertools.islice(words, types - 2)]
    table.insert(_LINE_END_WORDS, b"\n")
    return table


def character_table() -> list[bytes]:
    """Characters that have 205 bytes between them, as many as enwik8: ASCII, then longer ones of every first byte."""
    frequent = " etaoinsrhldcumfpgwybvk"
    ascii_only = "".join(map(chr, range(0x20, 0x7E)))
    table = [character.encode() for character in dict.fromkeys(frequent + ascii_only)]
    table.insert(_LINE_END_CHARACTERS, b"\n")
    two = [bytes([0xC2 + n % 30, 0x80 + n]) for n in range(64)]
    three = [bytes([0xE0 + n, 0xA0 if n == 0 else 0x80, 0x80]) for n in range(16)]
    return table + two + three


def _blocks(table: Sequence[bytes], seed: int) -> Iterator[np.ndarray]:
    """Entries of the table without end, `_BLOCK` at a time."""
    generator = np.random.default_rng(seed)
    entries = np.array(table)
    types = len(entries)
    for start in itertools.count(0, _BLOCK // _ROUND):
        drawn = np.exp(generator.random(_BLOCK) * math.log(types + 1)).astype(np.int64) - 1
        drawn[::_ROUND] = np.arange(start, start + _BLOCK // _ROUND) % types
        yield entries[drawn]


def write_tokens(path: Path, table: Sequence[bytes], tokens: int, seed: int) -> None:
    """Write a text of exactly `tokens` entries of the table, of which the last is a line end."""
    with path.open("wb") as file:
        for block in _blocks(table, seed):
            if last := len(block) >= tokens:
                block = block[:tokens]
                block[-1] = b"\n"
            file.write(_joined(block))
            if last:
                return
            tokens -= len(block)


def write_size(path: Path, table: Sequence[bytes], size: int, seed: int) -> None:
    """Write a text of exactly `size` bytes: as many entries as fit, then spaces and a line end."""
    with path.open("wb") as file:
        for block in _blocks(table, seed):
            text = _joined(block)
            if len(text) >= size:
                fitting = np.searchsorted(np.char.str_len(block).cumsum(), size - 1, side="right")
                file.write(_joined(block[:fitting]).ljust(size - 1) + b"\n")
                return
            file.write(text)
            size -= len(text)


def _joined(block: np.ndarray) -> bytes:
    """The entries as text: arrays of bytes fill up short ones with NULs."""
    return block.tobytes().translate(None, b"\0")
