"""Means of loss, penalties and gradient norm over the updates between two log records, summed on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm.base.numbers import perplexity


class IntervalMeans:
    """Means of per-update values over the updates since the last record, summed on the device without a transfer."""

    names = ("loss", "ar", "tar", "grad_norm", "clipped")

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self._updates = self._targets = 0

    def add(self, loss: Tensor, terms: dict[str, Tensor], norm: Tensor, max_norm: float, targets: int) -> None:
        """Add the values of one update, its loss weighted with its number of targets; `count` it as well."""
        clipped = norm > max_norm if max_norm else torch.zeros_like(norm)
        zero = torch.zeros_like(loss)
        row = [loss * targets, terms.get("ar", zero), terms.get("tar", zero), norm, clipped]
        self._sums += torch.stack([value.detach().to(torch.float64) for value in row])

    def count(self, targets: int) -> None:
        """Count one update of so many targets; apart from `add`, which may be replayed on the device without Python."""
        self._updates += 1
        self._targets += targets

    def take(self) -> dict[str, float]:
        """Means since the last call (loss in nats per target, clipped as a fraction); perplexity of the loss."""
        nats, *others = self._sums.tolist()
        means = [nats / self._targets, *(value / self._updates for value in others)]
        self._sums.zero_()
        self._updates = self._targets = 0
        return dict(zip(self.names, means, strict=True)) | {"ppl": perplexity(means[0])}

    def finite(self) -> bool:
        """Whether every value since the last record is finite; waits for the device."""
        return bool(self._sums.isfinite().all())

    @property
    def updates(self) -> int:
        """Updates since the last record."""
        return self._updates

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts so far."""
        return {"sums": self._sums.clone(), "updates": self._updates, "targets": self._targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums.copy_(state["sums"])
        self._updates = state["updates"]
        self._targets = state["targets"]
