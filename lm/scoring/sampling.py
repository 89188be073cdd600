"""Text from a model: sampling with temperature, top-k and top-p, and beam search.

Both carry the hidden state from word to word and compute in fp32. A continuation comes with its log-probability under
the model itself, whatever cut the words were drawn under.

Shapes: T time, B samples or hypotheses, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.base.errors import DivergedError
from lm.nn.model import AWDLSTM, State


@dataclass(frozen=True)
class Sampling:
    """Which words can be drawn, and how often: temperature first, then the `top_k`, then the `top_p` cut."""

    temperature: float = 1.0
    top_k: int = 0
    """0: every word"""
    top_p: float = 1.0


@dataclass(frozen=True)
class Continuation:
    """Generated token ids and their log-probability in nats under the model itself: uncut, temperature 1."""

    ids: list[int]
    logprob: float
    token_logprobs: list[float]


class SeenNgrams:
    """The runs of `n` tokens in a text that grows, so that none need come twice; n = 0 forbids nothing."""

    def __init__(self, n: int, text: Sequence[int]) -> None:
        self._n = n
        self._after: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        self._tail: tuple[int, ...] = ()  # the last n - 1 tokens
        for word in text if n else ():
            self.add(word)

    def add(self, word: int) -> None:
        """Let the text go on with a word."""
        kept = self._n - 1
        if len(self._tail) == kept:
            self._after[self._tail].add(word)
        self._tail = (*self._tail, word)[-kept:] if kept > 0 else ()

    def repeats(self) -> list[int]:
        """Words that would complete a run that the text has already."""
        return sorted(self._after.get(self._tail, ()))


def _without_repeats(logits_BV: Tensor, seen: Sequence[SeenNgrams], forbidden: Sequence[int]) -> Tensor:
    """Logits of each row's allowed words, -inf for the others; repeats stay where nothing else is left."""
    logits_BV = logits_BV.clone()
    logits_BV[:, list(forbidden)] = -math.inf
    for row, ngrams in zip(logits_BV, seen, strict=True):
        if repeats := ngrams.repeats():
            before = row.clone()
            row[repeats] = -math.inf
            if not row.isfinite().any():
                row.copy_(before)
    return logits_BV


def next_word_probabilities(logits_BV: Tensor, sampling: Sampling, forbidden: Sequence[int] = ()) -> Tensor:
    """Probabilities (B, V) of the next word over the whole vocabulary, in float64; each row sums to 1.

    Args:
        logits_BV: the decoder's output.
        sampling: `top_k` keeps the k likeliest words, of equal ones those with lower ids; `top_p` then keeps the
            smallest set of likeliest words whose probability reaches p (nucleus, Holtzman et al. 2019, sec. 3.1).
        forbidden: ids of words that are never drawn; taken out before the cuts.
    """
    logits = logits_BV.double().index_fill(
        1, torch.tensor(forbidden, dtype=torch.int64, device=logits_BV.device), -math.inf
    )
    logits = (logits - logits.amax(1, keepdim=True)) / sampling.temperature  # exp cannot overflow at a low one
    ranked, words = logits.sort(dim=1, descending=True, stable=True)
    p = torch.softmax(ranked, 1)
    if sampling.top_k:
        p[:, sampling.top_k :] = 0
        p /= p.sum(1, keepdim=True)
    if sampling.top_p < 1:  # at 1 rounding of the sum would cut the tail
        p[p.cumsum(1) - p >= sampling.top_p] = 0
        p /= p.sum(1, keepdim=True)
    return torch.zeros_like(p).scatter_(1, words, p)


def _columns(state: State, columns_B: Tensor) -> State:
    return [tuple(tensor.index_select(0, columns_B) for tensor in layer) for layer in state]


def _advance(model: AWDLSTM, tokens_TB: Tensor, state: State) -> tuple[Tensor, State]:
    """Logits (B, V) of the word after `tokens_TB`, and the state there. Raises DivergedError if they are not finite."""
    output = model(tokens_TB, state)
    logits_BV = model.decoder(output.after_dropout[-1][-1])
    if not logits_BV.isfinite().all():
        raise DivergedError("the model's outputs are not finite: its weights are too large; train with a lower --lr")
    return logits_BV, output.state


