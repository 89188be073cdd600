"""Choose the settings of adaptation on valid, and score a split in every mode: `python -m lm.evaluate RUN --adapt`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lm.adapt import Cache, Dynamic, adapted_nats, gradient_rms
from lm.config import TrainConfig
from lm.corpus import Corpus
from lm.errors import ConfigError, DivergedError
from lm.metrics import LARGEST_LOSS, perplexity
from lm.model import AWDLSTM
from lm.presets import CACHE_POINTER
from lm.units import split_figures

logger = logging.getLogger("lm.tune")

MODES = ("none", "cache", "dynamic", "dynamic+cache")
# What `tune_cache` tries, one pass over the text for all.
_WINDOWS, _THETAS = (100, 250, 500, 1000, 2000, 4000), (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_LAMBDAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
# Nats a word that are worth another pass over the text: 0.01 % of perplexity.
_LEAST_GAIN = 1e-4
# Where the sgd rule, whose steps are not divided by the gradients' size, needs another than `Dynamic`'s default.
_SGD = {"lr": 2.0}  # 84.40 on the second of the models that `Dynamic` speaks of


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
            while (value := getattr(best, field) * step) <= 1 or field == "lr":
                there = dataclasses.replace(best, **{field: value})
                if loss(there) > loss(best) - _LEAST_GAIN:
                    break
                best = there
    return best


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of adaptation to a parser."""
    group = parser.add_argument_group("adaptation while reading")
    group.add_argument(
        "--adapt",
        nargs="+",
        choices=MODES,
        default=["none"],
        metavar="MODE",
        help=f"any of {', '.join(MODES)}, side by side",
    )
    group.add_argument("--tune", action="store_true", help="choose the values below on valid first")
    for owner, prefix in ((Cache, "cache"), (Dynamic, "dynamic")):
        for field in dataclasses.fields(owner):
            name = "lambda" if field.name == "lam" else field.name
            default = f"{'published for the corpus, else ' if owner is Cache else ''}{field.default}"
            if owner is Dynamic and field.name in _SGD:
                default += f", for sgd {_SGD[field.name]}"
            group.add_argument(
                f"--{prefix}-{name}", dest=f"{prefix}_{field.name}", type=type(field.default), metavar=name.upper(),
                help=f"default: {default}",
            )  # fmt: skip


def check_flags(given: set[str], args: argparse.Namespace) -> None:
    """Raise ConfigError for a flag among `given` (names of arguments) that no mode or rule asked for reads."""
    modes = args.adapt
    for kind in ("cache", "dynamic"):
        flags = sorted(name.replace("_", "-").replace("-lam", "-lambda") for name in given if name.startswith(kind))
        if flags and not any(kind in mode for mode in modes):
            raise ConfigError(f"--{flags[0]}: is for --adapt {kind}")
    if "tune" in given and set(modes) == {"none"}:
        raise ConfigError("--tune: is for --adapt cache, dynamic or dynamic+cache")
    if "dynamic_epsilon" in given and args.dynamic_rule == "sgd":
        raise ConfigError("--dynamic-epsilon: is for --dynamic-rule rms")


def _values(owner: type, prefix: str, args: argparse.Namespace, defaults: dict[str, Any]) -> Any:
    given = {field.name: getattr(args, f"{prefix}_{field.name}") for field in dataclasses.fields(owner)}
    return owner(**defaults | {name: value for name, value in given.items() if value is not None})


class Adaptation:
    """The modes that one command asks for, their settings given, published for the corpus, or tuned on valid."""

    def __init__(self, model: AWDLSTM, config: TrainConfig, corpus: Corpus, args: argparse.Namespace) -> None:
        self._model, self._corpus = model, corpus
        self.plain = "none" in args.adapt
        modes = [mode for mode in args.adapt if mode != "none"]
        published = zip(("window", "lam", "theta"), CACHE_POINTER.get(corpus.name, ()), strict=False)
        cache = _values(Cache, "cache", args, dict(published))
        dynamic = _values(Dynamic, "dynamic", args, _SGD if args.dynamic_rule == "sgd" else {})
        columns = args.columns or config.eval_batch_size
        self._rms, learns = None, any("dynamic" in mode for mode in modes)
        if learns and dynamic.rule == "rms":
            self._rms = gradient_rms(model, corpus.splits["train"], config.batch_size, config.bptt)
        valid = corpus.splits["valid"]
        if learns and args.tune:
            dynamic = tune_dynamic(model, valid, columns, dynamic, self._rms)
        self._settings: dict[str, tuple[Cache | None, Dynamic | None]] = {}
        for mode in modes:
            looks, learns = cache if "cache" in mode else None, dynamic if "dynamic" in mode else None
            if looks and args.tune:
                looks = tune_cache(model, valid, columns, learns, self._rms)
            self._settings[mode] = looks, learns

    def report(self, split: str, columns: int) -> list[dict[str, Any]]:
        """Loss and perplexity of a split in every mode, with the settings used."""
        rows = []
        for mode, (cache, dynamic) in self._settings.items():
            started = time.perf_counter()
            (nats,), targets = adapted_nats(
                self._model, self._corpus.splits[split], columns, (cache,), dynamic, self._rms
            )
            if not nats / targets <= LARGEST_LOSS:
                raise DivergedError(f"--adapt {mode}: {split}: loss {nats / targets:g}; try a lower --dynamic-lr")
            rows.append({
                "split": split, "adapt": mode, "loss": nats / targets, "ppl": perplexity(nats / targets),
                "targets": targets, "batch_size": columns, "seconds": round(time.perf_counter() - started, 2),
                "cache": cache and dataclasses.asdict(cache), "dynamic": dynamic and dataclasses.asdict(dynamic),
                **split_figures(self._corpus, split, nats / targets),
            })  # fmt: skip
        return rows
