"""An encoded corpus: token ids of its splits, the tokenizer that made them, and counts of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.base.errors import CheckpointError, CorpusError
from lm.text.tokenizer import TextTokenizer

# Tokens that are counted at a time: `bincount` makes 8 bytes of each.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus. `unk`, `lines`, `words` and `sha256` are per split, as `splits` is."""

    name: str  # "ptb", "wikitext-2", "pydocs", or the folder's name for a corpus of one's own
    source: str  # where the text came from: a folder, a hub repository, the interpreter
    tokenizer: TextTokenizer
    splits: dict[str, np.ndarray]  # integers (N,), memory-mapped if there is a cache; test may be missing
    unk: dict[str, int]  # tokens that became `<unk>`, as the vocabulary lacks them; a literal `<unk>` is not counted
    lines: dict[str, int]
    words: dict[str, int]  # tokens that the text has at the word level: its words and one `<eos>` a line
    sha256: dict[str, str]  # of the text
    path: Path | None  # the cache folder: {train,valid,test}.bin, tokenizer.json; None if it could not be written
    extends: bool = False  # whether the tokenizer is that of a model of another corpus, extended, and not train's own

    @property
    def vocab_size(self) -> int:
        """Number of types, `<eos>` and `<unk>` included."""
        return self.tokenizer.vocab_size

    def type_counts(self, split: str) -> np.ndarray:
        """How often each type occurs in a split, (V,); a few million of its tokens at a time are in memory."""
        counts = np.zeros(self.vocab_size, np.int64)
        for start in range(0, len(ids := self.splits[split]), _BLOCK):
            counts += np.bincount(ids[start : start + _BLOCK], minlength=self.vocab_size)
        return counts

    def scored_splits(self, wanted: Sequence[str] | None) -> list[str]:
        """The splits `wanted`, by default valid and, if it is there, test. Raises CorpusError for one that is not."""
        if missing := [split for split in wanted or () if split not in self.splits]:
            raise CorpusError(f"{self.source}: has no {missing[0]} split")
        return list(wanted or [split for split in ("valid", "test") if split in self.splits])

    def check_vocabulary(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless the checkpoint's model knows the same types by the same ids."""
        if checkpoint.get("vocabulary", mine := self.tokenizer.fingerprint()) != mine:
            raise CheckpointError(
                f"the checkpoint was made with another {self.tokenizer.kind} vocabulary than the text now gives: "
                "install the version of tokenizers that the run's env.json names, and delete data/cache"
            )
