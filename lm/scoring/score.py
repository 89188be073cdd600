"""Log-probability and perplexity of each line of given text: `python -m lm.generate RUN_DIR --score FILE`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lm.base.numbers import perplexity
from lm.nn.model import AWDLSTM
from lm.scoring.adapt import Adapt, check_running
from lm.scoring.tokens import encode_lines, read_independent, read_running
from lm.text.reading import split_lines, split_words, universal_newlines
from lm.text.tokenizer import TextTokenizer
from lm.text.units import comparable


def _score_row(
    tokenizer: TextTokenizer, nats: np.ndarray, tokens: int, lines: int, words: int, unknown: int
) -> dict[str, Any]:
    """`logprob` in nats; perplexities are None where no token was scored."""
    total = float(nats.sum())
    loss = total / len(nats) if len(nats) else math.nan
    figures = {
        name: value if len(nats) else None
        for name, value in ({"ppl": perplexity(loss)} | comparable(tokenizer, loss, tokens, words + lines)).items()
    }
    counts = {"tokens": len(nats), "words": words, "unknown": unknown}
    return {"logprob": 0.0 - total, "ppl": figures.pop("ppl")} | counts | figures


def score_text(
    model: AWDLSTM, tokenizer: TextTokenizer, text: str, *, independent: bool = False, adapt: Adapt | None = None
) -> dict[str, Any]:
    """Scores of each line of `text` and of all together, with the tokens scored and the words or characters unknown.

    Beside the perplexity per token stands what `lm.text.units` adds to it, a line's `<eos>` counted as a word there.

    Args:
        model: in evaluation mode.
        tokenizer: the run's.
        text: every line ends in `<eos>`, an empty one is `<eos>` alone.
        independent: each line alone, as `read_independent` reads it, instead of `read_running`.
        adapt: how the model adapts to a running text.

    Raises:
        ConfigError: `adapt` stands beside `independent`.
        CorpusError: the text is empty, or has but one token where the first is context only.
    """
    check_running(adapt is not None, independent)
    lines = split_lines(universal_newlines(text))
    ids = encode_lines(tokenizer, lines)
    ends = np.cumsum([len(line) for line in ids])
    if independent:
        (nats,) = read_independent(model, ids, tokenizer.eos_id)
    else:
        (nats,) = read_running(model, np.concatenate(ids), adapt=adapt)
        ends -= 1  # the first token has no figure
    counts = [(len(i), 1, len(split_words(t)), tokenizer.unknown(t).total()) for i, t in zip(ids, lines, strict=True)]
    by_line = zip(np.split(nats, ends[:-1]), counts, strict=True)
    rows = [_score_row(tokenizer, one, *count) for one, count in by_line]
    total = _score_row(tokenizer, nats, *map(sum, zip(*counts, strict=True)))
    return {"lines": rows, "total": total}
