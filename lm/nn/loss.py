"""Linear decoder and cross entropy in one, without the N x V logits of a whole window in fp32.

Shapes: rows N = time x batch, features E, vocabulary V. With z = h W^T + b and p = softmax(z), the mean loss in nats is

    L = (1/N) sum_n (lse(z_n) - z_n,target)       dL/dz = (p - onehot(target)) / N
    dL/dh = dz W          dL/dW = dz^T h          dL/db = sum_n dz_n

All gradients are computed in the forward pass, so that backward only scales them. Grave et al. 2017 and the papers on
fused linear cross entropy do the same on GPUs. The logits become dz in place, a few rows at a time, while in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lm.nn.products import linear_for, pack_linear, transposed

# Products are taken over blocks of rows with at most so many logits: large, and memory does not grow with N x V.
# In bf16 32M logits, 64 MB; in fp32 on a CPU 8M, 32 MB: larger blocks leave the caches, and a step takes 60 MB more.
# All else on a CPU is done for 1M logits at a time, 4 MB in fp32. In bf16 at N = 5600, V = 33,278, E = 400 and 2 cores
# the loss takes 1244 ms so, 1316 with 4M, 1437 with 128K, and 1385 with products over 4M logits as well.
# Each block reads all of W, so in fp32 it has at least 128 rows: 256 rows at V = 267,735 take 4.7 CPU seconds so, and
# 5.9 in blocks of 31, at 100 MB less.
_BLOCK_LOGITS = 1 << 25
_BLOCK_LOGITS_FP32 = 1 << 23
_LEAST_ROWS_FP32 = 128
_CACHED_LOGITS = 1 << 20
# On a GPU a row has a multiple of 16 logits: tensor cores read rows at multiples of 16 bytes the fastest, and Triton
# looks for multiples of 16. WikiText-2 has 33,278 words, 16 times 2,079.9.
_ALIGNED_WORDS = 16
# Whether a GPU takes `lm.nn.kernels.triton_loss` for bf16 logits. Off until it is measured, by `tests.gpu_lstm`.
triton_softmax = False


def _block_logits(weight: Tensor) -> int:
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return max(_BLOCK_LOGITS_FP32, _LEAST_ROWS_FP32 * len(weight))
    return _BLOCK_LOGITS


def _padding(weight: Tensor, dtype: torch.dtype) -> int:
    """Words, with logits of -inf, that the vocabulary gets for products in `dtype`."""
    return -len(weight) % _ALIGNED_WORDS if weight.is_cuda and dtype.itemsize == 2 else 0


def _spans(rows: int, limit: int, vocabulary: int) -> Iterator[slice]:
    """Cut rows of `vocabulary` logits into spans of at most `limit` logits, and at least a row."""
    size = max(1, limit // vocabulary)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def compute_dtype(precision: str, dtype: torch.dtype) -> torch.dtype:
    """Type of the products' inputs. Raises ValueError for an unknown precision."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    return torch.bfloat16 if precision == "bf16" and dtype == torch.float32 else dtype


def _softmax_nats_(z: Tensor, target: Tensor) -> Tensor:
    """Turn logits z (n, V) into probabilities p, in place, and return nats = lse - z_target, lse = max z - log max p.

    max p >= 1/V, so the logarithm is taken where it is well conditioned, even if p_target is 0 in fp32. `softmax` plus
    two maxima take 0.5 ms for 200 x 10,000; max, subtract, `exp`, sum 0.8 ms; `logsumexp` 3.4 ms.
    """
    largest = z.amax(1)
    of_target = z.gather(1, target.unsqueeze(1)).squeeze(1)
    torch.softmax(z, 1, out=z)
    return largest - z.amax(1).log() - of_target


def _nats_and_gradient_(z_NV: Tensor, target_N: Tensor, exact: torch.dtype, db_V: Tensor | None) -> Tensor:
    """Return the nats (N,) of logits z, in dtype `exact`. With `db_V`, turn z into N dL/dz in place and add its sum."""
    N, V = z_NV.shape
    nats = []
    limit = _CACHED_LOGITS if z_NV.device.type == "cpu" else z_NV.numel()
    for rows in _spans(N, limit, V):
        part = z_NV[rows]
        target = target_N[rows]
        z = part.to(exact)  # the part itself where it is exact already
        nats.append(_softmax_nats_(z, target))
        if db_V is not None:
            z[torch.arange(len(z), device=z.device), target] -= 1  # z holds p by now, and dz from here on
            db_V += z.sum(0)[: len(db_V)]
            if z is not part:
                part.copy_(z)
    return torch.cat(nats)


