"""Learning-rate schedules as pure functions of the part of the run that is done, and the state that epochs leave.

constant    lr
linear      lr (1 - fraction)
onecycle    a cosine from lr/25 up to lr, then one down to almost 0 (Smith 2018, arXiv 1803.09820)
trapezoid   a linear rise, a plateau, a linear fall and a cosine to 0, Adam's beta1 mirrored (`Trapezoid`)
plateau     lr, divided by 4 after each validation that does not improve (`LearningRate`)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lm.config.schema import TrainConfig

# One cycle (Smith 2018, arXiv 1803.09820): cosine from lr/25 up to lr over the first 30 % of the run, then down to
# lr/25/10^4. The shape and its constants are those of torch.optim.lr_scheduler.OneCycleLR's defaults.
_CYCLE_WARMUP = 0.3
_CYCLE_START = 25.0
_CYCLE_END = 1e4
# Where the trapezoid's rate starts, and where its linear fall ends.
_TRAPEZOID_LOW = 0.1


@dataclass(frozen=True)
class Trapezoid:
    """Learning rate and Adam's beta1 over a run, as in sgugger/Adam-experiments (train_rnn.py).

    The rate rises linearly from a tenth, stays, falls linearly to a tenth, and follows a cosine to 0 over what is left
    of the run. beta1 falls from `beta1_high` to `beta1_low` while the rate rises, and comes back while it falls.
    """

    rise: float
    flat: float
    fall: float
    beta1_high: float
    beta1_low: float

    def height(self, fraction: float) -> float:
        """0 at the low rate to 1 at the full one, after `fraction` (0 to 1) of the run."""
        if fraction < self.rise:
            return fraction / self.rise
        into_fall = fraction - self.rise - self.flat
        if into_fall <= 0:
            return 1.0
        return 1 - into_fall / self.fall if into_fall < self.fall else 0.0

    def rate_factor(self, fraction: float) -> float:
        """Factor on the learning rate."""
        start = self.rise + self.flat + self.fall
        if fraction < start or start >= 1:
            return _TRAPEZOID_LOW + (1 - _TRAPEZOID_LOW) * self.height(fraction)
        return _TRAPEZOID_LOW * (1 + math.cos(math.pi * (fraction - start) / (1 - start))) / 2

    def beta1(self, fraction: float) -> float:
        """Adam's beta1."""
        return self.beta1_high + (self.beta1_low - self.beta1_high) * self.height(fraction)


def trapezoid_of(config: TrainConfig) -> Trapezoid:
    """The trapezoid that a configuration describes."""
    return Trapezoid(
        config.trapezoid_rise, config.trapezoid_flat, config.trapezoid_fall, config.adam_beta1, config.trapezoid_beta1
    )


def schedule_factor(schedule: str, fraction: float) -> float:
    """Factor on the learning rate after `fraction` (0 to 1) of the run; `plateau` acts through `LearningRate`."""
    if schedule == "linear":
        return 1 - fraction
    if schedule == "onecycle":
        low = 1 / _CYCLE_START
        if fraction < _CYCLE_WARMUP:
            return low + (1 - low) * (1 - math.cos(math.pi * fraction / _CYCLE_WARMUP)) / 2
        end = low / _CYCLE_END
        rest = (fraction - _CYCLE_WARMUP) / (1 - _CYCLE_WARMUP)
        return end + (1 - end) * (1 + math.cos(math.pi * rest)) / 2
    return 1.0


@dataclass
class LearningRate:
    """The learning rate as a small state machine: what the epochs so far have made of it."""

    schedule: str
    base: float
    when: tuple[int, ...] = ()
    trapezoid: Trapezoid | None = None
    best: float = math.inf

    def at(self, fraction: float) -> float:
        """Learning rate after `fraction` of the run, before the scaling by window length."""
        if self.trapezoid:
            return self.base * self.trapezoid.rate_factor(fraction)
        return self.base * schedule_factor(self.schedule, fraction)

    def after_validation(self, valid_loss: float) -> None:
        """Divide by 4 without improvement (`plateau`, as pytorch/examples, which validates after each epoch)."""
        if valid_loss < self.best:
            self.best = valid_loss
        elif self.schedule == "plateau":
            self.base /= 4

    def end_epoch(self, epoch: int) -> None:
        """Divide by 10 after the epochs in `when`."""
        if epoch in self.when:
            self.base /= 10

    def state_dict(self) -> dict[str, Any]:
        """What validations and ends of epochs change."""
        return {"base": self.base, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.base = state["base"]
        self.best = state["best"]
