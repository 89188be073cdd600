"""From the texts of a corpus to token ids, in two streamed passes: one that learns the tokenizer, one that encodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from lm.text.reading import split_words
from lm.text.sources import Text, survey
from lm.text.tokenization import Tokenization
from lm.text.tokenizer import TextTokenizer


@dataclass
class Counts:
    """Of each split, complete once all its ids were handed out; `lm.text.corpus.Corpus` says what they count."""

    sha256: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    unk: dict[str, int] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)


class Encoding:
    """A corpus on its way to token ids: never more than a block of text is in memory."""

    def __init__(self, texts: Mapping[str, Text], tokenization: Tokenization) -> None:
        """Learn the tokenizer from train. Raises CorpusError where a text cannot be read."""
        self._texts = texts
        errors = tokenization.decoding_errors
        self.tokenizer: TextTokenizer = tokenization.learn(texts["train"].blocks(errors))
        self.counts = Counts()

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._texts)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest type of integer that PyTorch has and that holds every id."""
        return np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32

    def ids(self, split: str) -> Iterator[np.ndarray]:
        """The split's token ids in pieces, and their counts into `counts`."""
        text = self._texts[split]
        tokenizer = self.tokenizer
        tokens = unk = lines = words = 0
        unfinished = False
        for block in text.blocks(tokenizer.decoding_errors):
            ids = tokenizer.encode(block, final_eos=False)
            tokens += len(ids)
            unk += tokenizer.count_unknown(block, ids)
            ends = block.count("\n")
            lines += ends
            words += len(ids) if tokenizer.kind == "word" else ends + len(split_words(block))
            unfinished = not block.endswith("\n")
            yield ids.astype(self.dtype)
        if unfinished and not text.exact:
            tokens += 1
            words += 1
            yield np.array([tokenizer.eos_id], self.dtype)
        self.counts.sha256[split] = survey(text).sha256
        self.counts.tokens[split] = tokens
        self.counts.unk[split] = unk
        self.counts.lines[split] = lines + unfinished
        self.counts.words[split] = words
