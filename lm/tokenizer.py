"""What all tokenizers share, and the word level; saved in the format of the `tokenizers` library."""

from __future__ import annotations

import hashlib
import re
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from lm.errors import CorpusError
from lm.files import write_atomic

EOS = "<eos>"
UNK = "<unk>"

# Unicode's White_Space, which is what `WhitespaceSplit` splits at. `str.split` and the `\s` of `re` also
# split at U+001C..U+001F, so a saved tokenizer would disagree with us about text that holds one of these.
_WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
split_words = re.compile(f"[^{_WHITE_SPACE}]+").findall


def split_lines(text: str) -> list[str]:
    r"""Lines of `text`, ended by \n only (the \r of a \r\n is white space); no line follows the last \n."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def count_words(text: str) -> int:
    """Tokens of `text` at the word level: its words and one `<eos>` a line."""
    return sum(len(split_words(line)) + 1 for line in split_lines(text))


def check_text(raw: bytes, name: str | Path) -> str:
    """Text of bytes that are UTF-8 (with or without a byte order mark) and hold at least one word.

    Raises:
        CorpusError: they are not text, or empty; the message starts with `name`.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{name}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise CorpusError(f"{name}: not UTF-8 text: a NUL at byte {raw.index(0)} (UTF-16, or a binary file?)")
    if not any(split_words(line) for line in split_lines(text)):
        raise CorpusError(f"{name}: empty, holds no word")
    return text


