"""Adaptive softmax for large vocabularies (Grave et al. 2017, arXiv 1609.04309), tied to the embedding.

Word ids are ranks by frequency. Cutoffs divide them into a head, the ids below the first, and K tails. One softmax is
over the head and K clusters, which stand for the tails; another, over the words of a tail, is computed only where the
target is one of them:

    p(w) = p_head(w)                                w in the head
    p(w) = p_head(cluster k) p_k(w)                 w in tail k

This is a distribution over all words, not an approximation of one. Every word has a row of one matrix W (V, E), which
can be the embedding: head and tails are slices of it, so a tail is as wide as the head, as in awd-lstm-lm
(`SplitCrossEntropyLoss`). The paper makes tails narrower, which leaves nothing to tie. Beyond W and the bias there are
K vectors and K biases, those of the clusters.

Shapes: rows N = time x batch, features E, vocabulary V, clusters K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lm.base.errors import ConfigError
from lm.nn.loss import LinearDecoder, compute_dtype, nats_and_gradients, token_cross_entropy

Tails = list[tuple[slice, Tensor]]


def _divide(target_N: Tensor, cutoffs: Sequence[int], vocab_size: int) -> tuple[Tensor, Tails]:
    """The first softmax's targets (N,), and the ids of each tail with the rows whose targets they are.

    Waits for a GPU, as only the targets tell how many rows a tail has.
    """
    head = cutoffs[0]
    cluster_N = torch.bucketize(target_N, torch.tensor(cutoffs, device=target_N.device), right=True)
    bounds = [*cutoffs, vocab_size]
    tails = [(slice(bounds[k], bounds[k + 1]), (cluster_N == k + 1).nonzero().squeeze(1)) for k in range(len(cutoffs))]
    first_N = torch.where(cluster_N == 0, target_N, head - 1 + cluster_N)
    return first_N, [(words, rows) for words, rows in tails if len(rows)]


class _AdaptiveCrossEntropy(torch.autograd.Function):
    """Mean nats; all gradients are computed in the forward pass, as `lm.nn.loss` does, each row of dW written once."""

    @staticmethod
    def forward(ctx, h_NE, weight_VE, bias_V, vectors_KE, biases_K, target_N, cutoffs, dtype):
        head = cutoffs[0]
        first_N, tails = _divide(target_N, cutoffs, len(weight_VE))
        first_weight = torch.cat([weight_VE[:head], vectors_KE])
        first_bias = torch.cat([bias_V[:head], biases_K])
        nats, dh, dw, db = nats_and_gradients(h_NE, first_weight, first_bias, first_N, dtype)
        dweight, dbias = torch.zeros_like(weight_VE), torch.zeros_like(bias_V)
        dweight[:head], dvectors = dw.split([head, len(vectors_KE)])
        dbias[:head], dbiases = db.split([head, len(vectors_KE)])
        for words, rows in tails:
            tail = (weight_VE[words], bias_V[words], target_N[rows] - words.start)
            tail_nats, tail_dh, _, dbias[words] = nats_and_gradients(h_NE[rows], *tail, dtype, dweight[words])
            nats[rows] += tail_nats
            dh[rows] += tail_dh
        ctx.save_for_backward(dh, dweight, dbias, dvectors, dbiases)
        ctx.rows = len(h_NE)
        return nats.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *(g * (grad / ctx.rows) for g in ctx.saved_tensors), None, None, None


class AdaptiveDecoder(LinearDecoder):
    """From outputs h (..., E) to log-probabilities (..., V), which are logits of the same distribution."""

    def __init__(self, features: int, vocab_size: int, cutoffs: Sequence[int]) -> None:
        """Clusters start at 0, as biases do.

        Args:
            features: E.
            vocab_size: V; ids are ranks, the most frequent word is 0.
            cutoffs: the first id of each tail, increasing.

        Raises:
            ConfigError: the vocabulary does not reach beyond the last cutoff.
        """
        if cutoffs[-1] >= vocab_size:
            raise ConfigError(f"--cutoffs: must be below the {vocab_size:,} types of the vocabulary; got {cutoffs[-1]}")
        super().__init__(features, vocab_size)
        self.cutoffs = list(cutoffs)
        self.cluster_weight = nn.Parameter(torch.zeros(len(cutoffs), features))
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs)))

    def _first(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the first softmax: the head's, then the clusters'."""
        head = self.cutoffs[0]
        weight = torch.cat([self.weight[:head], self.cluster_weight])
        return weight, torch.cat([self.bias[:head], self.cluster_bias])

    def forward(self, h: Tensor) -> Tensor:
        """Log-probabilities of all words: for generation, as it takes every tail."""
        first = F.linear(h, *self._first()).log_softmax(-1)
        bounds = [*self.cutoffs, self.out_features]
        parts = [first[..., : bounds[0]]]
        for k in range(len(self.cutoffs)):
            words = slice(bounds[k], bounds[k + 1])
            tail = F.linear(h, self.weight[words], self.bias[words]).log_softmax(-1)
            parts.append(tail + first[..., bounds[0] + k, None])
        return torch.cat(parts, -1)

    def loss(self, h_NE: Tensor, target_N: Tensor, precision: str) -> Tensor:
        """Mean nats of the targets, differentiable."""
        if not torch.is_grad_enabled():
            return self.nats(h_NE, target_N, precision).mean()
        dtype = compute_dtype(precision, self.weight.dtype)
        clusters = (self.cluster_weight, self.cluster_bias)
        return _AdaptiveCrossEntropy.apply(h_NE, self.weight, self.bias, *clusters, target_N, self.cutoffs, dtype)

    @torch.no_grad()
    def nats(self, h_NE: Tensor, target_N: Tensor, precision: str) -> Tensor:
        """Nats of every target (N,), without a graph."""
        first_N, tails = _divide(target_N, self.cutoffs, self.out_features)
        nats = token_cross_entropy(h_NE, *self._first(), first_N, precision)
        for words, rows in tails:
            target = target_N[rows] - words.start
            nats[rows] += token_cross_entropy(h_NE[rows], self.weight[words], self.bias[words], target, precision)
        return nats
