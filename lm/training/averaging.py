"""NT-ASGD, the averaging of AWD-LSTM: the mean of the weights over the updates since validation stopped improving."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from lm.nn.model import AWDLSTM


@dataclass
class NTASGD:
    """Non-monotonically triggered averaged SGD (Merity et al. 2018, sec. 3, algorithm 1).

    After each validation, at the end of an epoch or within one, averaging starts when the loss is worse than the best
    of all but the last `nonmono` validations. (The paper's box prints another condition; the authors' code has this
    one.) From then on `averaged` is the equal-weight mean of the iterates, and it is what is validated, kept and
    tested; training goes on from the raw weights. `torch.optim.ASGD` steps with the previous step's learning rate,
    which is wrong where the rate follows the window length, and `torch.optim.swa_utils.AveragedModel` waits for a GPU
    at every update.
    """

    nonmono: int
    history: list[float] = field(default_factory=list)
    triggered: bool = False
    averaged: AWDLSTM | None = None
    iterates: int = 0

    def after_validation(self, valid_loss: float) -> bool:
        """Take a validation loss; True after the one validation where it says: average now.

        Fine-tuning averages from its start and ends there instead.
        """
        if not self.nonmono or self.triggered:
            return False
        earlier = self.history[: -self.nonmono]
        self.history.append(valid_loss)
        self.triggered = bool(earlier) and valid_loss > min(earlier)
        return self.triggered

    def start(self, model: AWDLSTM) -> None:
        """Average from the next update on."""
        self.averaged = copy.deepcopy(model)
        self.iterates = 0

    @torch.no_grad()
    def after_update(self, model: AWDLSTM) -> None:
        """Add the new iterate to the mean: mean += (new - mean) / iterates."""
        if self.averaged is not None:
            self.iterates += 1
            # All tensors in one call: 13 ms an update at 3x1150, where one by one takes 146.
            torch._foreach_lerp_(list(self.averaged.parameters()), list(model.parameters()), 1 / self.iterates)

    def state_dict(self) -> dict[str, Any]:
        """History and, after the switch, the mean and its number of iterates."""
        averaged = None if self.averaged is None else self.averaged.state_dict()
        return {
            "history": list(self.history),
            "triggered": self.triggered,
            "averaged": averaged,
            "iterates": self.iterates,
        }

    def load_state_dict(self, state: dict[str, Any], model: AWDLSTM) -> None:
        """Restore what `state_dict` returned; `model` gives the structure of the mean."""
        self.history = list(state["history"])
        self.triggered = state["triggered"]
        if state["averaged"] is not None:
            mean = copy.deepcopy(model)
            mean.load_state_dict(state["averaged"])
            self.averaged = mean
            self.iterates = state["iterates"]
