"""Activation regularization (Merity, McCann, Socher 2017, arXiv 1708.01009).

AR keeps activations small, TAR keeps them slow. Both are means over time, batch and units, as the authors' code
computes them (the paper writes L2 norms), so a coefficient means the same at every width and window length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# |h| below this counts as inactive in statistics (a unit's output lies in -1..1).
INACTIVE = 0.01

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda h: h.square().mean(),
    "l1": lambda h: h.abs().mean(),
    "elastic": lambda h: h.square().mean() + h.abs().mean(),
}


def activation_penalty(dropped_TBH: Tensor, norm: str = "l2") -> Tensor:
    """AR before its coefficient: the norm of a layer's output after its dropout."""
    return NORMS[norm](dropped_TBH)


def temporal_penalty(raw_TBH: Tensor) -> Tensor:
    """TAR before its coefficient: mean (h[t+1] - h[t])^2 over the raw output; 0 for one time step."""
    if raw_TBH.shape[0] < 2:
        return raw_TBH.new_zeros(())
    return (raw_TBH[1:] - raw_TBH[:-1]).square().mean()


def regularization_terms(
    raw: list[Tensor], dropped: list[Tensor], alpha: float, beta: float, norm: str = "l2", layers: str = "last"
) -> dict[str, Tensor]:
    """The penalties to add to the loss, coefficients included: `ar` and `tar`, without those whose coefficient is 0.

    Args:
        raw, dropped: outputs h_TBH of every layer before and after dropout; TAR reads the former, AR the latter.
        alpha, beta: coefficients of AR and TAR.
        norm: of AR: `l2`, `l1` or `elastic`.
        layers: `last`, or `all` for the sum over layers.
    """
    chosen = slice(None) if layers == "all" else slice(-1, None)
    terms = {}
    if alpha:
        terms["ar"] = alpha * sum(activation_penalty(h_TBH, norm) for h_TBH in dropped[chosen])
    if beta:
        terms["tar"] = beta * sum(temporal_penalty(h_TBH) for h_TBH in raw[chosen])
    return terms


class ActivationPenalty:
    """Adds an activation penalty to any module, by a forward hook on it.

    In training mode each forward pass of `module` adds `coefficient` times the norm of its output (its first output
    if there are several); `pop()` returns the sum since the last `pop()`, to be added to the loss. `norm` is `l2`,
    `l1` or `elastic`, or `temporal` for TAR, which takes time as the first dimension. `remove()` detaches the hook.

    A sparse autoencoder, whose code is driven to zeros:

    >>> encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU())
    >>> model = nn.Sequential(encoder, nn.Linear(64, 16))
    >>> sparsity = ActivationPenalty(encoder, "l1", 0.1)
    >>> x = torch.randn(8, 16)
    >>> loss = nn.functional.mse_loss(model(x), x) + sparsity.pop()
    >>> loss.backward()

    Raises:
        ValueError: the norm is unknown.
    """

    def __init__(self, module: nn.Module, norm: str = "l2", coefficient: float = 1.0) -> None:
        norms = NORMS | {"temporal": temporal_penalty}
        if norm not in norms:
            raise ValueError(f"norm {norm!r} is not one of {', '.join(norms)}")
        self._norm = norms[norm]
        self._coefficient = coefficient
        self._terms: list[Tensor] = []
        self._hook = module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training and self._coefficient:
            activation = output[0] if isinstance(output, tuple | list) else output
            self._terms.append(self._coefficient * self._norm(activation))

    def pop(self) -> Tensor | float:
        """Sum of the penalties of all forward passes since the last call; 0.0 after none."""
        terms, self._terms = self._terms, []
        return torch.stack(terms).sum() if terms else 0.0

    def remove(self) -> None:
        """Detach from the module."""
        self._hook.remove()
