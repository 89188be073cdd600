"""The word level: a token is what stands between white space, and `<eos>` ends every line, as in awd-lstm-lm.

How much white space there was is lost, so the published layout of a corpus and one's own layout give the same ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit

from lm.text.reading import find_whole, split_words, word_spans
from lm.text.tokenizer import EOS, UNK, TextTokenizer, types_in_order

_find_unk = find_whole(UNK)
_lower = Lowercase().normalize_str


def _words(text: str, lowercase: bool) -> list[str]:
    """The words of a text, in lower case if asked for, and `<eos>` for every line end."""
    words = split_words(text.replace("\n", f" {EOS} "))
    # Python's own way is faster and the same for ASCII; elsewhere the versions of Unicode and the final sigma differ.
    return [word.lower() if word.isascii() else _lower(word) for word in words] if lowercase else words


class _KnownWords(dict[str, int]):
    """Ids of words; that of `<unk>` for any other."""

    def __missing__(self, word: str) -> int:
        return self[UNK]


class WordTokenizer(TextTokenizer):
    """Words between white space, numbered; `<eos>` ends every line, `<unk>` stands for an unknown word.

    There are no added tokens, and no normalisation but `lowercase`, so a word is looked up exactly as it stands in the
    text; a literal `<unk>` or `<eos>` of the text is the same token as ours. Encoding is a dictionary look-up, three
    times as fast as `Tokenizer.encode_batch_fast` and equal to it.
    """

    kind = "word"
    DEFINITION = "word level, Unicode White_Space, <eos> a line, order of first appearance in train; version 1"

    def __init__(self, types: Iterable[str], *, lowercase: bool = False) -> None:
        """Number the words in their order; `lowercase` reads every text in lower case.

        Raises:
            ValueError: a word is empty, repeated or holds white space, or `<eos>` or `<unk>` is missing.
        """
        super().__init__(types)
        if UNK not in self.vocab:
            raise ValueError(f"the vocabulary lacks {UNK}")
        if any(split_words(word) != [word] for word in self.types):
            raise ValueError("the vocabulary holds an empty word or one with white space")
        self.lowercase = lowercase
        self._ids = _KnownWords(self.vocab)

    @property
    def bits(self) -> str:
        """`bits_per_char` where every word is one character, as in the character level of Penn Treebank."""
        return "bits_per_char" if all(len(word) == 1 or word in (EOS, UNK) for word in self.types) else ""

    @classmethod
    def from_blocks(
        cls,
        blocks: Iterable[str],
        vocab_size: int = 0,
        *,
        min_count: int = 1,
        lowercase: bool = False,
        by_frequency: bool = False,
    ) -> WordTokenizer:
        """Vocabulary of a training text in order of first appearance, as awd-lstm-lm numbers it.

        `<unk>` is added at the end where the text has none. With `vocab_size`, the most frequent words are kept, of
        equally frequent ones those that come first, with `min_count` those that the text has as often. `by_frequency`
        numbers frequent words first, `<unk>` by all that it stands for, equally frequent ones in order of first
        appearance.
        """
        counts: Counter[str] = Counter()
        for block in blocks:
            counts.update(_words(block, lowercase))
        counts.setdefault(EOS, 0)
        counts.setdefault(UNK, 0)
        words = [word for word, count in counts.items() if count >= min_count and word not in (EOS, UNK)]
        if vocab_size:
            words = sorted(words, key=counts.__getitem__, reverse=True)[: vocab_size - 2]
        kept = {EOS, UNK, *words}
        counts[UNK] += sum(count for word, count in counts.items() if word not in kept)
        order = sorted(counts, key=counts.__getitem__, reverse=True) if by_frequency else counts
        return cls((word for word in order if word in kept), lowercase=lowercase)

    def extended(self, types: Iterable[str]) -> WordTokenizer:  # noqa: D102 - as the base class
        return WordTokenizer(dict.fromkeys([*self.types, *types]), lowercase=self.lowercase)

    def encode(self, text: str, *, final_eos: bool = True) -> np.ndarray:  # noqa: D102 - as above
        if final_eos and text and not text.endswith("\n"):
            text += "\n"
        words = _words(text, self.lowercase)
        return np.fromiter(map(self._ids.__getitem__, words), np.int32, len(words))

    def spans(self, line: str) -> list[tuple[int, int]]:  # noqa: D102 - as the base class
        return word_spans(line)

    def unknown(self, text: str) -> Counter[str]:
        """Words of `text` outside the vocabulary and how often each occurs; a literal `<unk>` is not one."""
        return Counter(word for word in _words(text, self.lowercase) if word not in self.vocab)

    def count_unknown(self, text: str, ids: np.ndarray) -> int:  # noqa: D102 - as the base class
        return super().count_unknown(text, ids) - len(_find_unk(text.lower() if self.lowercase else text))

    def join(self, types: list[str]) -> str:
        """Words in the format of the corpus: one space between them."""
        return " ".join(types)

    def library(self) -> Tokenizer:  # noqa: D102 - as above
        library = Tokenizer(WordLevel(self.vocab, unk_token=UNK))
        library.pre_tokenizer = WhitespaceSplit()
        if self.lowercase:
            library.normalizer = Lowercase()
        return library

    @classmethod
    def from_library(cls, library: Tokenizer) -> WordTokenizer:  # noqa: D102 - as above
        if not isinstance(library.model, WordLevel) or not isinstance(library.pre_tokenizer, WhitespaceSplit):
            raise ValueError("not a word-level tokenizer that splits at white space")
        return cls(types_in_order(library), lowercase=isinstance(library.normalizer, Lowercase))
