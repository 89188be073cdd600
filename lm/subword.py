r"""Tokenizers of units smaller than words, and the choice among all: `--tokenizer word|char|bpe`.

What the lines of a corpus become, in each case followed by `<eos>`, the last line and blank ones too:

    word    the words between white space; how much of it there was is lost
    char    every character, white space and the \r of a \r\n included; those that train lacks become `<unk>`
    bpe     the line's UTF-8 bytes as they are, merged into pieces; no text is unknown, no piece spans two lines

The line " the cat" of the published PTB therefore begins with the piece " the", as words inside a line do, but the
line "the cat" of an own text with the other piece "the". A literal `<eos>` or `<unk>` in the text is read letter by
letter here, in `word` as the token of that name.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Fuse
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.trainers import BpeTrainer

from lm.tokenizer import EOS, UNK, TextTokenizer, WordTokenizer, split_lines, types_in_order

logger = logging.getLogger(__name__)

# With `_NEWLINE`, the library reads \n as `<eos>` too: a saved tokenizer encodes a whole text as we do.
_EOS_TOKEN = AddedToken(EOS, normalized=True, special=True)
_NEWLINE = Replace("\n", EOS)
# Lines that are encoded at a time: the library's result takes a hundred bytes a token.
_BATCH = 2000
# A pair of pieces seen once in train is no pattern.
_MIN_FREQUENCY = 2


class CharTokenizer(TextTokenizer):
    r"""Characters (Unicode code points) of train in order of first appearance; `<eos>` is the end of a line."""

    kind = "char"
    DEFINITION = "characters, <eos> for the line end, order of first appearance in train; version 1"

    def __init__(self, types: Iterable[str]) -> None:
        """Number the characters. Raises ValueError if one is not a character, or `<eos>` or `<unk>` is missing."""
        super().__init__(types)
        characters = [name for name in self.types if name not in (EOS, UNK)]
        if UNK not in self.vocab or any(len(name) != 1 or name == "\n" for name in characters):
            raise ValueError(f"the vocabulary lacks {UNK}, or holds more than characters")
        self._ids = np.full(0x110000, self.vocab[UNK], dtype=np.int32)
        self._ids[[ord(name) for name in characters]] = [self.vocab[name] for name in characters]
        self._ids[ord("\n")] = self.eos_id

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """Vocabulary of a training text; `<unk>` is added at the end."""
        return cls(dict.fromkeys([*(EOS if name == "\n" else name for name in dict.fromkeys(text)), EOS, UNK]))

    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:  # noqa: D102 - as the base class
        if final_eos and text and not text.endswith("\n"):
            text += "\n"
        return self._ids[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]

    def unknown(self, text: str) -> Counter[str]:
        """Characters outside the vocabulary and how often each occurs."""
        return Counter({name: n for name, n in Counter(text).items() if name not in self.vocab and name != "\n"})

    def join(self, types: list[str]) -> str:  # noqa: D102 - as the base class
        return "".join(types)

    def library(self) -> Tokenizer:  # noqa: D102 - as the base class
        library = Tokenizer(WordLevel(self.vocab, unk_token=UNK))
        library.normalizer = _NEWLINE
        library.add_special_tokens([_EOS_TOKEN])
        library.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
        library.decoder = Fuse()
        return library

    @classmethod
    def from_library(cls, library: Tokenizer) -> CharTokenizer:  # noqa: D102 - as the base class
        if not isinstance(library.model, WordLevel) or not isinstance(library.pre_tokenizer, Split):
            raise ValueError("not a tokenizer of characters")
        return cls(types_in_order(library))


class BPETokenizer(TextTokenizer):
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; on bytes: Radford et al. 2019, sec. 2.2).

    Merges happen within a line and within the runs of letters, digits or other signs, each with one space before it,
    that GPT-2 splits text into. The types are `<eos>`, the 256 bytes, and the merges of train, most frequent first.
    """

    kind = "bpe"
    DEFINITION = f"byte-level BPE, GPT-2's split, <eos> for the line end, merges seen {_MIN_FREQUENCY} times; version 1"

    def __init__(self, library: Tokenizer) -> None:
        """Take a trained tokenizer of the library."""
        super().__init__(types_in_order(library))
        self._library = library
        # A literal `<eos>` in a line is text. This is no part of the saved file.
        self._library.encode_special_tokens = True

    @classmethod
    def from_text(cls, text: str, vocab_size: int) -> BPETokenizer:
        """Learn merges from a training text until there are `vocab_size` types, or no pair is left that recurs.

        The same text gives the same merges, on any number of threads.
        """
        library = Tokenizer(BPE())
        library.normalizer = _NEWLINE
        library.pre_tokenizer = ByteLevel(add_prefix_space=False)
        library.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=_MIN_FREQUENCY,
            special_tokens=[_EOS_TOKEN],
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(split_lines(text), trainer)
        return cls(library)

    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:  # noqa: D102 - as the base class
        lines = split_lines(text)

        def ids() -> Iterator[int]:
            for start in range(0, len(lines), _BATCH):
                for line in self._library.encode_batch_fast(lines[start : start + _BATCH], add_special_tokens=False):
                    yield from line.ids
                    yield self.eos_id

        found = np.fromiter(ids(), dtype=np.int32)
        return found if final_eos or text.endswith("\n") else found[:-1]

    def unknown(self, text: str) -> Counter[str]:
        """Nothing: every text consists of bytes."""
        return Counter()

    def join(self, types: list[str]) -> str:
        """The bytes of the pieces as text; where they are not UTF-8, as a model may write, U+FFFD."""
        return self._library.decoder.decode(types)

    def library(self) -> Tokenizer:  # noqa: D102 - as the base class
        return self._library

    @classmethod
    def from_library(cls, library: Tokenizer) -> BPETokenizer:  # noqa: D102 - as the base class
        if not isinstance(library.model, BPE) or not isinstance(library.pre_tokenizer, ByteLevel):
            raise ValueError("not a byte-level BPE tokenizer")
        return cls(library)


_KINDS = {owner.kind: owner for owner in (WordTokenizer, CharTokenizer, BPETokenizer)}


@dataclass(frozen=True)
class Tokenization:
    """Which tokenizer a corpus is read with; `bpe_vocab_size` is for bpe alone."""

    kind: str = WordTokenizer.kind
    bpe_vocab_size: int = 0

    @property
    def definition(self) -> str:
        """Differs for tokenizers that would give one text different ids."""
        types = f"; {self.bpe_vocab_size} types" if self.kind == BPETokenizer.kind else ""
        return _KINDS[self.kind].DEFINITION + types

    def train(self, text: str) -> TextTokenizer:
        """The tokenizer that a training text gives."""
        if self.kind == BPETokenizer.kind:
            tokenizer = BPETokenizer.from_text(text, self.bpe_vocab_size)
            if tokenizer.vocab_size < self.bpe_vocab_size:
                logger.warning("bpe: the text yields %d types, not %d", tokenizer.vocab_size, self.bpe_vocab_size)
            return tokenizer
        return _KINDS[self.kind].from_text(text)

    def load(self, path: Path) -> TextTokenizer:
        """Read `tokenizer.json`. Raises CorpusError if it is damaged or of another kind."""
        return _KINDS[self.kind].load(path)
