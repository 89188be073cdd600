"""When a run has diverged: where a loss, a gradient, a weight or an activation is not finite.

An evaluation has diverged with a loss above `LARGEST_LOSS`, too, whose perplexity no record could hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lm.base.errors import DivergedError
from lm.base.numbers import LARGEST_LOSS


def check_update(loss: float, norm: float, step: int) -> None:
    """Raise DivergedError if the loss or the gradient's norm is not finite (`clip` has it left out then)."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergedError(
            f"update {step}: loss {loss:g}, gradient norm {norm:g}: not finite, so the update was not made. "
            "Try a lower --lr, a smaller --clip, --alpha or --beta, or --precision fp32"
        )


def check_weights(weights: Iterable[Tensor], means_finite: bool, step: int) -> None:
    """Raise DivergedError if a weight after update `step`, or a mean since the last record, is not finite.

    Waits for a GPU once.
    """
    finite = torch.stack([weight.isfinite().all() for weight in weights])
    if not (means_finite and finite.all()):
        raise DivergedError(f"up to update {step} a loss, gradient or weight was not finite; try a lower --lr")


def check_loss(
    loss: float, where: str, remedy: str = "try a lower --lr", activation: Mapping[str, Any] | None = None
) -> None:
    """Raise DivergedError, naming `where` and the remedy, if a loss or an activation statistic has diverged."""
    values = {name: value for name, value in (activation or {}).items() if name != "histogram"}
    if not loss <= LARGEST_LOSS or not all(map(math.isfinite, values.values())):
        statistics = "".join(f", {name} of activations {value:g}" for name, value in values.items())
        raise DivergedError(f"{where}: loss {loss:g}{statistics}: diverged; {remedy}")
