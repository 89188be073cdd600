"""The byte level: a token is a byte of the UTF-8 text, and `<eos>` the one that ends a line, as enwik8 is modelled."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from lm.text.bpe import BPETokenizer
from lm.text.tokenizer import EOS, EOS_TOKEN, NEWLINE


def _letters() -> list[str]:
    """The letter that stands for each byte in the `tokenizers` library: its own where it prints, else U+0100 and up."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printing else chr(next(others)) for byte in range(256)]


class ByteTokenizer(BPETokenizer):
    """`<eos>` and the 256 bytes: byte-level BPE without a merge."""

    kind = "byte"
    bits = "bits_per_byte"
    decoding_errors = "surrogateescape"
    DEFINITION = "bytes of UTF-8, <eos> for the line end; version 1"

    def __init__(self, library: Tokenizer) -> None:
        """Take a tokenizer of the library. Raises ValueError if it has other types."""
        super().__init__(library)
        letters = _letters()
        if self.types != [EOS, *letters]:
            raise ValueError("the vocabulary holds more than bytes")
        self._ids = np.arange(1, 257, dtype=np.int32)
        self._ids[ord("\n")] = self.eos_id

    @classmethod
    def from_blocks(cls, blocks: Iterable[str], vocab_size: int = 0) -> ByteTokenizer:
        """The one there is, whatever the text."""
        library = Tokenizer(BPE({letter: index for index, letter in enumerate([EOS, *_letters()])}, []))
        library.normalizer = NEWLINE
        library.add_special_tokens([EOS_TOKEN])
        library.pre_tokenizer = ByteLevel(add_prefix_space=False)
        library.decoder = ByteLevelDecoder()
        return cls(library)

    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:  # noqa: D102 - as the base class
        if final_eos and text and not text.endswith("\n"):
            text += "\n"
        return self._ids[np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)]

    @classmethod
    def from_library(cls, library: Tokenizer) -> ByteTokenizer:  # noqa: D102 - as the base class
        if not isinstance(library.model, BPE):
            raise ValueError("not a tokenizer of bytes")
        return cls(library)
