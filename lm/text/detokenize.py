"""Readable English from the tokenized words of PTB and WikiText-2."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lm.text.tokenizer import EOS

# Tokens that stand without a space before or after them in ordinary English.
_NO_SPACE_BEFORE = frozenset([*",.;:!?%)]}", "...", "''"])
_NO_SPACE_AFTER = frozenset([*"([{$£€", "``"])
# The Penn Treebank splits contractions and possessives off their word ...
_CONTRACTION = re.compile(r"n't|'(s|m|d|re|ve|ll|t)?", re.IGNORECASE)
# ... and WikiText-2 marks a character that stood within one.
_INNER = {"@-@": "-", "@,@": ",", "@.@": "."}


def detokenize(words: Iterable[str]) -> str:
    r"""Readable English of words tokenized as PTB or WikiText-2 are; every `<eos>` becomes a \n.

    Punctuation is attached, straight quotes in pairs within a line; contractions are joined ("did n't", "Teddy 's"),
    "@-@", "@,@" and "@.@" become the character between the words around them, PTB's "\/" becomes "/".
    """
    pieces = []
    joined = True
    quoted = False
    for word in words:
        if word == EOS:
            pieces.append("\n")
            joined = True
            quoted = False
            continue
        inner = word in _INNER
        quote = word == '"'
        attached = inner or word in _NO_SPACE_BEFORE or _CONTRACTION.fullmatch(word) or (quote and quoted)
        pieces += ["" if joined or attached else " ", _INNER.get(word, word.replace("\\/", "/"))]
        joined = inner or word in _NO_SPACE_AFTER or (quote and not quoted)
        quoted ^= quote
    return "".join(pieces)
