"""Text from a model: sampling with temperature, top-k and top-p, and beam search.

Both carry the hidden state from word to word and compute in fp32. A continuation comes with its log-probability under
the model itself, whatever cut the words were drawn under.

Shapes: T time, B samples or hypotheses, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Generated token ids and their log-probability in nats, summed, under the model itself: uncut, temperature 1."""

    ids: list[int]
    logprob: float


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


@torch.no_grad()
def sample(
    model: AWDLSTM,
    context: Sequence[int],
    tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    forbidden: Sequence[int] = (),
) -> list[Continuation]:
    """Draw one continuation of `context` for each seed, hidden state carried from word to word.

    Args:
        model: in evaluation mode; computed in fp32.
        context: ids that come first, at least one (`<eos>` for the start of a line).
        tokens: words to draw, `<eos>` included.
        sampling: see `next_word_probabilities`.
        seeds: each continuation has its own generator, so it is the same alone and among others.
        forbidden: ids that are never drawn.
    """
    device = model.decoder.bias.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = torch.arange(len(seeds))
    logprob_B = torch.zeros(len(seeds), dtype=torch.float64)
    drawn: list[Tensor] = []
    with model.exact():
        logits, state = _advance(model, torch.tensor(context, device=device).unsqueeze(1), model.initial_state(1))
        logits = logits.expand(len(seeds), -1)
        state = _columns(state, torch.zeros_like(rows, device=device))
        while True:
            logits = logits.cpu()
            p = next_word_probabilities(logits, sampling, forbidden)
            words = torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(p, generators, strict=True)])
            logprob_B += torch.log_softmax(logits.double(), 1)[rows, words]
            drawn.append(words)
            if len(drawn) == tokens:
                break
            logits, state = _advance(model, words.to(device).unsqueeze(0), state)
    ids = torch.stack(drawn, 1).tolist()
    return [Continuation(*pair) for pair in zip(ids, logprob_B.tolist(), strict=True)]


@torch.no_grad()
def beam_search(
    model: AWDLSTM, context: Sequence[int], tokens: int, width: int, forbidden: Sequence[int] = ()
) -> list[Continuation]:
    """Likely continuations of `context`, best first: after each word the `width` likeliest beginnings are kept.

    All have `tokens` words, as `<eos>` ends a line and not the text, so log-probabilities are compared as they are.
    Width 1 takes the likeliest word each time (greedy). Other arguments as in `sample`.
    """
    device = model.decoder.bias.device
    history_BT = torch.empty(1, 0, dtype=torch.int64, device=device)
    score_B = torch.zeros(1, dtype=torch.float64, device=device)
    with model.exact():
        logits, state = _advance(model, torch.tensor(context, device=device).unsqueeze(1), model.initial_state(1))
        while True:
            total_BV = score_B.unsqueeze(1) + torch.log_softmax(logits.double(), 1)
            total_BV[:, list(forbidden)] = -math.inf
            candidates = len(score_B) * (logits.shape[1] - len(set(forbidden)))
            score_B, best = total_BV.flatten().topk(min(width, candidates))
            origin, words = best // logits.shape[1], best % logits.shape[1]
            history_BT = torch.cat([history_BT[origin], words.unsqueeze(1)], 1)
            if history_BT.shape[1] == tokens:
                break
            logits, state = _advance(model, words.unsqueeze(0), _columns(state, origin))
    return [Continuation(*pair) for pair in zip(history_BT.tolist(), score_B.tolist(), strict=True)]
