"""Linear decoder and cross entropy in one, without the N x V logits of a whole window in fp32.

Shapes: rows N = time x batch, features E, vocabulary V. With z = h W^T + b and p = softmax(z), the mean loss in nats is

    L = (1/N) sum_n (lse(z_n) - z_n,target)       dL/dz = (p - onehot(target)) / N
    dL/dh = dz W          dL/dW = dz^T h          dL/db = sum_n dz_n

All gradients are computed in the forward pass, one chunk of rows after the other while its logits are in cache, so
that backward only scales them. Grave et al. 2017 and the papers on fused linear cross entropy do the same on GPUs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.lstm import pack_linear, transposed, transposed_product

# 4M logits are 16 MB in fp32, mostly stay in a shared L3 cache, and give products of 126 rows at V = 33,278: 1.90 s a
# step where 2M took 2.11. dz is kept for blocks of rows of at most 32M entries (64 MB in bf16), so that dL/dW is one
# large product a block and memory does not grow with N x V.
_CHUNK_LOGITS = 1 << 22
_BLOCK_LOGITS = 1 << 25
# Packing the decoder pays from about this many rows.
_PACK_ROWS = 64


def _rows(limit: int, vocabulary: int) -> int:
    return max(16, limit // vocabulary)


def _compute_dtype(precision: str, dtype: torch.dtype) -> torch.dtype:
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
    return torch.bfloat16 if precision == "bf16" and dtype == torch.float32 else dtype


def _softmax_nats_(z: Tensor, target: Tensor) -> Tensor:
    """Turn logits z (n, V) into probabilities p, in place, and return nats = lse - z_target, lse = max z - log max p.

    max p >= 1/V, so the logarithm is taken where it is well conditioned, even if p_target is 0 in fp32. `softmax` plus
    two maxima take 0.5 ms for 200 x 10,000; max, subtract, `exp`, sum 0.8 ms; `logsumexp` 3.4 ms.
    """
    largest, of_target = z.amax(1), z.gather(1, target.unsqueeze(1)).squeeze(1)
    torch.softmax(z, 1, out=z)
    return largest - z.amax(1).log() - of_target


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_NE, weight_VE, bias_V, target_N, dtype, needs_grad):
        N, V, exact = len(h_NE), len(weight_VE), weight_VE.dtype
        h, w, b = h_NE.to(dtype), weight_VE.to(dtype), bias_V.to(dtype)
        logits = pack_linear(w)
        size, block = min(N, _rows(_CHUNK_LOGITS, V)), min(N, _rows(_BLOCK_LOGITS, V))
        buffer = torch.empty(size, V, dtype=exact, device=h.device)
        nats = torch.empty(N, dtype=exact, device=h.device)
        if needs_grad:
            hidden_gradient = pack_linear(transposed(w))
            dz = torch.empty(block, V, dtype=dtype, device=h.device)
            dh, dw, db = torch.empty_like(h_NE), None, torch.zeros_like(bias_V)
        for first in range(0, N, block):
            last = min(N, first + block)
            for start in range(first, last, size):
                n = min(last, start + size) - start
                target = target_N[start : start + n]
                z = buffer[:n].copy_(logits(h[start : start + n], b))
                nats[start : start + n] = _softmax_nats_(z, target)
                if needs_grad:
                    z[torch.arange(n, device=z.device), target] -= 1  # z holds p by now, and dz from here on
                    db += z.sum(0)
                    dz_n = dz[start - first : start - first + n].copy_(z)
                    dh[start : start + n] = hidden_gradient(dz_n)
            if needs_grad:
                dw_block = transposed_product(dz[: last - first], h[first:last])
                dw = dw_block.to(exact) if dw is None else dw.add_(dw_block)
        if needs_grad:
            ctx.save_for_backward(dh, dw, db)
            ctx.rows = N
        return nats.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *(g * (grad / ctx.rows) for g in ctx.saved_tensors), None, None, None


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
    dtype = _compute_dtype(precision, weight_VE.dtype)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (h_NE, weight_VE, bias_V))
    return _LinearCrossEntropy.apply(h_NE, weight_VE, bias_V, target_N, dtype, needs_grad)


@torch.no_grad()
def token_cross_entropy(
    h_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, target_N: Tensor, precision: str = "fp32"
) -> Tensor:
    """Nats of every row (N,), without a graph: for evaluation. Sum them in float64, and divide by their number once."""
    dtype = _compute_dtype(precision, weight_VE.dtype)
    size = _rows(_CHUNK_LOGITS, weight_VE.shape[0])
    w, b = weight_VE.to(dtype), bias_V.to(dtype)
    logits = pack_linear(w) if len(h_NE) >= _PACK_ROWS else lambda h, b: F.linear(h, w, b)
    nats = [
        _softmax_nats_(logits(h.to(dtype), b).to(weight_VE.dtype), target)
        for h, target in zip(h_NE.split(size), target_N.split(size), strict=True)
    ]
    return torch.cat(nats)
