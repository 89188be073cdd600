"""The neural cache pointer (Grave, Joulin, Usunier 2016, arXiv 1612.04426, sec. 3).

h_t is the raw output of the last layer after word x_t; the last `window` pairs (h_i, x_{i+1}) vote for the next word:

    p_cache(w) ~ sum_{t-window <= i < t} exp(theta h_t.h_i) [w = x_{i+1}]      p = (1-lambda) p_model + lambda p_cache

Shapes: time T, batch B (columns of the text), hidden H, keys K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lm.base.errors import ConfigError

# Theta times a product of outputs must stay a float; far below this the cache already attends to one word alone.
_LARGEST_THETA = 1e6


@dataclass(frozen=True)
class Cache:
    """Window in words, weight lambda of the cache, and theta, the sharpness of its attention."""

    window: int = 500
    lam: float = 0.1
    theta: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.window < 2**31:
            raise ConfigError(f"--cache-window: must be at least 1 and below 2^31; got {self.window}")
        if not 0 <= self.lam < 1:
            raise ConfigError(f"--cache-lambda: must be in [0, 1); got {self.lam}")
        if not 0 <= self.theta <= _LARGEST_THETA:
            raise ConfigError(f"--cache-theta: must be at least 0 and at most {_LARGEST_THETA:g}; got {self.theta}")


class History:
    """The last `window` keys h_i and the words that followed them, for each column of the text."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._kept: tuple[Tensor, Tensor] | None = None  # keys_BKH and words_BK

    def extend(self, h_TBH: Tensor, targets_TB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the outputs of a window of text and the words after them.

        Returns:
            scores_BTK of every output against every key kept, the new ones included; words_BK after the keys; and
            distance_TK, how many words a key lies before an output (a key at distance < 1 is not yet known there).
        """
        keys, words = h_TBH.transpose(0, 1), targets_TB.t()
        T = keys.shape[1]
        if self._kept is not None:
            keys = torch.cat([self._kept[0], keys], 1)
            words = torch.cat([self._kept[1], words], 1)
        K = keys.shape[1]
        scores = keys[:, K - T :] @ keys.transpose(1, 2)
        place = torch.arange(K, device=keys.device)
        self._kept = keys[:, -self._window :], words[:, -self._window :]
        return scores, words, place[K - T :, None] - place[None]


def cache_probability(
    scores_BTK: Tensor, words_BK: Tensor, distance_TK: Tensor, targets_TB: Tensor, window: int, theta: float
) -> Tensor:
    """p_cache of each target, (T, B) in float64; NaN where the cache is still empty. Arguments: see `History`."""
    hit = words_BK.unsqueeze(1) == targets_TB.t().unsqueeze(2)
    return (_attention(scores_BTK, distance_TK, window, theta) * hit).sum(2, dtype=torch.float64).t()


def _attention(scores_BTK: Tensor, distance_TK: Tensor, window: int, theta: float) -> Tensor:
    outside = (distance_TK < 1) | (distance_TK > window)
    return torch.softmax((theta * scores_BTK).masked_fill_(outside, -torch.inf), 2)


def mix(nats: Tensor, p_cache: Tensor, lam: float) -> Tensor:
    """Nats in float64 under (1-lambda) p_model + lambda p_cache, of one shape; the model's where the cache is empty."""
    nats = nats.double()
    if lam == 0:
        return nats
    mixed = -torch.log((1 - lam) * torch.exp(-nats) + lam * p_cache)
    return torch.where(p_cache.isnan(), nats, mixed)


@dataclass(frozen=True)
class Votes:
    """What a cache says of N predictions in a row, in one column of text; made of what `History.extend` returns."""

    cache: Cache
    scores_1NK: Tensor
    words_1K: Tensor
    distance_NK: Tensor

    def on_targets(self, nats_N: Tensor, targets_N: Tensor) -> Tensor:
        """Nats of the targets, (N,) in float64, under the mixture; `nats_N` are the model's."""
        keys = (self.scores_1NK, self.words_1K, self.distance_NK)
        p_N1 = cache_probability(*keys, targets_N.unsqueeze(1), self.cache.window, self.cache.theta)
        return mix(nats_N, p_N1.squeeze(1), self.cache.lam)

    def on_all(self, nats_RV: Tensor, rows: slice) -> Tensor:
        """Nats of every word, (R, V) in float64, under the mixture at some of the N rows; `nats_RV` are the model's."""
        scores_1RK, distance_RK = self.scores_1NK[:, rows], self.distance_NK[rows]
        attention_1RK = _attention(scores_1RK, distance_RK, self.cache.window, self.cache.theta)
        attention_RK = attention_1RK.squeeze(0).double()
        p_RV = torch.zeros_like(nats_RV, dtype=torch.float64)
        p_RV.scatter_add_(1, self.words_1K.expand_as(attention_RK), attention_RK)
        p_RV.masked_fill_(attention_RK.isnan().any(1, keepdim=True), torch.nan)
        return mix(nats_RV, p_RV, self.cache.lam)
