"""Activation regularization (Merity, McCann, Socher 2017, arXiv 1708.01009).

AR keeps activations small, TAR keeps them slow. Both are means over time, batch and units, as the authors' code
computes them (the paper writes L2 norms), so a coefficient means the same at every width and window length. The
training loop takes them from `regularization_terms`, any other program from `ActivationPenalty`.

Shapes: T time, B batch, H units.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lm.config.bounds import choices
from lm.config.schema import RegularizationConfig

# |h| below this counts as inactive in statistics (a unit's output lies in -1..1).
INACTIVE = 0.01
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda h: h.square().mean(),
    "l1": lambda h: h.abs().mean(),
    "elastic": lambda h: h.square().mean() + h.abs().mean(),
}
_LAYERS = choices(RegularizationConfig, "ar_layers")


def _check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError unless the name is one of those that are known."""
    if name not in (names := list(known)):
        raise ValueError(f"{what} {name!r} is not one of {', '.join(names)}")


def activation_penalty(h: Tensor | PackedSequence, norm: str = "l2") -> Tensor:
    """AR before its coefficient: mean h², mean |h| or their sum over all elements of a layer's (dropped) output.

    Args:
        h: (T, B, H), or of any other shape.
        norm: `l2`, `l1` or `elastic`.

    Raises:
        ValueError: the norm is unknown.
    """
    _check_name("norm", norm, NORMS)
    return NORMS[norm](h.data if isinstance(h, PackedSequence) else h)


def temporal_penalty(h: Tensor | PackedSequence, time_dim: int = 0) -> Tensor:
    """TAR before its coefficient: mean (h[t+1] - h[t])² over a layer's raw output; 0 for one time step.

    Args:
        h: (T, B, H), or time in dimension `time_dim`; of a packed sequence the steps within each sequence count.
    """
    if isinstance(h, PackedSequence):
        padded_TBH, lengths_B = pad_packed_sequence(h)
        inside = torch.arange(1, len(padded_TBH)).unsqueeze(1) < lengths_B
        differences = (padded_TBH[1:] - padded_TBH[:-1])[inside.to(padded_TBH.device)]
    else:
        differences = h.diff(dim=time_dim)
    return differences.square().mean() if differences.numel() else differences.sum()


def regularization_terms(
    raw: Sequence[Tensor],
    after_dropout: Sequence[Tensor],
    alpha: float,
    beta: float,
    norm: str = "l2",
    layers: str = "last",
) -> dict[str, Tensor]:
    """The penalties to add to the loss, coefficients included: `ar` and `tar`, without those whose coefficient is 0.

    Args:
        raw: output h_TBH of every layer, which TAR reads.
        after_dropout: the same after its dropout, which AR reads.
        alpha: coefficient of AR.
        beta: coefficient of TAR.
        norm: of AR: `l2`, `l1` or `elastic`.
        layers: `last`, or `all` for the sum over layers.

    Raises:
        ValueError: the norm or the layers are unknown, whatever the coefficients.
    """
    _check_name("norm", norm, NORMS)
    _check_name("layers", layers, _LAYERS)
    chosen = slice(None) if layers == "all" else slice(-1, None)
    terms = {}
    if alpha:
        terms["ar"] = alpha * functools.reduce(add, (activation_penalty(h, norm) for h in after_dropout[chosen]))
    if beta:
        terms["tar"] = beta * functools.reduce(add, (temporal_penalty(h) for h in raw[chosen]))
    return terms


class ActivationPenalty:
    """Adds an activation penalty to any module, by a forward hook on it.

    In training mode each forward pass of `module` adds `coefficient` times the norm of its output; `pop()` returns the
    sum since the last `pop()`, to be added to the loss. `norm` is `l2`, `l1` or `elastic`, or `temporal` for TAR, with
    time in dimension `time_dim` (1 for `batch_first`). An output can be a tensor, a packed sequence, or a tuple, list
    or mapping of which the first entry counts, as of `nn.LSTM`. `remove()` detaches the hook. A copy or a pickle of the
    module carries no penalty: attach one to it.

    A sparse autoencoder, whose code is driven to zeros:

    >>> encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU())
    >>> model = nn.Sequential(encoder, nn.Linear(64, 16))
    >>> sparsity = ActivationPenalty(encoder, "l1", 0.1)
    >>> x = torch.randn(8, 16)
    >>> loss = nn.functional.mse_loss(model(x), x) + sparsity.pop()
    >>> loss.backward()

    Raises:
        ValueError: the norm is unknown.
        TypeError: in a forward pass whose output holds no tensor.
    """

    def __init__(self, module: nn.Module, norm: str = "l2", coefficient: float = 1.0, *, time_dim: int = 0) -> None:
        _check_name("norm", norm, (*NORMS, "temporal"))
        self._norm = norm
        self._time_dim = time_dim
        self._coefficient = coefficient
        self._terms: list[Tensor] = []
        self._handle = module.register_forward_hook(_Hook(self))

    def add(self, output: Any) -> None:
        """Add the penalty of one output of the module; the hook calls it."""
        if not self._coefficient:
            return
        h = _activation(output)
        value = temporal_penalty(h, self._time_dim) if self._norm == "temporal" else activation_penalty(h, self._norm)
        self._terms.append(self._coefficient * value)

    def pop(self) -> Tensor | float:
        """Sum of the penalties of all forward passes since the last call; 0.0 after none."""
        terms, self._terms = self._terms, []
        return torch.stack(terms).sum() if terms else 0.0

    def remove(self) -> None:
        """Detach from the module."""
        self._handle.remove()


class _Hook:
    """What the module holds of its penalty: nothing that keeps it alive, or that a pickle of the module would need."""

    def __init__(self, penalty: ActivationPenalty | None = None) -> None:
        self._penalty = weakref.ref(penalty) if penalty else None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        penalty = self._penalty() if self._penalty else None
        if penalty is not None and module.training:
            penalty.add(output)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _activation(output: Any) -> Tensor | PackedSequence:
    """The first tensor or packed sequence among the outputs of a module."""
    first = output
    while not isinstance(first, Tensor | PackedSequence):
        if isinstance(first, Mapping) and first:
            first = next(iter(first.values()))
        elif isinstance(first, tuple | list) and first:
            first = first[0]
        else:
            raise TypeError(f"ActivationPenalty: the module's output holds no tensor first: {type(output).__name__}")
    return first
