"""Dropout of AWD-LSTM with cheap masks: locked, embedding, standard and weight dropout (DropConnect).

    LockedDropout     one (1, B, F) mask for all time steps       Gal & Ghahramani 2016; AWD-LSTM sec. 4.2
    EmbeddingDropout  one mask over the word rows of the matrix   AWD-LSTM sec. 4.3
    StandardDropout   one mask entry per element                  Srivastava et al. 2014; Zaremba et al. 2014
    drop_weight       DropConnect on a weight matrix              Wan et al. 2013; AWD-LSTM sec. 2

Every mask is multiplied by 1 / P(keep). Modules are the identity in eval mode and at p = 0. Shapes: time T,
batch B, features F. All randomness comes from the global generator of the tensor's device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lm.base.ranks import Columns

# Random numbers are drawn as int64 words, see `keep_mask`.
_WORD_BITS = 64


def keep_probability(p: float) -> tuple[int, int]:
    """Return (kept, levels), so that a mask entry of `keep_mask` is 1 with probability exactly kept / levels.

    8 random bits an entry where they express 1 - p exactly (0.5, 0.75, ...), else 16: the probability then differs
    from 1 - p by at most 2**-17, and the scale levels / kept makes the expectation of a masked value exact.
    Raises ValueError unless 0 <= p < 1 leaves a positive number of kept levels.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout probability must be in [0, 1), got {p}")
    levels = 256 if (p * 256).is_integer() else 65536
    kept = round((1.0 - p) * levels)
    if kept == 0:
        raise ValueError(f"dropout probability {p} keeps nothing at a resolution of 1/{levels}")
    return kept, levels


def keep_mask(
    shape: tuple[int, ...], p: float, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, float]:
    """Draw a mask of 0s and 1s of `dtype`, and return it with the scale that kept values take.

    On CPU int64 words are drawn and read as 8- or 16-bit integers that are compared with a threshold: 4.0 ms for
    1150 x 4600 entries at p = 0.3 and 2.2 ms at p = 0.5, where `bernoulli_` takes 57 ms.
    """
    kept, levels = keep_probability(p)
    if kept == levels:
        return torch.ones(shape, dtype=dtype, device=device), 1.0
    entry = torch.int8 if levels == 256 else torch.int16
    size = torch.Size(shape)
    words = -(-size.numel() * (levels.bit_length() - 1) // _WORD_BITS)
    bits = torch.empty(words, dtype=torch.int64, device=device).random_(-(2**63), None)
    mask = torch.empty(size, dtype=dtype, device=device)
    # Two's complement entries are uniform on [-levels/2, levels/2): exactly `kept` of them are below the threshold,
    # which lies inside the entry's range because 0 < kept < levels.
    torch.lt(bits.view(entry)[: size.numel()].view(size), kept - levels // 2, out=mask)
    return mask, levels / kept


def drop_weight(weight: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """Return a fresh `weight * mask * scale` in `dtype`, outside autograd (`mask` in `dtype`, None for no mask).

    The product with the scale is rounded to `dtype` once; the mask only keeps or clears it.
    """
    dropped = torch.empty_like(weight, dtype=dtype)
    if mask is None:
        return dropped.copy_(weight)
    torch.mul(weight, scale, out=dropped)
    return dropped.mul_(mask)


def drop_gradient(grad: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """Turn the gradient of `drop_weight`'s result into that of the raw weight, in `dtype`; `grad` is overwritten."""
    if mask is None:
        return grad.to(dtype)
    return grad.mul_(mask).to(dtype).mul_(scale)


def locked_dropout(x_TBF: Tensor, p: float, columns: Columns | None = None) -> Tensor:
    """Multiply every time step by one scaled (1, B, F) mask (Gal & Ghahramani 2016); `columns` as in `_Dropout`."""
    mask, scale = columns_mask(x_TBF, (1, *x_TBF.shape[1:]), p, columns)
    return x_TBF * mask.mul_(scale)


def columns_mask(x: Tensor, shape: tuple[int, ...], p: float, columns: Columns | None) -> tuple[Tensor, float]:
    """`keep_mask` with batch in dimension 1, like x in device and type; `columns` as in `_Dropout`."""
    if columns is None:
        return keep_mask(shape, p, x.device, x.dtype)
    mask, scale = keep_mask((shape[0], columns.total, *shape[2:]), p, x.device, x.dtype)
    return mask[:, columns.place], scale


def embedding_dropout(tokens_TB: Tensor, weight_VE: Tensor, p: float) -> Tensor:
    """Look up embeddings (T, B, E) in a matrix whose rows, whole words, are dropped with probability p.

    The mask is drawn over all V words and applied to the rows looked up: T*B*E work instead of V*E, same result.
    """
    rows = nn.functional.embedding(tokens_TB, weight_VE)
    mask, scale = keep_mask((weight_VE.shape[0],), p, weight_VE.device, weight_VE.dtype)
    return rows * mask.mul_(scale)[tokens_TB].unsqueeze(-1)


def standard_dropout(x: Tensor, p: float, columns: Columns | None = None) -> Tensor:
    """Multiply every element by its own scaled mask entry; `columns` as in `_Dropout`."""
    mask, scale = columns_mask(x, tuple(x.shape), p, columns)
    return x * mask.mul_(scale)


class _Dropout(nn.Module):
    """`columns`: those of a batch that x holds, in dimension 1.

    Masks are drawn for the whole batch then, so that processes with one seed go on drawing the same numbers, and
    together do what one process does.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        keep_probability(p)
        self.p = p
        self.columns: Columns | None = None

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LockedDropout(_Dropout):
    """`locked_dropout` in training, identity otherwise: x_TBF -> (T, B, F)."""

    def forward(self, x_TBF: Tensor) -> Tensor:
        return locked_dropout(x_TBF, self.p, self.columns) if self.training and self.p else x_TBF


class StandardDropout(_Dropout):
    """`standard_dropout` in training, identity otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return standard_dropout(x, self.p, self.columns) if self.training and self.p else x


class EmbeddingDropout(_Dropout):
    """Embedding lookup with `embedding_dropout` in training: tokens_TB, weight_VE -> (T, B, E)."""

    def forward(self, tokens_TB: Tensor, weight_VE: Tensor) -> Tensor:
        if self.training and self.p:
            return embedding_dropout(tokens_TB, weight_VE, self.p)
        return nn.functional.embedding(tokens_TB, weight_VE)
