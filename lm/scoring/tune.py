"""Settings chosen on valid, by grids that grow until their best is not at an edge.

Both searches are bounded. They return the best setting and notes for the output: where a grid grew, and where its best
is at an edge all the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lm.base.names import flag
from lm.nn.model import AWDLSTM
from lm.scoring.adapt import adapted_nats
from lm.scoring.cache import Cache
from lm.scoring.dynamic import Dynamic

logger = logging.getLogger(__name__)
# What `tune_cache` tries first, one pass over the text for all, ...
_CACHE_GRID: dict[str, tuple[float, ...]] = {
    "window": (100, 250, 500, 1000, 2000, 4000),
    "lam": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3),
    "theta": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5),
}
# ... by which factor an axis grows where the best is at its end, ...
_GROWTH = {"window": 2.0, "lam": 1.5, "theta": 1.5}
# ... how often at most, a pass over the text each, and the largest weight of the cache.
_MOST_EXTENSIONS = 8
_LARGEST_LAMBDA = 0.95
# Passes over the text of `tune_dynamic`, at most.
_MOST_PASSES = 40
# Nats a word that are worth another pass over the text: 0.01 % of perplexity.
_LEAST_GAIN = 1e-4


def tune_cache(
    model: AWDLSTM,
    ids: np.ndarray,
    batch_size: int,
    dynamic: Dynamic | None = None,
    rms: Sequence[Tensor] | None = None,
) -> tuple[Cache, list[str]]:
    """The cache of a grid that gives a text, valid, the lowest loss, and notes; arguments as `adapted_nats`."""
    longest = len(ids) // batch_size - 1  # a window beyond the column's start changes nothing
    axes = {
        name: sorted({min(value, longest) if name == "window" else value for value in _CACHE_GRID[name]})
        for name in _CACHE_GRID
    }
    first = {name: (values[0], values[-1]) for name, values in axes.items()}
    tried: dict[Cache, float] = {}
    near = axes
    for extensions in itertools.count():
        points = [cache for values in itertools.product(*near.values()) if (cache := _cache(*values)) not in tried]
        points.sort(key=lambda cache: (cache.window, cache.theta))
        nats, targets = adapted_nats(model, ids, batch_size, points, dynamic, rms)
        tried |= dict(zip(points, (total / targets for total in nats), strict=True))
        best = min(tried, key=tried.__getitem__)
        logger.info("cache %s: valid %.4f", dataclasses.astuple(best), tried[best])
        beyond = {name: found for name in axes if (found := _beyond(axes[name], name, best, longest))}
        if not beyond or extensions == _MOST_EXTENSIONS:
            break
        for name, found in beyond.items():
            axes[name] = sorted([*axes[name], *found])
        near = {name: _around(values, getattr(best, name)) for name, values in axes.items()}
    notes = [
        f"{setting_flag(f'cache_{name}')}: grid extended to {end:g}"
        for name, values in axes.items()
        for end, start in zip((values[0], values[-1]), first[name], strict=True)
        if end != start
    ]
    edges = [*beyond, *["lam"] * (best.lam == _LARGEST_LAMBDA)]
    return best, notes + [f"{setting_flag(f'cache_{name}')}: the best is at the edge of the grid" for name in edges]


def _cache(window: float, lam: float, theta: float) -> Cache:
    return Cache(int(window), lam, theta)


def setting_flag(name: str) -> str:
    """Flag of a setting, as `cache_lam` or `dynamic_lr`: `lambda` can be no name in Python."""
    return "--cache-lambda" if name == "cache_lam" else flag(name)


def _beyond(values: Sequence[float], name: str, best: Cache, longest: int) -> list[float]:
    """The next values of an axis where `best` is at its end; none inside, and where there is nothing beyond."""
    here, factor = getattr(best, name), _GROWTH[name]
    largest = {"window": longest, "lam": _LARGEST_LAMBDA, "theta": math.inf}[name]
    found = [here / factor] * (here == values[0]) + [min(here * factor, largest)] * (here == values[-1])
    rounded = [max(1, round(value)) if name == "window" else float(f"{value:.3g}") for value in found]
    return [value for value in rounded if value not in values]


def _around(values: Sequence[float], here: float) -> list[float]:
    """A value of an axis and its neighbours."""
    at = values.index(here)
    return list(values[max(0, at - 1) : at + 2])


def tune_dynamic(
    model: AWDLSTM, ids: np.ndarray, batch_size: int, start: Dynamic, rms: Sequence[Tensor] | None = None
) -> tuple[Dynamic, list[str]]:
    """Learning rate and decay that give a text, valid, the lowest loss, and notes.

    A grid in steps of 4, then of 2, is walked from `start` until no neighbour in either direction is better by more
    than 0.01 % of perplexity.
    """
    tried: dict[Dynamic, float] = {}

    def loss(dynamic: Dynamic) -> float:
        if dynamic not in tried:
            (nats,), targets = adapted_nats(model, ids, batch_size, (None,), dynamic, rms)
            tried[dynamic] = nats / targets if math.isfinite(nats) else math.inf
            logger.info("lr %-9.3g decay %-9.3g valid %.4f", dynamic.lr, dynamic.decay, tried[dynamic])
        return tried[dynamic]

    best = start
    steps = [(name, step) for name in ("lr", "decay") for step in (True, False)]
    for factor in (4.0, 2.0):
        idle = 0
        while idle < len(steps) and len(tried) < _MOST_PASSES:
            name, up = steps[0]
            there = _step(best, name, factor if up else 1 / factor)
            if there and loss(there) < loss(best) - _LEAST_GAIN:
                best, idle = there, 0
            else:
                steps.append(steps.pop(0))
                idle += 1
    notes = []
    if len(tried) >= _MOST_PASSES:
        notes.append(
            f"--dynamic-lr and --dynamic-decay: stopped after {_MOST_PASSES} passes; better ones may lie beyond"
        )
    if best.decay > 0.5:
        notes.append("--dynamic-decay: the best is at the edge of its range")
    return best, notes


def _step(dynamic: Dynamic, name: str, factor: float) -> Dynamic | None:
    """The setting with one value multiplied; None beyond what the value may be."""
    value = getattr(dynamic, name) * factor
    return dataclasses.replace(dynamic, **{name: value}) if value <= (1 if name == "decay" else 1e38) else None
