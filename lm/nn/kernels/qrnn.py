"""A QRNN layer as one autograd function: the matrix product, and what runs over time after it (fo-pooling).

Shapes: time T, batch B, units H; K is the window times the inputs; gates are stacked along 3H in the order z, f, o.
The equations are those of `lm.nn.qrnn`; k is what zoneout multiplies the forget gate by in evaluation, else 1.

A plain loop over time is the fastest way to compute c on a CPU: a step is one `lerp`. Milliseconds forward for T 70 on
one AVX2 core, units 1150/650/200 (a scan by doubling has log2 T passes over all steps, one in blocks of 8 has 2):

              lerp              scan in blocks    scan by doubling
    B 20      2.3/1.5/0.8       5.2/2.9/0.9       28/9.2/2.3
    B 80      7.4/4.5/1.9       24/15/3.8         132/85/19
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.nn.dropout import drop_gradient, drop_weight
from lm.nn.products import linear_for, product, transposed_product


class QRNNFunction(torch.autograd.Function):
    """x_TBK, c_BH, W, b, mask, scale, zone, k, dtype, keep, kernel -> out_TBH, c_BH.

    `zone`, None or true where zoneout holds a unit's state, has the shape (T, B, H). Products take and give `dtype`;
    everything else is in the dtype of the weights. `keep` stores what backward needs. `kernel`: native or triton.
    """

    @staticmethod
    def forward(ctx, x_TBK, c_BH, weight, bias, mask, scale, zone, k, dtype, keep, kernel):
        (T, B, _), H = x_TBK.shape, c_BH.shape[1]
        x = x_TBK.reshape(T * B, -1).to(dtype)
        w = weight.to(dtype) if mask is None else drop_weight(weight, mask, scale, dtype)
        y = linear_for(w, T * B)(x, bias.to(dtype)).view(T, B, 3 * H)
        if zone is not None:  # sigmoid(-inf) = 0, and so is its derivative
            y.chunk(3, 2)[1].masked_fill_(zone, -torch.inf)
        forward, ctx.pool_back = _pooling(kernel)
        out, c, kept = forward(y, c_BH, k)
        if keep:
            ctx.save_for_backward(x, w, mask, c, kept)
            ctx.scale, ctx.k = scale, k
        return out, c[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_TBH, dc_BH):
        x, w, mask, c, kept = ctx.saved_tensors
        exact = c.dtype
        dy, dc = ctx.pool_back(dout_TBH, dc_BH, c, kept, ctx.k)
        dy = dy.flatten(0, 1)
        db = dy.sum(0, dtype=exact)
        dy = dy.to(x.dtype)
        dw = drop_gradient(transposed_product(dy, x), mask, ctx.scale, exact)
        dx = product(dy, w).to(exact).view(*dout_TBH.shape[:2], -1) if ctx.needs_input_grad[0] else None
        return dx, dc, dw, db, None, None, None, None, None, None, None


def _pooling(kernel):
    """The functions forward and backward of a kernel. Triton is imported only where it is asked for."""
    if kernel == "native":
        return pool, pool_back
    from lm.nn.kernels import triton_qrnn

    return triton_qrnn.pool, triton_qrnn.pool_back


def pool(y_TB3H: Tensor, c_BH: Tensor, k: float) -> tuple[Tensor, Tensor, Tensor]:
    """From W x + b, which may be overwritten, to out_TBH, c of steps -1 to T-1, and z, f, o for backward."""
    T, B, H = len(y_TB3H), *c_BH.shape
    gates = y_TB3H.to(c_BH.dtype)
    gates[:, :, :H].tanh_()
    gates[:, :, H:].sigmoid_()
    z, f, o = gates.chunk(3, 2)
    if k != 1:
        f.mul_(k)
    c = c_BH.new_empty(T + 1, B, H)
    c[0] = c_BH
    for c_before, z_t, f_t, c_t in zip(c.unbind(), z.unbind(), f.unbind(), c[1:].unbind(), strict=False):
        torch.lerp(c_before, z_t, f_t, out=c_t)
    return o * c[1:], c, gates


def pool_back(dout_TBH: Tensor, dc_BH: Tensor, c: Tensor, gates_TB3H: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """dy_TB3H, the gradient by W x + b, and dc_BH before the window. Elementwise, with s = sigmoid, so f = k s:

    dc_t = dout_t o + dc_{t+1} (1 - f_{t+1})        dy_z = dc_t f (1-z²)
    dy_o = dout_t c_t o (1-o)                       dy_f = dc_t (z - c_{t-1}) k s (1-s)
    """
    z, f, o = gates_TB3H.chunk(3, 2)
    dc = dout_TBH * o
    dc[-1] += dc_BH
    stay = 1 - f
    dc_t, stay_t = dc.unbind(), stay.unbind()
    for t in range(len(dc_t) - 1, 0, -1):
        dc_t[t - 1].addcmul_(dc_t[t], stay_t[t])
    dy = torch.empty_like(gates_TB3H)
    dy_z, dy_f, dy_o = dy.chunk(3, 2)
    torch.ops.aten.tanh_backward.grad_input(f, z, grad_input=dy_z)
    torch.sub(z, c[:-1], out=dy_f).mul_(torch.addcmul(f, f, f, value=-1 / k))  # k s (1-s) = f - f²/k
    torch.ops.aten.sigmoid_backward.grad_input(c[1:], o, grad_input=dy_o)
    dy_z.mul_(dc)
    dy_f.mul_(dc)
    dy_o.mul_(dout_TBH)
    return dy, dc[0] * stay[0]
