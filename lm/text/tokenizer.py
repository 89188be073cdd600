"""What all tokenizers share: a vocabulary, ids for a text and back, a file in the `tokenizers` library's format."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import Replace

from lm.base.errors import CorpusError
from lm.base.files import read_file, write_bytes

EOS = "<eos>"
UNK = "<unk>"
# With `NEWLINE`, the library reads \n as `<eos>` too: a saved tokenizer encodes a whole text as we do.
EOS_TOKEN = AddedToken(EOS, normalized=True, special=True)
NEWLINE = Replace("\n", EOS)


class TextTokenizer(ABC):
    r"""Types of a vocabulary and their ids. Lines end at \n, and every one ends with `<eos>`, in each kind."""

    kind: ClassVar[str]
    """as `--tokenizer` names it"""
    DEFINITION: ClassVar[str]
    """changes whenever the same text would get other ids"""
    decoding_errors: ClassVar[str] = "replace"
    """what becomes of bytes that are no UTF-8, in a text that was cut within a character"""

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

    @property
    @abstractmethod
    def bits(self) -> str:
        """The unit that the nats of a token have in bits, `bits_per_char` or `bits_per_byte`; empty: it has none."""

    @classmethod
    @abstractmethod
    def from_blocks(cls, blocks: Iterable[str], vocab_size: int = 0) -> Self:
        """The tokenizer that a training text gives.

        Args:
            blocks: the text, as `Text.blocks` hands it out.
            vocab_size: types at most; 0: what the text holds.
        """

    @classmethod
    def from_text(cls, text: str, vocab_size: int = 0) -> Self:
        """The same of a text in memory."""
        return cls.from_blocks([text], vocab_size)

    def extended(self, types: Iterable[str]) -> Self:  # noqa: ARG002 - of those below
        """A tokenizer with those of `types` that this one lacks behind its own; itself where no text is unknown."""
        return self

    @abstractmethod
    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:
        r"""Token ids of `text`, int32 (N,), with `<eos>` for the end of every line.

        Args:
            text: lines separated by \n.
            final_eos: False leaves a last line that has no \n open, as a prompt is.
        """

    @abstractmethod
    def spans(self, line: str) -> list[tuple[int, int]]:
        """Where the tokens of a line stand in it, its `<eos>` excluded: start and end in characters.

        Pieces of one character all have its place.
        """

    @abstractmethod
    def unknown(self, text: str) -> Counter[str]:
        """What of `text` becomes `<unk>` because the vocabulary lacks it, and how often each occurs."""

    def count_unknown(self, text: str, ids: np.ndarray) -> int:
        """`unknown(text).total()`, where `ids` is what `encode` made of `text`."""
        return 0 if self.unk_id is None else int(np.count_nonzero(ids == self.unk_id))

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
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.vocab_size:
            raise ValueError(f"token ids must lie in 0..{self.vocab_size - 1}, got {array.min()}..{array.max()}")
        return [self.types[index] for index in array.tolist()]

    def fingerprint(self) -> str:
        """Checksum of the vocabulary: types and their order."""
        return hashlib.sha256(" ".join(map(repr, self.types)).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, complete or not at all, for `tokenizers.Tokenizer.from_file`.

        Raises:
            OSError: the file cannot be written.
        """
        write_bytes(Path(path), self.library().to_str(pretty=True).encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a `tokenizer.json` that `save` wrote.

        Raises:
            CorpusError: the file is missing, damaged or holds another kind of tokenizer.
        """
        try:
            return cls.from_library(Tokenizer.from_str(read_file(Path(path)).decode()))
        except Exception as error:  # the library raises plain `Exception` for what it cannot parse
            raise CorpusError(f"{path}: not a usable tokenizer: {error}") from error


def types_in_order(library: Tokenizer) -> list[str]:
    """Types of a tokenizer of the library by id. Raises ValueError if ids are missing."""
    vocab = library.get_vocab()
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("the token ids have holes")
    return sorted(vocab, key=vocab.__getitem__)
