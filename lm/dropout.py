"""placeholder, replaced by the kernel helper's version"""
from __future__ import annotations
import torch
from torch import nn, Tensor

def keep_mask(shape, p, device, dtype=torch.float32):
    return torch.empty(shape, device=device, dtype=dtype).bernoulli_(1 - p).div_(1 - p)

class LockedDropout(nn.Module):
    def __init__(self, p): super().__init__(); self.p = p
    def forward(self, x):
        if not self.training or not self.p: return x
        return x * keep_mask((1, *x.shape[1:]), self.p, x.device, x.dtype)

class StandardDropout(LockedDropout):
    def forward(self, x):
        if not self.training or not self.p: return x
        return x * keep_mask(x.shape, self.p, x.device, x.dtype)

class EmbeddingDropout(nn.Module):
    def __init__(self, p): super().__init__(); self.p = p
    def forward(self, tokens, weight):
        emb = nn.functional.embedding(tokens, weight)
        if not self.training or not self.p: return emb
        return emb * keep_mask((weight.shape[0], 1), self.p, weight.device, weight.dtype)[tokens]
