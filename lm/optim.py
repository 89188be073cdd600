"""Optimizers, learning-rate schedules as pure functions, and NT-ASGD."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lm.config import TrainConfig
from lm.errors import DivergedError

# One cycle (Smith 2018, arXiv 1803.09820): cosine from lr/25 up to lr over the first 30 % of the run, then down to
# lr/25/10^4. The shape and its constants are those of torch.optim.lr_scheduler.OneCycleLR's defaults.
_CYCLE_WARMUP, _CYCLE_START, _CYCLE_END = 0.3, 25.0, 1e4


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over all parameters, one pass over memory a step (`fused`), fit for a CUDA graph on CUDA."""
    parameters = list(model.parameters())
    on_cuda = parameters[0].is_cuda
    rate = torch.tensor(config.lr, device=parameters[0].device) if on_cuda else config.lr
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, weight_decay=config.wdecay, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    betas = (config.adam_beta1, config.adam_beta2)
    # The first step of a shape runs outside a graph, which PyTorch takes for a mistake.
    warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    return kind(parameters, rate, betas, weight_decay=config.wdecay, fused=True, capturable=on_cuda)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, where a CUDA graph would read it if there is one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def clipped_step(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Make one update with gradients scaled to a joint norm of at most `max_norm` (0: as they are).

    The scaling happens inside the fused update, as gradient unscaling does in mixed precision, so that gradients are
    read twice in all: for the norm and for the update. An update whose norm is not finite is left out, without a
    transfer from the device. Returns the norm before scaling, 0-dim.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    # 1e-6 as in torch.nn.utils.clip_grad_norm_.
    optimizer.grad_scale = ((norm + 1e-6) / max_norm).clamp_(min=1.0).float() if max_norm else None
    optimizer.found_inf = (~norm.isfinite()).float()
    optimizer.step()
    return norm


def check_finite(loss: float, norm: float, step: int) -> None:
    """Raise DivergedError if the loss or the gradient's norm is not finite (`clipped_step` made no update then)."""
    if not math.isfinite(norm) or not math.isfinite(loss):
        raise DivergedError(
            f"update {step}: loss {loss:g}, gradient norm {norm:g}: not finite, so the update was not made. "
            "Try a lower --lr, a smaller --clip, --alpha or --beta, or --precision fp32"
        )


def schedule_factor(schedule: str, fraction: float) -> float:
    """Factor on the learning rate after `fraction` (0 to 1) of the run; `plateau` acts through `LearningRate`."""
    if schedule == "linear":
        return 1 - fraction
    if schedule == "onecycle":
        low = 1 / _CYCLE_START
        if fraction < _CYCLE_WARMUP:
            return low + (1 - low) * (1 - math.cos(math.pi * fraction / _CYCLE_WARMUP)) / 2
        end, rest = low / _CYCLE_END, (fraction - _CYCLE_WARMUP) / (1 - _CYCLE_WARMUP)
        return end + (1 - end) * (1 + math.cos(math.pi * rest)) / 2
    return 1.0


@dataclass
class LearningRate:
    """The learning rate as a small state machine: what the epochs so far have made of it."""

    schedule: str
    base: float
    when: tuple[int, ...] = ()
    best: float = math.inf

    def at(self, fraction: float) -> float:
        """Learning rate after `fraction` of the run, before the scaling by window length."""
        return self.base * schedule_factor(self.schedule, fraction)

    def end_epoch(self, epoch: int, valid_loss: float) -> None:
        """Divide by 4 without improvement (`plateau`, as pytorch/examples) and by 10 after the epochs in `when`."""
        if valid_loss < self.best:
            self.best = valid_loss
        elif self.schedule == "plateau":
            self.base /= 4
        if epoch in self.when:
            self.base /= 10

    def state_dict(self) -> dict[str, Any]:
        """What end_epoch changes."""
        return {"base": self.base, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.base, self.best = state["base"], state["best"]


@dataclass
class NTASGD:
    """Non-monotonically triggered averaged SGD (Merity et al. 2018, sec. 3, algorithm 1).

    After each epoch of SGD, averaging starts when the validation loss is worse than the best of all but the last
    `nonmono` epochs. (The paper's box prints another condition; the authors' code has this one.) From then on
    `averaged` is the equal-weight mean of the iterates, and it is what is validated, kept and tested; training goes
    on from the raw weights. `torch.optim.ASGD` steps with the previous step's learning rate, which is wrong where the
    rate follows the window length, and `torch.optim.swa_utils.AveragedModel` waits for a GPU at every update.
    """

    nonmono: int
    history: list[float] = field(default_factory=list)
    triggered: bool = False
    averaged: nn.Module | None = None
    iterates: int = 0

    def end_epoch(self, valid_loss: float) -> bool:
        """Take an epoch's validation loss; True at the end of the one epoch after which it says: average now.

        Fine-tuning averages from its start and ends there instead.
        """
        if not self.nonmono or self.triggered:
            return False
        earlier = self.history[: -self.nonmono]
        self.history.append(valid_loss)
        self.triggered = bool(earlier) and valid_loss > min(earlier)
        return self.triggered

    def start(self, model: nn.Module) -> None:
        """Average from the next update on."""
        self.averaged, self.iterates = copy.deepcopy(model), 0

    @torch.no_grad()
    def after_update(self, model: nn.Module) -> None:
        """Add the new iterate to the mean: mean += (new - mean) / iterates."""
        if self.averaged is not None:
            self.iterates += 1
            # All tensors in one call: 13 ms an update at 3x1150, where one by one takes 146.
            torch._foreach_lerp_(list(self.averaged.parameters()), list(model.parameters()), 1 / self.iterates)

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model to validate, keep and test."""
        return model if self.averaged is None else self.averaged

    def state_dict(self) -> dict[str, Any]:
        """History and, after the switch, the mean and its number of iterates."""
        averaged = None if self.averaged is None else self.averaged.state_dict()
        return {
            "history": list(self.history), "triggered": self.triggered,
            "averaged": averaged, "iterates": self.iterates,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Restore what `state_dict` returned; `model` gives the structure of the mean."""
        self.history, self.triggered = list(state["history"]), state["triggered"]
        if state["averaged"] is not None:
            self.start(model)
            self.averaged.load_state_dict(state["averaged"])
            self.iterates = state["iterates"]
