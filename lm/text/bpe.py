"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): a token is a frequent run of bytes; no text is unknown.

Training and encoding are the `tokenizers` library's. A line is encoded without its end, which becomes `<eos>`, so that
no piece spans two lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from lm.text.reading import split_lines
from lm.text.tokenizer import EOS_TOKEN, NEWLINE, TextTokenizer, types_in_order

# Lines that are encoded at a time: the library's result takes a hundred bytes a token.
_BATCH = 2000
# Letters in a row, or white space, that no word has: base64, DNA, scripts without spaces.
_LONG_RUNS = re.compile(r"\S{1000}|\s{1000}")
# A pair of pieces seen once in train is no pattern.
_MIN_FREQUENCY = 2


def _short_runs(line: str) -> Iterator[str]:
    """A line for the trainer, whose time grows with the square of a run without white space: cut in such runs only."""
    start = 0
    for run in _LONG_RUNS.finditer(line):
        yield line[start : run.end()]
        start = run.end()
    yield line[start:]


class BPETokenizer(TextTokenizer):
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; on bytes: Radford et al. 2019, sec. 2.2).

    Merges happen within a line and within the runs of letters, digits or other signs, each with one space before it,
    that GPT-2 splits text into. The types are `<eos>`, the 256 bytes, and the merges of train, most frequent first.
    """

    kind = "bpe"
    bits = ""
    DEFINITION = f"byte-level BPE, GPT-2's split, <eos> for the line end, merges seen {_MIN_FREQUENCY} times; version 1"

    def __init__(self, library: Tokenizer) -> None:
        """Take a trained tokenizer of the library."""
        super().__init__(types_in_order(library))
        self._library = library
        # A literal `<eos>` in a line is text. This is no part of the saved file.
        self._library.encode_special_tokens = True

    @classmethod
    def from_blocks(cls, blocks: Iterable[str], vocab_size: int = 0) -> BPETokenizer:
        """Learn merges from a training text until there are `vocab_size` types, or no pair is left that recurs.

        The same text gives the same merges, on any number of threads.
        """
        library = Tokenizer(BPE())
        library.normalizer = NEWLINE
        library.pre_tokenizer = ByteLevel(add_prefix_space=False)
        library.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=_MIN_FREQUENCY,
            special_tokens=[EOS_TOKEN],
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        lines = (line for block in blocks for line in split_lines(block))
        library.train_from_iterator((piece for line in lines for piece in _short_runs(line)), trainer)
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

    def spans(self, line: str) -> list[tuple[int, int]]:  # noqa: D102 - as the base class
        return self._library.encode(line, add_special_tokens=False).offsets

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
