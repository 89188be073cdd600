"""Text as it is read: which files are accepted as text, and what a line and a word are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lm.base.errors import CorpusError
from lm.base.files import check_regular

# Unicode's White_Space, which is what `WhitespaceSplit` splits at. `str.split` and the `\s` of `re` also
# split at U+001C..U+001F, so a saved tokenizer would disagree with us about text that holds one of these.
_WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(f"[^{_WHITE_SPACE}]+")
split_words = _WORD.findall
find_word = _WORD.search


def find_whole(word: str) -> Callable[[str], list[str]]:
    """What finds a word in a text each time that it stands between white space, much faster than `split_words`."""
    return re.compile(f"{re.escape(word)}(?<![^{_WHITE_SPACE}]{re.escape(word)})(?![^{_WHITE_SPACE}])").findall


def word_spans(line: str) -> list[tuple[int, int]]:
    """Start and end of each word of `split_words`, in characters."""
    return [match.span() for match in _WORD.finditer(line)]


def split_lines(text: str) -> list[str]:
    r"""Lines of `text`, ended by \n only, see `universal_newlines`; no line follows the last \n."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def universal_newlines(text: str) -> str:
    r"""`text` with lines that end in \n, whatever system wrote it: \r\n, or \r where there is no \n, become \n."""
    if "\r" not in text:
        return text
    return text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")


def text_of(raw: bytes) -> str:
    r"""Text of UTF-8 bytes, with or without a byte order mark, its lines ended by \n."""
    return universal_newlines(raw.decode("utf-8-sig"))


def count_words(text: str) -> int:
    """Tokens of `text` at the word level: its words and one `<eos>` a line."""
    return sum(len(split_words(line)) + 1 for line in split_lines(text))


def check_text(raw: bytes, name: str | Path) -> str:
    """Text of bytes that are UTF-8 (with or without a byte order mark) and hold at least one word.

    Raises:
        CorpusError: they are not text, or empty; the message starts with `name`.
    """
    try:
        text = text_of(raw)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{name}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise CorpusError(f"{name}: not UTF-8 text: a NUL at byte {raw.index(0)} (UTF-16, or a binary file?)")
    if find_word(text) is None:
        raise CorpusError(f"{name}: empty, holds no word")
    return text


def read_text(path: Path) -> str:
    """Text of a file that `check_text` accepts.

    Raises:
        CorpusError: the file is missing, unreadable, not text, or empty.
    """
    try:
        check_regular(path)
        raw = _read(path)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
    return check_text(raw, path)


def _read(path: Path) -> bytes:
    """Bytes of a file up to the block with the first NUL, which is enough to refuse it: an image of a disk is long."""
    blocks = []
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            blocks.append(block)
            if b"\0" in block:
                break
    return b"".join(blocks)
