"""Dynamic evaluation (Krause, Kahembwe, Murray, Renals 2018, arXiv 1709.07432, sec. 4).

Each segment of the text is scored, then learned from; W_g are the trained weights, g the segment's gradient:

    sgd    W <- W - lr g + decay (W_g - W)
    rms    W <- W - lr g / (r + epsilon) + min(1, decay r / R) (W_g - W)

r = sqrt(mean of g^2 over the windows of train), and R is the mean over the parameter tensors of each tensor's mean r.

Shapes: time T, batch B (columns of the text).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lm.base.errors import ConfigError
from lm.nn.model import AWDLSTM, Output
from lm.scoring.reading import read
from lm.text.batching import batchify

# Columns that train is cut into for the gradient statistics, in windows as long as a segment, as the authors' code has.
_STATISTICS_COLUMNS = 100
# Windows of train behind the statistics of the fast variant.
_FAST_WINDOWS = 300
# What a float32, which the weights are, can hold.
_LARGEST = 1e38


@dataclass(frozen=True)
class Dynamic:
    """Update rule, its learning rate and decay towards the trained weights, and the words of a segment.

    The defaults are those of the authors' code (benkrause/dynamic-evaluation), chosen there for AWD-LSTM on PTB.
    """

    rule: str = "rms"
    lr: float = 5e-5
    decay: float = 2e-3
    epsilon: float = 2e-5
    segment: int = 5

    def __post_init__(self) -> None:
        if self.rule not in ("rms", "sgd"):
            raise ConfigError(f"--dynamic-rule: must be rms or sgd; got {self.rule!r}")
        if not 1 <= self.segment < 2**31:
            raise ConfigError(f"--dynamic-segment: must be at least 1 and below 2^31; got {self.segment}")
        for name in ("lr", "decay"):
            if not 0 <= getattr(self, name) <= _LARGEST:
                raise ConfigError(f"--dynamic-{name}: must be at least 0 and at most {_LARGEST:g}")
        if not 0 < self.epsilon <= _LARGEST:  # an element without gradient on train would move by 0 / 0
            raise ConfigError(f"--dynamic-epsilon: must be above 0 and at most {_LARGEST:g}")
        if not self.decay <= 1:
            raise ConfigError(f"--dynamic-decay: must be at most 1; got {self.decay}")


def _gradient(model: AWDLSTM, output: Output, targets_TB: Tensor) -> list[Tensor]:
    """Gradient of the mean loss of a window by each parameter."""
    model.zero_grad()
    model.loss(output, targets_TB).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def gradient_rms(model: AWDLSTM, ids: np.ndarray, batch_size: int, bptt: int, most: int | None = None) -> list[Tensor]:
    """Root mean square of the gradient by each parameter over windows of a text, at most `most` from its start.

    Returns a tensor for each of `model.parameters()`, of its shape. Raises CorpusError for a text of too few tokens.
    """
    model = model.without_dropout()
    columns_NB = batchify(ids, batch_size, model.decoder.bias.device)
    squares = [torch.zeros_like(parameter) for parameter in model.parameters()]
    count = 0
    for window, output in itertools.islice(read(model, columns_NB, bptt), most):
        count += 1
        gradient = _gradient(model, output, window.targets_TB)
        torch._foreach_addcmul_(squares, gradient, gradient)
    return [square.div_(count).sqrt_() for square in squares]


def published_statistics(model: AWDLSTM, train: np.ndarray, segment: int) -> list[Tensor]:
    """`gradient_rms` over all of train, in 100 columns, or as many as hold a segment each."""
    return gradient_rms(model, train, max(1, min(_STATISTICS_COLUMNS, len(train) // (segment + 1))), segment)


def fast_statistics(model: AWDLSTM, train: np.ndarray, batch_size: int, bptt: int) -> list[Tensor]:
    """`gradient_rms` over the first 300 windows of training, which is not what was published."""
    return gradient_rms(model, train, batch_size, bptt, _FAST_WINDOWS)


class Learner:
    """A copy of a model that learns from each segment after it was scored; the model itself is never changed."""

    def __init__(self, model: AWDLSTM, dynamic: Dynamic, rms: Sequence[Tensor] | None = None) -> None:
        """`rms`: of the gradients on train, from `gradient_rms`; ValueError where the rule of that name lacks it."""
        self.model = model.without_dropout()
        self.dynamic = dynamic
        self._parameters: list[Tensor] = list(self.model.parameters())
        self._trained = [parameter.detach().clone() for parameter in self._parameters]
        if dynamic.rule == "rms":
            if rms is None:
                raise ValueError("the rms rule needs the gradients' root mean square on train")
            mean = torch.stack([r.mean(dtype=torch.float64) for r in rms]).mean()
            self._rates: list[Tensor] = [1 / (r + dynamic.epsilon) for r in rms]
            self._decays: list[Tensor] = [(r * (dynamic.decay / mean).to(r.dtype)).clamp_(max=1) for r in rms]

    def learn(self, output: Output, targets_TB: Tensor) -> None:
        """Make one update from the forward pass of a segment, whose targets are (T, B)."""
        dynamic = self.dynamic
        gradient = _gradient(self.model, output, targets_TB)
        with torch.no_grad():
            if dynamic.rule == "rms":
                torch._foreach_lerp_(self._parameters, self._trained, self._decays)
                torch._foreach_addcmul_(self._parameters, gradient, self._rates, value=-dynamic.lr)
            else:
                torch._foreach_lerp_(self._parameters, self._trained, dynamic.decay)
                torch._foreach_add_(self._parameters, gradient, alpha=-dynamic.lr)