def _triton_nats_and_gradient_(z_NV: Tensor, target_N: Tensor, exact: torch.dtype, db_V: Tensor) -> Tensor:
    """The same by one Triton kernel; `db_V` sums dz as rounded to the type of z."""
    from lm.nn.kernels.triton_loss import softmax_gradient_

    nats = softmax_gradient_(z_NV, target_N)
    db_V += z_NV.sum(0, dtype=exact)[: len(db_V)]
    return nats


def nats_and_gradients(
    h_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor,
    target_N: Tensor,
    dtype: torch.dtype,
    dweight_VE: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nats of every row (N,), and the gradients of their sum by h, W and b.

    Args:
        target_N: int64.
        dtype: of the products' inputs, see `compute_dtype`.
        dweight_VE: zeros, to write the gradient by W into. The weights are not packed then, as few rows do not pay for
            the three copies of them which that takes.
    """
    N, V = len(h_NE), len(weight_VE)
    exact = weight_VE.dtype
    h, w, b = h_NE.to(dtype), weight_VE.to(dtype), bias_V.to(dtype)
    if padding := _padding(weight_VE, dtype):
        w, b = F.pad(w, (0, 0, 0, padding)), F.pad(b, (0, padding), value=-math.inf)
    softmax = _triton_nats_and_gradient_ if triton_softmax and dtype != exact else _nats_and_gradient_
    pack = dweight_VE is None
    logits = pack_linear(w) if pack else lambda h, b: F.linear(h, w, b)
    nats = torch.empty(N, dtype=exact, device=h.device)
    hidden_gradient = pack_linear(transposed(w) if w.device.type == "cpu" else w.t()) if pack else lambda z: z @ w
    dh = torch.empty_like(h_NE)
    dw = torch.zeros_like(weight_VE) if dweight_VE is None else dweight_VE
    db = torch.zeros_like(bias_V)
    for rows in _spans(N, _block_logits(w), len(w)):
        z = logits(h[rows], b)
        nats[rows] = softmax(z, target_N[rows], exact, db)
        dh[rows] = hidden_gradient(z)
        if dtype == exact:
            dw.addmm_(z.t()[:V], h[rows])
        else:
            dw.add_((z.t() @ h[rows])[:V])
        del z  # or the next block would be computed beside it
    return nats, dh, dw, db


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_NE, weight_VE, bias_V, target_N, dtype):
        nats, *gradients = nats_and_gradients(h_NE, weight_VE, bias_V, target_N, dtype)
        ctx.save_for_backward(*gradients)
        ctx.rows = len(h_NE)
        return nats.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *(g * (grad / ctx.rows) for g in ctx.saved_tensors), None, None


def linear_cross_entropy(
    h_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, target_N: Tensor, precision: str = "fp32"
) -> Tensor:
    """Mean cross entropy in nats of `h W^T + b` against int64 targets, differentiable by h, W and b (0-dim).

    In fp32 the loss is within 1e-6 of float64. `precision="bf16"` rounds h, W, b, the logits and dz to bf16; softmax,
    sums and the loss stay in fp32, so the result is the loss of the rounded logits to 1e-6. Each logit is off by at
    most d = 2**-8 (|z| + sum_e |h_e W_e| + |b|), so a token's loss by at most 2 max d. Against float64 the mean of
    1,400 tokens (V 10,000) was off by 5e-5, 4e-4 and 9e-4 nats as logits grew 1, 3 and 6 times. Figures
    that are compared come from `token_cross_entropy` in fp32.
    float64 inputs are computed in float64. Raises ValueError for another precision.
    """
    tensors = (h_NE, weight_VE, bias_V)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return token_cross_entropy(*tensors, target_N, precision).mean()
    return _LinearCrossEntropy.apply(*tensors, target_N, compute_dtype(precision, weight_VE.dtype))


@torch.no_grad()
def token_cross_entropy(
    h_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, target_N: Tensor, precision: str = "fp32"
) -> Tensor:
    """Nats of every row (N,), without a graph: for evaluation. Sum them in float64, and divide by their number once."""
    dtype = compute_dtype(precision, weight_VE.dtype)
    h, w, b = h_NE.to(dtype), weight_VE.to(dtype), bias_V.to(dtype)
    logits = linear_for(w, len(h))
    spans = _spans(len(h), _block_logits(w), len(w))
    return torch.cat([_nats_and_gradient_(logits(h[rows], b), target_N[rows], weight_VE.dtype, None) for rows in spans])


class LinearDecoder(nn.Linear):
    """From outputs h (..., E) to logits (..., V), with the losses above."""

    def loss(self, h_NE: Tensor, target_N: Tensor, precision: str) -> Tensor:
        """Mean nats of the targets, differentiable."""
        return linear_cross_entropy(h_NE, self.weight, self.bias, target_N, precision)

    def nats(self, h_NE: Tensor, target_N: Tensor, precision: str) -> Tensor:
        """Nats of every target (N,), without a graph."""
        return token_cross_entropy(h_NE, self.weight, self.bias, target_N, precision)