@dataclass(frozen=True)
class Limits:
    """What a text may not hold, and where it ends before it has all its words."""

    forbidden: Sequence[int] = ()
    """ids that are never chosen"""
    no_repeat_ngram: int = 0
    """runs of so many tokens, the context's among them, come once; 0: no limit"""
    ended: Callable[[list[int]], bool] = lambda ids: False
    """whether a continuation is complete; asked after each of its words"""


_NO_LIMITS = Limits()


@torch.no_grad()
def sample(
    model: AWDLSTM,
    context: Sequence[int],
    tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    limits: Limits = _NO_LIMITS,
) -> list[Continuation]:
    """Draw one continuation of `context` for each seed, hidden state carried from word to word.

    Args:
        model: in evaluation mode; computed in fp32.
        context: ids that come first, at least one (`<eos>` for the start of a line).
        tokens: words to draw at most, `<eos>` included.
        sampling: see `next_word_probabilities`.
        seeds: each continuation has its own generator, so it is the same alone and among others.
        limits: see there.
    """
    device = model.decoder.bias.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = torch.arange(len(seeds))
    seen = [SeenNgrams(limits.no_repeat_ngram, context) for _ in seeds]
    ids: list[list[int]] = [[] for _ in seeds]
    logprobs: list[list[float]] = [[] for _ in seeds]
    open_rows = set(range(len(seeds)))
    with model.exact():
        logits, state = _advance(model, torch.tensor(context, device=device).unsqueeze(1), model.initial_state(1))
        logits = logits.expand(len(seeds), -1)
        state = _columns(state, torch.zeros_like(rows, device=device))
        for step in range(tokens):
            logits = logits.cpu()
            allowed = _without_repeats(logits, seen, limits.forbidden) if limits.no_repeat_ngram else logits
            p = next_word_probabilities(allowed, sampling, limits.forbidden)
            words = torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(p, generators, strict=True)])
            nats = torch.log_softmax(logits.double(), 1)[rows, words].tolist()
            for row, word in enumerate(words.tolist()):
                seen[row].add(word)
                if row in open_rows:
                    ids[row].append(word)
                    logprobs[row].append(nats[row])
            open_rows = {row for row in open_rows if not limits.ended(ids[row])}
            if not open_rows or step == tokens - 1:
                break
            logits, state = _advance(model, words.to(device).unsqueeze(0), state)
    return [Continuation(*pair) for pair in zip(ids, map(math.fsum, logprobs), logprobs, strict=True)]


@torch.no_grad()
def beam_search(
    model: AWDLSTM, context: Sequence[int], tokens: int, width: int, limits: Limits = _NO_LIMITS
) -> list[Continuation]:
    """Likely continuations of `context`, best first: after each word the `width` likeliest beginnings are kept.

    All have as many words, as `<eos>` ends a line and not the text, so log-probabilities are compared as they are.
    Width 1 takes the likeliest word each time (greedy). The search ends early when every hypothesis is complete, which
    is for width 1: of others the likelier may end later. Other arguments as in `sample`.
    """
    device = model.decoder.bias.device
    history_BT = torch.empty(1, 0, dtype=torch.int64, device=device)
    logprobs_BT = torch.empty(1, 0, dtype=torch.float64, device=device)
    with model.exact():
        logits, state = _advance(model, torch.tensor(context, device=device).unsqueeze(1), model.initial_state(1))
        while True:
            logprobs_BV = torch.log_softmax(logits.double(), 1)
            seen = [SeenNgrams(limits.no_repeat_ngram, [*context, *ids]) for ids in history_BT.tolist()]
            total_BV = _without_repeats(logprobs_BT.sum(1, keepdim=True) + logprobs_BV, seen, limits.forbidden)
            best = total_BV.flatten().topk(min(width, int(total_BV.isfinite().sum()))).indices
            origin, words = best // logits.shape[1], best % logits.shape[1]
            history_BT = torch.cat([history_BT[origin], words.unsqueeze(1)], 1)
            logprobs_BT = torch.cat([logprobs_BT[origin], logprobs_BV[origin, words].unsqueeze(1)], 1)
            if history_BT.shape[1] == tokens or all(map(limits.ended, history_BT.tolist())):
                break
            logits, state = _advance(model, words.unsqueeze(0), _columns(state, origin))
    scores = logprobs_BT.sum(1).tolist()
    return [Continuation(*pair) for pair in zip(history_BT.tolist(), scores, logprobs_BT.tolist(), strict=True)]
