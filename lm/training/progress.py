"""How far a training run is, as plain values, for its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far a run is, and the best it has seen (epoch 0: what fine-tuning started from); plain values only."""

    epoch: int = 1
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    finished: bool = False
    best_epoch: int = 0
    best_loss: float = math.inf
    best_activation: dict[str, Any] = field(default_factory=dict)
    best_averaged: bool = False
    validated: int = 0
    """updates before the last validation"""
    waited: int = 0
    """validations since the best"""
    changes: list[str] = field(default_factory=list)
    """what was changed when the run was continued"""
    from_vectors: dict[str, float] = field(default_factory=dict)
    """--init-vectors: `types` that the file has, their share of all, and the share of train's tokens"""
    from_run: dict[str, float] = field(default_factory=dict)
    """--finetune on another text: how much of it the run knew, see `lm.training.transfer.known_share`"""

    def adopt_best(self, saved: Mapping[str, Any]) -> None:
        """Take the best validation from the progress that `best.pt` holds, where it is better than the one known."""
        if saved["best_loss"] < self.best_loss:
            self.best_loss, self.best_epoch = saved["best_loss"], saved["best_epoch"]
            self.best_activation, self.best_averaged = saved["best_activation"], saved["best_averaged"]
