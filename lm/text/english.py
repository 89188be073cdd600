"""Ordinary English in the tokenization of a known corpus: the way back from `lm.text.detokenize`.

What a model of Penn Treebank or WikiText-2 should read of "Derek's ex-wife can't stay." is what its corpus would hold:

    ptb           derek 's ex-wife ca n't stay
    wikitext-2    Derek 's ex @-@ wife can 't stay .
    pydocs        derek 's ex-wife ca n't stay .
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lm.config.schema import DataConfig
from lm.text.cards import published_layout
from lm.text.pydocs import CLITIC, TYPOGRAPHIC, words_of

# A full stop belongs to these wherever they stand, and to letters that each have one ("U.S.").
_ABBREVIATION = r"\b(?:[Mm]rs?|[Mm]s|[Dd]r|[Jj]r|[Ss]r|[Ss]t|[Ii]nc|[Cc]orp|[Cc]o|[Ll]td|vs|etc)\.|\b(?:[^\W\d_]\.){2,}"
_NUMBER = r"\d+(?:[.,]\d+)*(?!\w)"
_SPELT_OUT = re.compile(r"\d+(?:[.,]\d+)*\w*|%")  # what N stands for
_WORD = r"[^\W_]+(?:[-'.][^\W_]+)*"
_TOKEN = re.compile(rf"{_ABBREVIATION}|{_NUMBER}|{_WORD}|(?<=s)'|\.\.\.|--|[^\w\s]|_")
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
# Signs that the preprocessed Penn Treebank keeps; it has no other punctuation.
_PTB_SIGNS = frozenset("$&#")


def as_ptb(sentence: str) -> str:
    """Lower-cased, without punctuation, a number or % as N, clitics split off ("ca n't", "can not")."""
    words: list[str] = []
    before = ""
    for token in _TOKEN.findall(sentence.translate(_QUOTES).lower()):
        if re.fullmatch(_NUMBER, token) or token == "%":
            words.append("N")
        elif clitic := CLITIC.fullmatch(token):
            words += clitic.groups()
        elif token == "cannot":
            words += ["can", "not"]
        elif token[0].isalnum() or token in _PTB_SIGNS or (token == "'" and before.endswith("s")):
            words.append(token)
        before = token
    return _laid_out(words)


def as_wikitext(sentence: str) -> str:
    """Capitals kept, punctuation split off; words split before an apostrophe, and at hyphens as `@-@`, numbers at
    `@,@` and `@.@`."""
    words: list[str] = []
    for token in _TOKEN.findall(sentence.translate(_QUOTES)):
        if re.fullmatch(_NUMBER, token):
            words += re.sub(r"([.,])", r" @\1@ ", token).split()
        elif token[0].isalnum():
            words += token.replace("-", " @-@ ").replace("'", " '").split()
        else:
            words.append(token)
    return _laid_out(words)


def as_pydocs(sentence: str) -> str:
    """As `lm.text.pydocs` tokenizes documentation."""
    return " ".join(words_of(sentence.translate(TYPOGRAPHIC)))


def as_it_stands(sentence: str) -> str:
    """The sentence itself: for a corpus of untokenized text, and for text that is tokenized already."""
    return sentence


def _laid_out(words: list[str]) -> str:
    """A line of the published PTB or WikiText-2, whose spaces matter to models of characters or pieces."""
    return published_layout([" ".join(words)]).removesuffix("\n")


TOKENIZATIONS: dict[str, Callable[[str], str]] = {
    "ptb": as_ptb, "wikitext-2": as_wikitext, "pydocs": as_pydocs, "plain": as_it_stands,
}  # fmt: skip
# Corpora that are tokenized as another one.
_SAME = {"wikitext-103": "wikitext-2"}
# The flag that chooses one; `auto` is that of the model's corpus.
CHOICES = ["auto", *TOKENIZATIONS]


def tokenization_for(config: DataConfig, wanted: str) -> tuple[str, Callable[[str], str]]:
    """The name of the way that sentences are tokenized in, and the function: `wanted`, or that of the run's corpus."""
    own = _SAME.get(config.dataset, config.dataset)
    name = wanted if wanted != "auto" else own if own in TOKENIZATIONS else "plain"
    return name, TOKENIZATIONS[name]


def spans_in(sentence: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where each of the `words` that a tokenization made of a sentence begins and ends in the sentence."""
    sentence = sentence.translate(TYPOGRAPHIC)
    spans = []
    end = 0
    for word in words:
        sign = word[1:-1] if len(word) == 3 and word[0] == word[2] == "@" else word
        pattern = re.compile(re.escape(sign.translate(TYPOGRAPHIC)), re.IGNORECASE)
        if word == "N" and not sentence[end:].lstrip().startswith("N"):  # there it is the letter
            pattern = _SPELT_OUT
        found = pattern.search(sentence, end)
        spans.append(found.span() if found else (end, end))
        end = spans[-1][1]
    return spans
