"""Settings chosen on valid: a grid for the cache, hill climbing for dynamic evaluation."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lm.nn.model import AWDLSTM
from lm.scoring.adapt import adapted_nats
from lm.scoring.cache import Cache
from lm.scoring.dynamic import Dynamic

logger = logging.getLogger(__name__)
# What `tune_cache` tries, one pass over the text for all.
_WINDOWS = (100, 250, 500, 1000, 2000, 4000)
_THETAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_LAMBDAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
# Nats a word that are worth another pass over the text: 0.01 % of perplexity.
_LEAST_GAIN = 1e-4


def tune_cache(
    model: AWDLSTM,
    ids: np.ndarray,
    batch_size: int,
    dynamic: Dynamic | None = None,
    rms: Sequence[Tensor] | None = None,
) -> Cache:
    """The cache of a coarse grid that gives a text, valid, the lowest loss; arguments as `adapted_nats`."""
    grid = [Cache(*values) for values in itertools.product(_WINDOWS, _LAMBDAS, _THETAS)]
    grid.sort(key=lambda cache: (cache.window, cache.theta))
    nats, _ = adapted_nats(model, ids, batch_size, grid, dynamic, rms)
    return grid[nats.index(min(nats))]


def tune_dynamic(
    model: AWDLSTM, ids: np.ndarray, batch_size: int, start: Dynamic, rms: Sequence[Tensor] | None = None
) -> Dynamic:
    """Hill climbing from `start` in learning rate, then decay, by 4 and then by 2, on a text, valid, while it pays."""
    tried: dict[Dynamic, float] = {}

    def loss(dynamic: Dynamic) -> float:
        if dynamic not in tried:
            (nats,), targets = adapted_nats(model, ids, batch_size, (None,), dynamic, rms)
            tried[dynamic] = nats / targets if math.isfinite(nats) else math.inf
            logger.info("lr %-9.3g decay %-9.3g valid %.4f", dynamic.lr, dynamic.decay, tried[dynamic])
        return tried[dynamic]

    best = start
    for field, factor in (("lr", 4.0), ("decay", 4.0), ("lr", 2.0), ("decay", 2.0)):
        for step in (factor, 1 / factor):
            while (value := getattr(best, field) * step) <= (1 if field == "decay" else 1e38):
                there = dataclasses.replace(best, **{field: value})
                if loss(there) > loss(best) - _LEAST_GAIN:
                    break
                best = there
    return best
