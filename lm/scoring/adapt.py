"""Adaptation to the text while it is read: the neural cache pointer, dynamic evaluation, or both in one pass.

See `lm.scoring.cache` and `lm.scoring.dynamic` for the two. No word is scored by anything that has seen it: a window is
scored first, and then enters the caches and is learned from.

Shapes: time T, batch B (columns of the text).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm.base.errors import ConfigError
from lm.nn.model import AWDLSTM, Output
from lm.scoring.cache import Cache, History, cache_probability, mix
from lm.scoring.dynamic import Dynamic, Learner
from lm.scoring.reading import read
from lm.text.batching import Window, batchify


@dataclass(frozen=True)
class Adapt:
    """How a model adapts to the text that it reads.

    >>> from lm.scoring.cache import Cache
    >>> with_a_cache = Adapt(Cache(window=500, lam=0.1, theta=1.0))
    >>> learning = Adapt(dynamic=Dynamic("sgd", lr=2.0))
    """

    cache: Cache | None = None
    dynamic: Dynamic | None = None
    rms: Sequence[Tensor] | None = None
    """for the rule `rms` of dynamic evaluation, see `Learner`"""

    def settings(self) -> dict[str, dict[str, Any] | None]:
        """The values of both, for a report."""
        parts: dict[str, Any] = {"cache": self.cache, "dynamic": self.dynamic}
        return {name: asdict(part) if part else None for name, part in parts.items()}


def check_running(adapts: bool, independent: bool) -> None:
    """Raise ConfigError if a model is to adapt where nothing follows: to lines that are each read alone."""
    if adapts and independent:
        raise ConfigError("--adapt: a model adapts to running text; leave it out with --independent")


def read_adapting(
    model: AWDLSTM,
    columns_NB: Tensor,
    score: Callable[[AWDLSTM, Output, Window], None],
    dynamic: Dynamic | None = None,
    rms: Sequence[Tensor] | None = None,
) -> None:
    """Read a text from a zero state; each window is shown to `score`, and only then learned from.

    Args:
        model: a trained model; not changed.
        columns_NB: the text, from `batchify`.
        score: shown the model that has read the window, which is another once it has learned, and its output.
        dynamic: learn from each segment, which is then the window.
        rms: see `Learner`.
    """
    learner = Learner(model, dynamic, rms) if dynamic and dynamic.lr else None  # at lr 0 it stays as it was trained
    reader = learner.model if learner else model.without_dropout()
    with torch.set_grad_enabled(learner is not None):
        for window, output in read(reader, columns_NB, learner.dynamic.segment if learner else None):
            score(reader, output, window)
            if learner:
                learner.learn(output, window.targets_TB)


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
        batch_size: columns the text is cut into, as by `lm.scoring.evaluation`.
        dynamic: learn from each segment after scoring it; the caches then hold the outputs of the learning model.
        rms: see `Learner`.

    Raises:
        CorpusError: the text is too short for `batch_size`.
    """
    device = model.decoder.bias.device
    columns_NB = batchify(ids, batch_size, device)
    history = History(max((cache.window for cache in caches if cache), default=0))
    totals = torch.zeros(len(caches), dtype=torch.float64, device=device)

    def score(reader: AWDLSTM, output: Output, window: Window) -> None:
        totals.add_(_window_nats(reader, output, window, caches, history))

    read_adapting(model, columns_NB, score, dynamic, rms)
    return totals.tolist(), columns_NB[1:].numel()


def _window_nats(
    model: AWDLSTM, output: Output, window: Window, caches: Sequence[Cache | None], history: History
) -> Tensor:
    """Sum of a window's nats under each cache."""
    nats = model.token_loss(output, window.targets_TB)
    sums: list[Tensor] = []
    known: dict[tuple[int, float], Tensor] = {}
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