def read_text(path: Path) -> bytes:
    """Bytes of a text file that `check_text` accepts.

    Raises:
        CorpusError: the file is missing, unreadable, not text, or empty.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CorpusError(f"{path}: not a regular file")
        raw = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
    check_text(raw, path)
    return raw


# Tokens that stand without a space before or after them in ordinary English.
_NO_SPACE_BEFORE = frozenset([*",.;:!?%)]}", "...", "''"])
_NO_SPACE_AFTER = frozenset([*"([{$£€", "``"])
# The Penn Treebank splits contractions and possessives off their word ...
_CONTRACTION = re.compile(r"n't|'(s|m|d|re|ve|ll|t)?", re.IGNORECASE)
# ... and WikiText-2 marks a character that stood within one.
_INNER = {"@-@": "-", "@,@": ",", "@.@": "."}


def detokenize(words: Iterable[str]) -> str:
    r"""Readable English of words tokenized as PTB or WikiText-2 are; every `<eos>` becomes a \n.

    Punctuation is attached, straight quotes in pairs within a line; contractions are joined ("did n't", "Teddy 's"),
    "@-@", "@,@" and "@.@" become the character between the words around them, PTB's "\/" becomes "/".
    """
    pieces, joined, quoted = [], True, False
    for word in words:
        if word == EOS:
            pieces.append("\n")
            joined, quoted = True, False
            continue
        inner, quote = word in _INNER, word == '"'
        attached = inner or word in _NO_SPACE_BEFORE or _CONTRACTION.fullmatch(word) or (quote and quoted)
        pieces += ["" if joined or attached else " ", _INNER.get(word, word.replace("\\/", "/"))]
        joined = inner or word in _NO_SPACE_AFTER or (quote and not quoted)
        quoted ^= quote
    return "".join(pieces)


class TextTokenizer(ABC):
    r"""Types of a vocabulary and their ids. Lines end at \n, and every one ends with `<eos>`, in each kind."""

    kind: ClassVar[str]
    """as `--tokenizer` names it"""
    DEFINITION: ClassVar[str]
    """changes whenever the same text would get other ids"""

    def __init__(self, types: Iterable[str]) -> None:
        """Number `types` in their order. Raises ValueError if one is repeated or `<eos>` is missing."""
        self.types = list(types)
        self.vocab = {name: index for index, name in enumerate(self.types)}
        if len(self.vocab) != len(self.types):
            raise ValueError("the vocabulary repeats a type")
        if EOS not in self.vocab:
            raise ValueError(f"the vocabulary lacks {EOS}")

    @property
    def vocab_size(self) -> int:
        """Number of types, `<eos>` and `<unk>` included."""
        return len(self.types)

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a line."""
        return self.vocab[EOS]

    @property
    def unk_id(self) -> int | None:
        """Id of the token for what is unknown; None where nothing is."""
        return self.vocab.get(UNK)

    @abstractmethod
    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:
        r"""Token ids of `text`, int32 (N,), with `<eos>` for the end of every line.

        Args:
            text: lines separated by \n.
            final_eos: False leaves a last line that has no \n open, as a prompt is.
        """

    @abstractmethod
    def unknown(self, text: str) -> Counter[str]:
        """What of `text` becomes `<unk>` because the vocabulary lacks it, and how often each occurs."""

    def text(self, ids: Iterable[int]) -> str:
        r"""Text of token ids, a \n for every `<eos>`.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        lines: list[list[str]] = [[]]
        for name in self.decode(ids):
            if name == EOS:
                lines.append([])
            else:
                lines[-1].append(name)
        return "\n".join(map(self.join, lines))

    @abstractmethod
    def join(self, types: list[str]) -> str:
        """The types of a line as text."""

    @abstractmethod
    def library(self) -> Tokenizer:
        """The same tokenizer in the `tokenizers` library."""

    @classmethod
    @abstractmethod
    def from_library(cls, library: Tokenizer) -> Self:
        """Back from the library. Raises ValueError if it is of another kind."""

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Types of token ids.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"token ids must lie in 0..{self.vocab_size - 1}, got {ids.min()}..{ids.max()}")
        return [self.types[index] for index in ids.tolist()]

    def fingerprint(self) -> str:
        """Checksum of the vocabulary: types and their order."""
        return hashlib.sha256(" ".join(map(repr, self.types)).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, complete or not at all, for `tokenizers.Tokenizer.from_file`.

        Raises:
            OSError: the file cannot be written.
        """
        text = self.library().to_str(pretty=True)
        write_atomic(Path(path), lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a `tokenizer.json` that `save` wrote.

        Raises:
            CorpusError: the file is missing, damaged or holds another kind of tokenizer.
        """
        try:
            return cls.from_library(Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as error:  # the library raises plain `Exception` for what it cannot parse
            raise CorpusError(f"{path}: not a usable tokenizer: {error}") from error


def types_in_order(library: Tokenizer) -> list[str]:
    """Types of a tokenizer of the library by id. Raises ValueError if ids are missing."""
    vocab = library.get_vocab()
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("the token ids have holes")
    return sorted(vocab, key=vocab.__getitem__)


class WordTokenizer(TextTokenizer):
    """Words between white space, numbered; `<eos>` ends every line, `<unk>` stands for an unknown word.

    There is no normalisation and there are no added tokens, so a word is looked up exactly as it stands in the
    text; a literal `<unk>` or `<eos>` of the text is the same token as ours. Encoding is a dictionary look-up,
    three times as fast as `Tokenizer.encode_batch_fast` and equal to it.
    """

    kind = "word"
    DEFINITION = "word level, Unicode White_Space, <eos> a line, order of first appearance in train; version 1"

    def __init__(self, types: Iterable[str]) -> None:
        """Number the words in their order.

        Raises:
            ValueError: a word is empty, repeated or holds white space, or `<eos>` or `<unk>` is missing.
        """
        super().__init__(types)
        if UNK not in self.vocab:
            raise ValueError(f"the vocabulary lacks {UNK}")
        if any(split_words(word) != [word] for word in self.types):
            raise ValueError("the vocabulary holds an empty word or one with white space")

    @classmethod
    def from_text(cls, text: str) -> WordTokenizer:
        """Vocabulary of a training text in order of first appearance, as awd-lstm-lm numbers it.

        `<unk>` is added at the end where the text has none.
        """
        vocab = dict.fromkeys(word for line in split_lines(text) for word in (*split_words(line), EOS))
        vocab.setdefault(EOS)
        vocab.setdefault(UNK)
        return cls(vocab)

    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:  # noqa: D102 - as above
        lines = split_lines(text)
        last = len(lines) - 1 if final_eos or text.endswith("\n") else len(lines) - 2

        def ids() -> Iterator[int]:
            get, eos, unk = self.vocab.get, self.eos_id, self.unk_id
            for index, line in enumerate(lines):
                for word in split_words(line):
                    yield get(word, unk)
                if index <= last:
                    yield eos

        return np.fromiter(ids(), dtype=np.int32)

    def unknown(self, text: str) -> Counter[str]:
        """Words of `text` outside the vocabulary and how often each occurs; a literal `<unk>` is not one."""
        words = Counter(word for line in split_lines(text) for word in split_words(line))
        return Counter({word: count for word, count in words.items() if word not in self.vocab})

    def join(self, types: list[str]) -> str:
        """Words in the format of the corpus: one space between them."""
        return " ".join(types)

    def library(self) -> Tokenizer:  # noqa: D102 - as above
        library = Tokenizer(WordLevel(self.vocab, unk_token=UNK))
        library.pre_tokenizer = WhitespaceSplit()
        return library

    @classmethod
    def from_library(cls, library: Tokenizer) -> WordTokenizer:  # noqa: D102 - as above
        if not isinstance(library.model, WordLevel) or not isinstance(library.pre_tokenizer, WhitespaceSplit):
            raise ValueError("not a word-level tokenizer that splits at white space")
        return cls(types_in_order(library))
