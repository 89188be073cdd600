r"""The choice of tokenizer: `--tokenizer word|char|bpe|byte`.

What the lines of a corpus become, in each case followed by `<eos>`, the last line and blank ones too:

    word    the words between white space; how much of it there was is lost
    char    every character, white space included; those that train lacks become `<unk>`
    bpe     the line's UTF-8 bytes as they are, merged into pieces; no text is unknown, no piece spans two lines
    byte    the line's UTF-8 bytes one by one

Lines end in \n, \r\n, or, in a file without \n, \r: the same text gives the same tokens whatever system wrote it.

The line " the cat" of the published PTB therefore begins with the piece " the", as words inside a line do, but the
line "the cat" of an own text with the other piece "the". A literal `<eos>` or `<unk>` in the text is the token of that
name in `word`, and is read letter by letter in the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lm.base.errors import ConfigError
from lm.config.schema import TrainConfig
from lm.text.bpe import BPETokenizer
from lm.text.byte_level import ByteTokenizer
from lm.text.characters import CharTokenizer
from lm.text.tokenizer import TextTokenizer
from lm.text.words import WordTokenizer

logger = logging.getLogger(__name__)
_KINDS: dict[str, type[TextTokenizer]] = {
    owner.kind: owner for owner in (WordTokenizer, CharTokenizer, BPETokenizer, ByteTokenizer)
}


@dataclass(frozen=True)
class Tokenization:
    """Which tokenizer a corpus is read with; `bpe_vocab_size` is for bpe alone, what follows it for word alone.

    `given` is the tokenizer itself, which the others describe, where it is not to be learnt from train.
    """

    kind: str = WordTokenizer.kind
    bpe_vocab_size: int = 0
    vocab_size: int = 0
    min_count: int = 1
    lowercase: bool = False
    by_frequency: bool = False
    given: TextTokenizer | None = None

    @property
    def definition(self) -> str:
        """Differs for tokenizers that would give one text different ids."""
        parts = [
            f"{self.bpe_vocab_size} types" if self.kind == BPETokenizer.kind else "",
            f"the {self.vocab_size} most frequent types" if self.vocab_size else "",
            f"words seen {self.min_count} times" if self.min_count > 1 else "",
            "lower case" if self.lowercase else "",
            "by frequency" if self.by_frequency else "",
            "<unk> by all that it stands for" if self.by_frequency and (self.vocab_size or self.min_count > 1) else "",
            f"the vocabulary {self.given.fingerprint()}" if self.given is not None else "",
        ]
        return "; ".join([_KINDS[self.kind].DEFINITION, *filter(None, parts)])

    @property
    def decoding_errors(self) -> str:
        """`TextTokenizer.decoding_errors` of the kind."""
        return _KINDS[self.kind].decoding_errors

    def learn(self, blocks: Iterable[str]) -> TextTokenizer:
        """`given`, else the tokenizer that a training text gives, in blocks as `Text.blocks` hands them out.

        Raises ConfigError if `min_count` leaves no word.
        """
        if self.given is not None:
            return self.given
        if self.kind == WordTokenizer.kind:
            words = WordTokenizer.from_blocks(
                blocks,
                self.vocab_size,
                min_count=self.min_count,
                lowercase=self.lowercase,
                by_frequency=self.by_frequency,
            )
            if self.min_count > 1 and words.vocab_size == 2:  # <eos> and <unk>
                raise ConfigError(f"--min-count: no word of train comes {self.min_count} times")
            return words
        tokenizer = _KINDS[self.kind].from_blocks(blocks, self.bpe_vocab_size)
        if self.kind == BPETokenizer.kind and tokenizer.vocab_size < self.bpe_vocab_size:
            logger.warning("bpe: the text yields %d types, not %d", tokenizer.vocab_size, self.bpe_vocab_size)
        return tokenizer

    def load(self, path: Path) -> TextTokenizer:
        """Read `tokenizer.json`. Raises CorpusError if it is damaged or of another kind."""
        return _KINDS[self.kind].load(path)


def tokenization_of(config: TrainConfig, given: TextTokenizer | None = None) -> Tokenization:
    """The tokenizer of a run's configuration; the adaptive softmax needs frequent words first."""
    return Tokenization(
        config.tokenizer,
        config.bpe_vocab_size,
        config.vocab_size,
        config.min_count,
        config.lowercase,
        by_frequency=bool(config.cutoffs),
        given=given,
    )
