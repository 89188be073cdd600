r"""The choice of tokenizer: `--tokenizer word|char|bpe`.

What the lines of a corpus become, in each case followed by `<eos>`, the last line and blank ones too:

    word    the words between white space; how much of it there was is lost
    char    every character, white space included; those that train lacks become `<unk>`
    bpe     the line's UTF-8 bytes as they are, merged into pieces; no text is unknown, no piece spans two lines

Lines end in \n, \r\n, or, in a file without \n, \r: the same text gives the same tokens whatever system wrote it.

The line " the cat" of the published PTB therefore begins with the piece " the", as words inside a line do, but the
line "the cat" of an own text with the other piece "the". A literal `<eos>` or `<unk>` in the text is the token of that
name in `word`, and is read letter by letter in `char` and `bpe`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from lm.config.schema import TrainConfig
from lm.text.bpe import BPETokenizer
from lm.text.characters import CharTokenizer
from lm.text.tokenizer import TextTokenizer
from lm.text.words import WordTokenizer

logger = logging.getLogger(__name__)
_KINDS = {owner.kind: owner for owner in (WordTokenizer, CharTokenizer, BPETokenizer)}


@dataclass(frozen=True)
class Tokenization:
    """Which tokenizer a corpus is read with; `bpe_vocab_size` is for bpe alone, `by_frequency` for word."""

    kind: str = WordTokenizer.kind
    bpe_vocab_size: int = 0
    by_frequency: bool = False

    @property
    def definition(self) -> str:
        """Differs for tokenizers that would give one text different ids."""
        types = f"; {self.bpe_vocab_size} types" if self.kind == BPETokenizer.kind else ""
        return _KINDS[self.kind].DEFINITION + types + ("; by frequency" if self.by_frequency else "")

    def train(self, text: str) -> TextTokenizer:
        """The tokenizer that a training text gives."""
        if self.kind == WordTokenizer.kind:
            return WordTokenizer.from_text(text, by_frequency=self.by_frequency)
        if self.kind == CharTokenizer.kind:
            return CharTokenizer.from_text(text)
        tokenizer = BPETokenizer.from_text(text, self.bpe_vocab_size)
        if tokenizer.vocab_size < self.bpe_vocab_size:
            logger.warning("bpe: the text yields %d types, not %d", tokenizer.vocab_size, self.bpe_vocab_size)
        return tokenizer

    def load(self, path: Path) -> TextTokenizer:
        """Read `tokenizer.json`. Raises CorpusError if it is damaged or of another kind."""
        return _KINDS[self.kind].load(path)


def tokenization_of(config: TrainConfig) -> Tokenization:
    """The tokenizer of a run's configuration; the adaptive softmax needs frequent words first."""
    return Tokenization(config.tokenizer, config.bpe_vocab_size, bool(config.cutoffs))
