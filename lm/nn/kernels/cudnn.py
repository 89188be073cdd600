"""The weights of a layer in the one buffer that cuDNN asks for.

A dropped weight is a new tensor in each forward pass, and the others may need another dtype, so the parameters cannot
lie in that buffer for good, as those of `nn.LSTM` do: they are copied into it, differentiably.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable


class FlatWeights(torch.autograd.Function):
    """Copy weights into one buffer of `dtype` and return views of it: the single chunk that cuDNN asks for."""

    @staticmethod
    def forward(ctx, dtype, *weights):
        ctx.dtypes = [w.dtype for w in weights]
        flat = torch.cat([w.detach().reshape(-1).to(dtype) for w in weights])
        return tuple(v.view_as(w) for v, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        return None, *(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))
