"""Log-probabilities of given text, word by word: what `python -m lm.generate RUN_DIR --score FILE` prints.

Shapes: N tokens in time, B batch (lines).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm.base.errors import CorpusError
from lm.base.numbers import perplexity
from lm.nn.model import AWDLSTM
from lm.scoring.reading import read
from lm.text.batching import batchify
from lm.text.reading import split_lines, split_words, universal_newlines
from lm.text.tokenizer import TextTokenizer
from lm.text.units import comparable
from lm.training.divergence import check_loss

# Lines that are scored together when each stands alone.
_LINES = 32


@torch.no_grad()
def _token_loss(model: AWDLSTM, columns_NB: Tensor) -> np.ndarray:
    """Nats (N - 1, B) in float64 of every token but each column's first, from a zero state, in fp32."""
    with model.exact():
        nats = [model.token_loss(output, window.targets_TB) for window, output in read(model, columns_NB)]
    found = torch.cat(nats).double().cpu().numpy()
    check_loss(float(found.mean()), "the text's score", "the weights are too large; train again with a lower --lr")
    return found


def score_continuous(model: AWDLSTM, lines: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Nats of every token of every line, hidden state carried on, as `lm.evaluate` scores a split in one column.

    The first token of the text is context only, so the first line has one figure less than tokens.

    Args:
        model: in evaluation mode; computed in fp32.
        lines: token ids of each line, the last of them `<eos>`.

    Raises:
        CorpusError: there are fewer than two tokens.
    """
    nats = _token_loss(model, batchify(np.concatenate(lines), 1, model.decoder.bias.device))[:, 0]
    return np.split(nats, np.cumsum([len(line) for line in lines])[:-1] - 1)


def line_batches(lines: Sequence[np.ndarray], eos_id: int, device: torch.device) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of lines of similar length, and the lines as columns (N, B), each after `<eos>` and filled up by it."""
    by_length = sorted(range(len(lines)), key=lambda index: len(lines[index]))
    for start in range(0, len(lines), _LINES):
        batch = by_length[start : start + _LINES]
        columns = np.full((1 + len(lines[batch[-1]]), len(batch)), eos_id, dtype=np.int64)
        for column, index in enumerate(batch):
            columns[1 : 1 + len(lines[index]), column] = lines[index]
        yield batch, torch.from_numpy(columns).to(device)


def score_independent(model: AWDLSTM, lines: Sequence[np.ndarray], eos_id: int) -> list[np.ndarray]:
    """Nats of every token of every line, each line alone: after `<eos>` from a zero state, for rescoring lists.

    Lines of similar length share a forward pass, which does not change their figures. Arguments as above.
    """
    nats = [np.empty(0)] * len(lines)
    for indices, columns_NB in line_batches(lines, eos_id, model.decoder.bias.device):
        scored = _token_loss(model, columns_NB)
        for column, index in enumerate(indices):
            nats[index] = scored[: len(lines[index]), column]
    return nats


def _score_row(kind: str, nats: np.ndarray, tokens: int, lines: int, words: int, unknown: int) -> dict[str, Any]:
    """`logprob` in nats; perplexities are None where no token was scored."""
    total = float(nats.sum())
    loss = total / len(nats) if len(nats) else math.nan
    figures = {
        name: value if len(nats) else None
        for name, value in ({"ppl": perplexity(loss)} | comparable(kind, loss, tokens, words + lines)).items()
    }
    counts = {"tokens": len(nats), "words": words, "unknown": unknown}
    return {"logprob": 0.0 - total, "ppl": figures.pop("ppl")} | counts | figures


def score_text(model: AWDLSTM, tokenizer: TextTokenizer, text: str, *, independent: bool = False) -> dict[str, Any]:
    """Scores of each line of `text` and of all together, with the tokens scored and the words or characters unknown.

    Beside the perplexity per token stands what `lm.text.units` adds to it, a line's `<eos>` counted as a word there.

    Args:
        model: in evaluation mode.
        tokenizer: the run's.
        text: every line ends in `<eos>`, an empty one is `<eos>` alone.
        independent: `score_independent` instead of `score_continuous`.

    Raises:
        CorpusError: the text is empty, or has but one token where the first is context only.
    """
    lines = split_lines(universal_newlines(text))
    if not lines:
        raise CorpusError("an empty text has nothing to score")
    ids = [tokenizer.encode(line + "\n") for line in lines]
    nats = score_independent(model, ids, tokenizer.eos_id) if independent else score_continuous(model, ids)
    counts = [(len(i), 1, len(split_words(t)), tokenizer.unknown(t).total()) for i, t in zip(ids, lines, strict=True)]
    rows = [_score_row(tokenizer.kind, one, *count) for one, count in zip(nats, counts, strict=True)]
    total = _score_row(tokenizer.kind, np.concatenate(nats), *map(sum, zip(*counts, strict=True)))
    return {"lines": rows, "total": total}
