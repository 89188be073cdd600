"""Text that a command is given, by a file or standard input, and the warning of its unknown words."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from lm.text.reading import check_text, read_text
from lm.text.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)
# Unknown words that a warning names.
_MOST_NAMED = 10


def given_text(name: str) -> str:
    r"""Text of the file `name`, for `-` of standard input, its lines ended by \n.

    Raises:
        CorpusError: it cannot be read, is not text, or holds no word.
    """
    if name == "-":
        return check_text(sys.stdin.buffer.read(), "standard input")
    return read_text(Path(name))


def warn_of_unknown(tokenizer: TextTokenizer, text: str) -> None:
    """Name what the vocabulary lacks: what a model says of untokenized sentences is largely what it says of `<unk>`."""
    if unknown := tokenizer.unknown(text):
        some = ", ".join([*unknown][:_MOST_NAMED]) + (", ..." if len(unknown) > _MOST_NAMED else "")
        logger.warning("not in the vocabulary, read as <unk>: %s (%d in all)", some, unknown.total())
