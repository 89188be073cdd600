"""Surprisal -log p of every token, word or line of a text: `python -m lm.generate RUN_DIR --score FILE --per-token`.

The first token of a text is predicted after `<eos>` from a zero state. All others of a running text are predicted as
`lm.evaluate` predicts them in one column, so that their sum is its sum of nats; there the first token is context only.
A model that adapts (`lm.scoring.adapt`) starts to do so after the first token, as it does there.

Shapes: N tokens of a text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lm.base.errors import ConfigError, CorpusError
from lm.base.numbers import perplexity
from lm.nn.model import AWDLSTM
from lm.scoring.adapt import Adapt, check_running
from lm.scoring.tokens import Describe, details, encode_lines, nats, read_independent, read_running
from lm.text.reading import split_lines, universal_newlines, word_spans
from lm.text.tokenizer import EOS, UNK, TextTokenizer

Row = dict[str, Any]
Spans = list[tuple[int, int]]


def surprisal(
    model: AWDLSTM,
    tokenizer: TextTokenizer,
    text: str | Iterable[str],
    *,
    independent: bool = False,
    per_word: bool = False,
    per_line: bool = False,
    bits: bool = True,
    top: int = 0,
    adapt: Adapt | None = None,
) -> Iterator[list[Row]]:
    """Of each line of a text in turn, a row for each token (or word), `<eos>` included, or one for the line.

    A row has `line` and `position` (from 1), `word` as the text has it, `start` and `end` (characters of the line),
    `surprisal`, and `unknown` (whether it was read as `<unk>`). A token's row also has its `rank` in the prediction (1:
    no token is likelier), the prediction's `entropy`, and, for `top` > 0, as `top` its likeliest tokens with their
    probabilities; a word's has `tokens`, the number of tokens summed. White space counts to the word that it precedes.
    A line's row has `line`, `tokens`, `unknown` (how many of them are), `surprisal`, its `mean` per token, and `ppl`.

    Args:
        model: in evaluation mode; computed in fp32.
        tokenizer: the run's.
        text: whole, or its lines.
        independent: each line alone, after `<eos>` from a zero state; else the lines are one running text.
        per_word: a row is a word between white space.
        per_line: a row is a line.
        bits: surprisal and entropy in bits; else in nats.
        top: for rows of tokens alone.
        adapt: how the model adapts to a running text.

    Raises:
        ConfigError: the vocabulary has less than `top` tokens, or two arguments contradict each other.
        CorpusError: the text is empty, or a line of a list holds a line end.
    """
    if per_word and per_line:
        raise ConfigError("--per-word and --per-line: give one of the two")
    if top and (per_word or per_line):
        raise ConfigError("--top: is for --per-token")
    check_running(adapt is not None, independent)
    if not 0 <= top <= tokenizer.vocab_size:
        raise ConfigError(f"--top must be at least 0 and at most {tokenizer.vocab_size}, the vocabulary; got {top}")
    lines = split_lines(universal_newlines(text)) if isinstance(text, str) else [_one_line(line) for line in text]
    ids = encode_lines(tokenizer, lines)
    describe = nats if per_word or per_line else details(top)
    figures = _figures(model, ids, tokenizer.eos_id, independent, describe, adapt)
    unit = math.log(2) if bits else 1.0
    ends = np.cumsum([len(line) for line in ids])
    for number, (line, line_ids, end) in enumerate(zip(lines, ids, ends, strict=True), 1):
        spans = [*tokenizer.spans(line), (len(line), len(line))]
        unknown = [
            index == tokenizer.unk_id and line[slice(*span)] != UNK
            for index, span in zip(line_ids.tolist(), spans, strict=True)
        ]
        values = [figure[end - len(line_ids) : end] for figure in figures]
        if per_line:
            yield [{"line": number} | _line_row(sum(unknown), values[0], unit)]
            continue
        if per_word:
            found = _word_rows(line, spans, unknown, values[0] / unit)
        else:
            found = _token_rows(tokenizer, line, spans, unknown, values, unit)
        yield [{"line": number, "position": position} | row for position, row in enumerate(found, 1)]


def _one_line(line: str) -> str:
    line = line.removesuffix("\n").removesuffix("\r")
    if "\n" in line:
        raise CorpusError(f"a sentence is one line; {line!r} holds several")
    return line


def _figures(
    model: AWDLSTM,
    lines: Sequence[np.ndarray],
    eos_id: int,
    independent: bool,
    describe: Describe,
    adapt: Adapt | None,
) -> tuple[np.ndarray, ...]:
    """Figures of every token of all lines, the first one included."""
    if independent:
        return read_independent(model, lines, eos_id, describe)
    ids = np.concatenate(lines)
    first = read_independent(model, [ids[:1]], eos_id, describe)
    if len(ids) == 1:
        return first
    return tuple(map(np.concatenate, zip(first, read_running(model, ids, describe, adapt), strict=True)))


def _place(line: str, span: tuple[int, int]) -> Row:
    """The text of a token or word, and where it stands; no characters are the line's end."""
    start, end = span
    return {"word": line[start:end] or EOS, "start": start, "end": end}


def _token_rows(
    tokenizer: TextTokenizer, line: str, spans: Spans, unknown: list[bool], values: list[np.ndarray], unit: float
) -> Iterator[Row]:
    """Rows of a line's tokens, from the figures of `details` in `values`."""
    for span, lost, cost, rank, entropy, top, p in zip(spans, unknown, *map(np.ndarray.tolist, values), strict=True):
        row = _place(line, span) | {"surprisal": cost / unit, "unknown": lost, "rank": rank, "entropy": entropy / unit}
        names = [name if name == EOS else tokenizer.join([name]) for name in tokenizer.decode(top)]
        yield row | ({"top": list(zip(names, p, strict=True))} if top else {})


def _word_rows(line: str, spans: Spans, unknown: list[bool], surprisal_N: np.ndarray) -> Iterator[Row]:
    """Rows of a line's words, from the surprisal of its tokens."""
    words = word_spans(line)
    word = np.searchsorted([end for _, end in words], [end for _, end in spans])  # the first that ends no earlier
    word[-1] = len(words)  # <eos>, whose row takes white space before it too
    sums = [np.bincount(word, weights, len(words) + 1).tolist() for weights in (surprisal_N, unknown, None)]
    for span, cost, lost, tokens in zip([*words, spans[-1]], *sums, strict=True):
        yield _place(line, span) | {"surprisal": cost, "unknown": lost > 0, "tokens": tokens}


def _line_row(unknown: int, nats_N: np.ndarray, unit: float) -> Row:
    """The row of a line, from the nats of its tokens."""
    mean = float(nats_N.mean())
    sums = {"tokens": len(nats_N), "unknown": unknown, "surprisal": float(nats_N.sum()) / unit}
    return sums | {"mean": mean / unit, "ppl": perplexity(mean)}
