"""Loss in units that do not depend on the tokenizer: nats per word as perplexity, bits per character or byte.

A model of characters, bytes or BPE pieces predicts other tokens than one of words, so its perplexity per token is
another quantity. All of them predict the same text, and the nats of a text can be shared out among its words:

    word_ppl = exp(loss * tokens / words)        bits_per_char = loss / ln 2

`loss` is in nats per token that was a target, `tokens` and `words` are those of the whole split, `words` counted as the
word level counts its tokens: the words and one `<eos>` a line. Columns cut a split in the middle of words and leave a
few tokens out as no target, so the words of exactly what was scored are not defined; the split's ratio of tokens to
words is, whatever the columns. In one column of a split of N tokens the difference is that between N and N - 1.
"""

from __future__ import annotations

import math
from typing import Any

from lm.base.numbers import perplexity
from lm.text.corpus import Corpus
from lm.text.tokenizer import TextTokenizer

# What figures are called in text.
NAMES = {
    "bits_per_char": "bits per character",
    "bits_per_byte": "bits per byte",
    "word_ppl": "perplexity per word",
    "ppl": "perplexity",
}
_FORMATS = {"bits_per_char": ".4f", "bits_per_byte": ".4f", "word_ppl": ".2f", "ppl": ".2f"}


def comparable(tokenizer: TextTokenizer, loss: float, tokens: int, words: int) -> dict[str, float]:
    """Figures for the loss of a text, empty at the word level, where `ppl` is per word as it is.

    Args:
        tokenizer: where a token is a character or a byte there are bits, `<eos>` counted as one; so there are where
            every word is one character, and then none per word.
        loss: nats per target.
        tokens: of the text that the loss stands for.
        words: of the same text, at the word level.
    """
    figures = {tokenizer.bits: loss / math.log(2)} if tokenizer.bits else {}
    return figures if tokenizer.kind == "word" else figures | {"word_ppl": perplexity(loss * tokens / words)}


def split_units(corpus: Corpus, split: str, loss: float) -> dict[str, float]:
    """`comparable` for a split, or for a part of it, which is taken to have as many tokens a word."""
    return comparable(corpus.tokenizer, loss, len(corpus.splits[split]), corpus.words[split])


def units_text(figures: dict[str, float]) -> str:
    """`, perplexity per word 123.45`: what `comparable` returns, to be read after the perplexity per token."""
    return "".join(f", {NAMES[name]} {value:{_FORMATS[name]}}" for name, value in figures.items())


def summary(result: dict[str, Any]) -> str:
    """The line that training prints of a result.json; the first figures are those to compare."""
    units = [name for name in NAMES if f"valid_{name}" in result]
    parts: list[str] = []
    for unit in units:
        values = {split: result.get(f"{split}_{unit}") for split in ("train", "valid", "test")}
        known = [f"{split} {value:{_FORMATS[unit]}}" for split, value in values.items() if value]
        name = "per token" if parts and unit == "ppl" else NAMES[unit]
        parts.append(f"{name} {'  '.join(known)}")
    return (
        f"{result['dataset']}: {'; '.join(parts)}  "
        f"(best epoch {result['best_epoch']} of {result['epochs']}, {result['seconds'] / 60:.1f} min)\n"
    )
