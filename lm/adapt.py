"""Adaptation to the text while it is read: the neural cache pointer and dynamic evaluation.

Neural cache (Grave, Joulin, Usunier 2016, arXiv 1612.04426, sec. 3). h_t is the raw output of the last layer after
word x_t; the last `window` pairs (h_i, x_{i+1}) vote for the next word:

    p_cache(w) ~ sum_{t-window <= i < t} exp(theta h_t.h_i) [w = x_{i+1}]      p = (1-lambda) p_model + lambda p_cache

Dynamic evaluation (Krause, Kahembwe, Murray, Renals 2017, arXiv 1709.07432). Each segment of the text is
scored, then learned from; W_g are the trained weights, g the segment's gradient:

    sgd    W <- W - lr g + decay (W_g - W)
    rms    W <- W - lr g / (r + epsilon) + min(1, decay r / mean r) (W_g - W)     r = sqrt(mean of g^2 over train)

No word is scored by anything that has seen it. Shapes: time T, batch B (columns of the text), hidden H, keys K.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lm.batching import BPTTWindows, Window, batchify, evaluation_rows
from lm.errors import ConfigError
from lm.model import AWDLSTM, Output, detach

# Windows of train behind the gradient statistics, at most: their root mean square settles to 1 % well before.
_STATISTICS_WINDOWS = 300
# Theta times a product of outputs must stay a float; far below this the cache already attends to one word alone.
_LARGEST_THETA = 1e6


@dataclass(frozen=True)
class Cache:
    """Window in words, weight lambda of the cache, and theta, the sharpness of its attention."""

    window: int = 500
    lam: float = 0.1
    theta: float = 1.0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"--cache-window: must be at least 1; got {self.window}")
        if not 0 <= self.lam < 1:
            raise ConfigError(f"--cache-lambda: must be in [0, 1); got {self.lam}")
        if not 0 <= self.theta <= _LARGEST_THETA:
            raise ConfigError(f"--cache-theta: must be at least 0 and at most {_LARGEST_THETA:g}; got {self.theta}")


@dataclass(frozen=True)
class Dynamic:
    """Update rule, its learning rate and decay towards the trained weights, and the words of a segment (a column).

    The defaults were chosen on valid of PTB, on models of 2x200 after 6 and 40 epochs of training: perplexity 99.09
    and 80.10, without learning 114.64 and 88.63. Twice their learning rate is better still, 98.30 and 79.73, but too
    near to where it fails: four times is on the first model no better than no learning, and eight times diverges.
    """

    rule: str = "rms"
    lr: float = 8e-4
    decay: float = 1e-3
    epsilon: float = 1e-5
    segment: int = 20

    def __post_init__(self) -> None:
        if self.rule not in ("rms", "sgd"):
            raise ConfigError(f"--dynamic-rule: must be rms or sgd; got {self.rule!r}")
        if self.segment < 1:
            raise ConfigError(f"--dynamic-segment: must be at least 1; got {self.segment}")
        for name in ("lr", "decay", "epsilon"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--dynamic-{name}: must be at least 0; got {getattr(self, name)}")
        if not self.decay <= 1:
            raise ConfigError(f"--dynamic-decay: must be at most 1; got {self.decay}")


class History:
    """The last `window` keys h_i and the words that followed them, for each column of the text."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._keys_BKH: Tensor | None = None
        self._words_BK: Tensor | None = None

    def extend(self, h_TBH: Tensor, targets_TB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the outputs of a window of text and the words after them.

        Returns:
            scores_BTK of every output against every key kept, the new ones included; words_BK after the keys; and
            distance_TK, how many words a key lies before an output (a key at distance < 1 is not yet known there).
        """
        keys, words = h_TBH.transpose(0, 1), targets_TB.t()
        T = keys.shape[1]
        if self._keys_BKH is not None:
            keys, words = torch.cat([self._keys_BKH, keys], 1), torch.cat([self._words_BK, words], 1)
        K = keys.shape[1]
        scores = keys[:, K - T :] @ keys.transpose(1, 2)
        place = torch.arange(K, device=keys.device)
        self._keys_BKH, self._words_BK = keys[:, -self._window :].clone(), words[:, -self._window :].clone()
        return scores, words, place[K - T :, None] - place[None]


def cache_probability(
    scores_BTK: Tensor, words_BK: Tensor, distance_TK: Tensor, targets_TB: Tensor, window: int, theta: float
) -> Tensor:
    """p_cache of each target, (T, B) in float64; NaN where the cache is still empty. Arguments: see `History`."""
    outside = (distance_TK < 1) | (distance_TK > window)
    attention = torch.softmax((theta * scores_BTK).masked_fill_(outside, -torch.inf), 2)
    hit = words_BK.unsqueeze(1) == targets_TB.t().unsqueeze(2)
    return (attention * hit).sum(2, dtype=torch.float64).t()


def mix(nats_TB: Tensor, p_cache_TB: Tensor, lam: float) -> Tensor:
    """Nats, (T, B) in float64, under (1-lambda) p_model + lambda p_cache; the model's where the cache is empty."""
    nats = nats_TB.double()
    if lam == 0:
        return nats
    mixed = -torch.log((1 - lam) * torch.exp(-nats) + lam * p_cache_TB)
    return torch.where(p_cache_TB.isnan(), nats, mixed)


def _gradient(model: AWDLSTM, output: Output, targets_TB: Tensor) -> list[Tensor]:
    """Gradient of the mean loss of a window by each parameter."""
    model.zero_grad()
    logits = F.linear(output.dropped[-1].flatten(0, 1), model.decoder.weight, model.decoder.bias)
    F.cross_entropy(logits, targets_TB.flatten()).backward()
    return [parameter.grad for parameter in model.parameters()]


def gradient_rms(model: AWDLSTM, ids: np.ndarray, batch_size: int, bptt: int) -> list[Tensor]:
    """Root mean square of the gradient by each parameter over windows of a text (Krause et al. 2017)."""
    model = model.without_dropout()
    windows = BPTTWindows(batchify(ids, batch_size, model.decoder.bias.device), bptt)
    squares = [torch.zeros_like(parameter) for parameter in model.parameters()]
    state, count = model.initial_state(batch_size), 0
    for window in itertools.islice(windows, _STATISTICS_WINDOWS):
        output = model(window.tokens_TB, state)
        state, count = detach(output.state), count + 1
        gradient = _gradient(model, output, window.targets_TB)
        torch._foreach_addcmul_(squares, gradient, gradient)
    return [square.div_(count).sqrt_() for square in squares]


class Learner:
    """A copy of a model that learns from each segment after it was scored; the model itself is never changed."""

    def __init__(self, model: AWDLSTM, dynamic: Dynamic, rms: Sequence[Tensor] | None = None) -> None:
        """`rms`: of the gradients on train, from `gradient_rms`; needed by the rule of that name."""
        self.model, self._dynamic = model.without_dropout(), dynamic
        self._parameters = list(self.model.parameters())
        self._trained = [parameter.detach().clone() for parameter in self._parameters]
        if dynamic.rule == "rms":
            if rms is None:
                raise ValueError("the rms rule needs the gradients' root mean square on train")
            values = sum(r.numel() for r in rms)
            mean = sum(r.sum(dtype=torch.float64) for r in rms) / values
            self._rates = [1 / (r + dynamic.epsilon) for r in rms]
            self._decays = [(r * (dynamic.decay / mean).to(r.dtype)).clamp_(max=1) for r in rms]

    def learn(self, output: Output, targets_TB: Tensor) -> None:
        """Make one update from the forward pass of a segment."""
        gradient, dynamic = _gradient(self.model, output, targets_TB), self._dynamic
        with torch.no_grad():
            if dynamic.rule == "rms":
                torch._foreach_lerp_(self._parameters, self._trained, self._decays)
                torch._foreach_addcmul_(self._parameters, gradient, self._rates, value=-dynamic.lr)
            else:
                torch._foreach_lerp_(self._parameters, self._trained, dynamic.decay)
                torch._foreach_add_(self._parameters, gradient, alpha=-dynamic.lr)


def adapted_nats(
    model: AWDLSTM,
    ids: np.ndarray,
    batch_size: int,
    caches: Sequence[Cache | None] = (None,),
    dynamic: Dynamic | None = None,
    rms: Sequence[Tensor] | None = None,
) -> tuple[list[float], int]:
    """Sum of nats of a text under each of `caches` (None: no cache), and the number of targets.

    Caches start empty at the top of each column and carry over from window to window, as the hidden state does.

    Args:
        model: a trained model; not changed.
        ids: word ids of the text.
        batch_size: columns the text is cut into, as in `lm.evaluate`.
        dynamic: learn from each segment after scoring it; the caches then hold the outputs of the learning model.
        rms: see `Learner`.

    Raises:
        CorpusError: the text is too short for `batch_size`.
    """
    learner = Learner(model, dynamic, rms) if dynamic and dynamic.lr else None  # at lr 0 it stays as it was trained
    read = learner.model if learner else model.without_dropout()
    rows = dynamic.segment if learner else evaluation_rows(batch_size)
    windows = BPTTWindows(batchify(ids, batch_size, model.decoder.bias.device), rows)
    history = History(max((cache.window for cache in caches if cache), default=0))
    totals = torch.zeros(len(caches), dtype=torch.float64, device=model.decoder.bias.device)
    state, targets = read.initial_state(batch_size), 0
    for window in windows:
        with torch.set_grad_enabled(learner is not None):
            output = read(window.tokens_TB, state)
        state, targets = detach(output.state), targets + window.targets_TB.numel()
        totals += _window_nats(read, output, window, caches, history)
        if learner:
            learner.learn(output, window.targets_TB)
    return totals.tolist(), targets


def _window_nats(
    model: AWDLSTM, output: Output, window: Window, caches: Sequence[Cache | None], history: History
) -> Tensor:
    """Sum of a window's nats under each cache."""
    nats, sums, known = model.token_loss(output, window.targets_TB), [], {}
    if any(caches):
        keys = history.extend(output.raw[-1].detach(), window.targets_TB)
    for cache in caches:
        if cache is None:
            sums.append(nats.sum(dtype=torch.float64))
            continue
        if (cache.window, cache.theta) not in known:
            known.clear()  # settings that share them stand together
            known[cache.window, cache.theta] = cache_probability(*keys, window.targets_TB, cache.window, cache.theta)
        sums.append(mix(nats, known[cache.window, cache.theta], cache.lam).sum())
    return torch.stack(sums)
