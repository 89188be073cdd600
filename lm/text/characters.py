"""The character level: a token is a Unicode code point, white space included, and `<eos>` is the end of a line.

No loop over characters in Python: a text is read as an array of code points that index a table of ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from lm.text.tokenizer import EOS, EOS_TOKEN, NEWLINE, UNK, TextTokenizer, types_in_order


class CharTokenizer(TextTokenizer):
    r"""Characters (Unicode code points) of train in order of first appearance; `<eos>` is the end of a line."""

    kind = "char"
    bits = "bits_per_char"
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
    def from_blocks(cls, blocks: Iterable[str], vocab_size: int = 0) -> CharTokenizer:
        """Vocabulary of a training text, all characters of it; `<unk>` is added at the end."""
        seen: dict[str, None] = {}
        for block in blocks:
            seen |= dict.fromkeys(block)
        return cls(dict.fromkeys([*(EOS if name == "\n" else name for name in seen), EOS, UNK]))

    def extended(self, types: Iterable[str]) -> CharTokenizer:  # noqa: D102 - as the base class
        return CharTokenizer(dict.fromkeys([*self.types, *types]))

    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:  # noqa: D102 - as the base class
        if final_eos and text and not text.endswith("\n"):
            text += "\n"
        return self._ids[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)]

    def spans(self, line: str) -> list[tuple[int, int]]:  # noqa: D102 - as the base class
        return [(place, place + 1) for place in range(len(line))]

    def unknown(self, text: str) -> Counter[str]:
        """Characters outside the vocabulary and how often each occurs."""
        return Counter({name: n for name, n in Counter(text).items() if name not in self.vocab and name != "\n"})

    def join(self, types: list[str]) -> str:  # noqa: D102 - as the base class
        return "".join(types)

    def library(self) -> Tokenizer:  # noqa: D102 - as the base class
        library = Tokenizer(WordLevel(self.vocab, unk_token=UNK))
        library.normalizer = NEWLINE
        library.add_special_tokens([EOS_TOKEN])
        library.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
        library.decoder = Fuse()
        return library

    @classmethod
    def from_library(cls, library: Tokenizer) -> CharTokenizer:  # noqa: D102 - as the base class
        if not isinstance(library.model, WordLevel) or not isinstance(library.pre_tokenizer, Split):
            raise ValueError("not a tokenizer of characters")
        return cls(types_in_order(library))
