"""Optimizers over all parameters, the settings of their next step, and clipping inside the fused update."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lm.config.schema import TrainConfig


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


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continue from what an optimizer's `state_dict` was, perhaps on a device of another kind.

    Settings stay those of this device, but for the rate and beta1, which change from update to update.
    """
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": settings})
    last = state["param_groups"][0]
    set_rate(optimizer, float(last["lr"]))
    if "betas" in last:
        set_beta1(optimizer, last["betas"][0])


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, where a CUDA graph would read it if there is one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def set_beta1(optimizer: torch.optim.Optimizer, beta1: float) -> None:
    """Set Adam's beta1 of the next step; a CUDA graph that holds the step would not see it."""
    for group in optimizer.param_groups:
        group["betas"] = (beta1, group["betas"][1])


def clip(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Let the next step scale the gradients to a joint norm of at most `max_norm` (0: as they are).

    The scaling happens inside the fused update, as gradient unscaling does in mixed precision, so that gradients are
    read twice in all: for the norm and for the update. An update whose norm is not finite is left out, without a
    transfer from the device. Returns the norm before scaling, 0-dim.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    # 1e-6 as in torch.nn.utils.clip_grad_norm_.
    scale = ((norm + 1e-6) / max_norm).clamp_(min=1.0).float() if max_norm else None
    for name, value in (("grad_scale", scale), ("found_inf", (~norm.isfinite()).float())):
        # In one place for all CUDA graphs, so that a step outside of them finds the values of the last replay.
        if value is not None and getattr(optimizer, name, None) is not None:
            getattr(optimizer, name).copy_(value)
        else:
            setattr(optimizer, name, value)
    return norm
