"""Word-level tokenizer: vocabulary and encoding, saved in the format of the `tokenizers` library."""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

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


class WordTokenizer:
    """Words between white space, numbered; `<eos>` ends every line, `<unk>` stands for an unknown word.

    There is no normalisation and there are no added tokens, so a word is looked up exactly as it stands in the
    text; a literal `<unk>` or `<eos>` of the text is the same token as ours. Encoding is a dictionary look-up,
    three times as fast as `Tokenizer.encode_batch_fast` and equal to it.
    """

    DEFINITION = "word level, Unicode White_Space, <eos> a line, order of first appearance in train; version 1"

    def __init__(self, words: Iterable[str]) -> None:
        """Number `words` in their order.

        Raises:
            ValueError: a word is empty, repeated or holds white space, or `<eos>` or `<unk>` is missing.
        """
        self.words = list(words)
        self.vocab = {word: index for index, word in enumerate(self.words)}
        if len(self.vocab) != len(self.words):
            raise ValueError("the vocabulary repeats a word")
        if EOS not in self.vocab or UNK not in self.vocab:
            raise ValueError(f"the vocabulary lacks {EOS} or {UNK}")
        if any(split_words(word) != [word] for word in self.words):
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

    @property
    def vocab_size(self) -> int:
        """Number of types, `<eos>` and `<unk>` included."""
        return len(self.words)

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a line."""
        return self.vocab[EOS]

    @property
    def unk_id(self) -> int:
        """Id of the token for an unknown word."""
        return self.vocab[UNK]

    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:
        r"""Token ids of `text`, int32 (N,), with `<eos>` after every line.

        Args:
            text: lines separated by \n, words by white space.
            final_eos: False leaves a last line that has no \n open, as a prompt is.
        """
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

    def unknown_words(self, text: str) -> Counter[str]:
        """Words of `text` outside the vocabulary and how often each occurs; a literal `<unk>` is not one."""
        words = Counter(word for line in split_lines(text) for word in split_words(line))
        return Counter({word: count for word, count in words.items() if word not in self.vocab})

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words of token ids.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"token ids must lie in 0..{self.vocab_size - 1}, got {ids.min()}..{ids.max()}")
        return [self.words[index] for index in ids.tolist()]

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, complete or not at all, for `tokenizers.Tokenizer.from_file`.

        Raises:
            OSError: the file cannot be written.
        """
        tokenizer = Tokenizer(WordLevel(self.vocab, unk_token=UNK))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        write_atomic(Path(path), lambda file: file.write(tokenizer.to_str(pretty=True).encode()))

    @classmethod
    def load(cls, path: str | Path) -> WordTokenizer:
        """Read a `tokenizer.json` that `save` wrote.

        Raises:
            CorpusError: the file is missing, damaged or holds another kind of tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
            if not isinstance(tokenizer.model, WordLevel) or not isinstance(tokenizer.pre_tokenizer, WhitespaceSplit):
                raise ValueError("not a word-level tokenizer that splits at white space")
            vocab = tokenizer.get_vocab()
            if sorted(vocab.values()) != list(range(len(vocab))):
                raise ValueError("the token ids have holes")
            return cls(sorted(vocab, key=vocab.__getitem__))
        except Exception as error:  # the library raises plain `Exception` for what it cannot parse
            raise CorpusError(f"{path}: not a usable tokenizer: {error}") from error
