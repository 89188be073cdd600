"""A fast LSTM kernel for CPUs: plain PyTorch, one autograd function a layer. The equations are those of `lm.nn.lstm`.

Shapes: time T, batch B, input I, hidden H; gate blocks stacked along 4H in the order i, f, g, o.

The kernel wins over `torch._VF.lstm` on CPU by
  * doing every product that needs no time loop as one product over all T*B rows (W_ih x, both weight gradients, dx);
  * packing W_hh for oneDNN once a window, straight and transposed, instead of once a time step;
  * bf16 products on CPUs that have them, with gates, cell state, sums and outputs in fp32;
  * one sigmoid call for all four gates, as tanh(z) = 2 sigmoid(2z) - 1: rows of g are doubled in the packed weights
    (exact in binary floating point), and sigmoid over (B, 4H) takes half the time of tanh over (B, H);
  * taking the factors of the backward pass that do not depend on the gradient for all time steps at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.nn.dropout import drop_gradient, drop_weight
from lm.nn.products import Linear, pack_linear, product, transposed, transposed_product


class FusedLSTM(torch.autograd.Function):
    """x_TBI, h_BH, c_BH, W_ih, W_hh, b_ih, b_hh, mask, scale, dtype, keep -> out_TBH, h_BH, c_BH.

    Products take and give `dtype`; everything else is in the dtype of the weights. `keep` stores what backward needs.
    Backward, with d* the gradient of the loss by *, and elementwise products but for the last two lines:

        dh_t = dout_t + (m∘W_hh)^T dz_{t+1}             dc_t = dh_t o (1 - tanh²c_t) + dc_{t+1} f_{t+1}
        dz_i = dc_t g i(1-i)      dz_f = dc_t c_{t-1} f(1-f)
        dz_g = dc_t i (1-g²)      dz_o = dh_t tanh(c_t) o(1-o)
        dW_ih = sum_t dz_t x_t^T     dW_hh = m∘sum_t dz_t h_{t-1}^T
        db    = sum_t dz_t           dx_t  = W_ih^T dz_t
    """

    @staticmethod
    def forward(ctx, x_TBI, h_BH, c_BH, w_ih, w_hh, b_ih, b_hh, mask, scale, dtype, keep):
        x = x_TBI.to(dtype)
        w_in, w_rec = drop_weight(w_ih, None, 1.0, dtype), drop_weight(w_hh, mask, scale, dtype)
        recur_back = pack_linear(transposed(w_rec)) if keep else None
        bias = b_ih + b_hh
        for block in (w_in, w_rec, bias):
            block.chunk(4)[2].mul_(2)  # tanh(z) = 2 sigmoid(2z) - 1
        T, B = x.shape[:2]
        H = h_BH.shape[1]
        z_TB4H = pack_linear(w_in)(x.reshape(T * B, -1), bias.to(dtype)).view(T, B, 4 * H)
        out, h, c, gates, tanh_c = _lstm_steps(z_TB4H, h_BH, c_BH, pack_linear(w_rec))
        if keep:
            ctx.save_for_backward(x, w_ih, mask, h, c, gates, tanh_c)
            ctx.recur_back = recur_back
            ctx.scale = scale
        return out, out[-1].clone(), c[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_TBH, dh_BH, dc_BH):
        x, w_ih, mask, h, c, gates, tanh_c = ctx.saved_tensors
        dz, dh_BH, dc_BH, db = _lstm_steps_back(dout_TBH, dh_BH, dc_BH, x.dtype, c, gates, tanh_c, ctx.recur_back)
        if ctx.needs_input_grad[1]:
            dh_BH = ctx.recur_back(dz[0]).to(dh_BH.dtype)
        dz = dz.flatten(0, 1)
        dw_ih = transposed_product(dz, x.flatten(0, 1)).to(w_ih.dtype)
        dw_hh = drop_gradient(transposed_product(dz, h[:-1].flatten(0, 1)), mask, ctx.scale, w_ih.dtype)
        dx = product(dz, w_ih.to(dz.dtype)).to(w_ih.dtype).view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, dh_BH, dc_BH, dw_ih, dw_hh, db, db, None, None, None, None


def _lstm_steps(z_TB4H: Tensor, h_BH: Tensor, c_BH: Tensor, recur: Linear) -> tuple[Tensor, ...]:
    """The forward loop: from W_ih x + b (rows of g doubled) to out, h_{-1..T-1}, c_{-1..T-1}, gates, tanh(c)."""
    T, B, _ = z_TB4H.shape
    H = h_BH.shape[1]
    exact = c_BH.dtype
    h = z_TB4H.new_empty(T + 1, B, H)
    c, out, tanh_c = (c_BH.new_empty(T + k, B, H) for k in (1, 0, 0))
    gates = z_TB4H if z_TB4H.dtype == exact else torch.empty_like(z_TB4H, dtype=exact)
    h[0], c[0] = h_BH, c_BH
    minus_one = torch.tensor(-1.0, dtype=exact)
    i, f, g, o = gates.view(T, B, 4, H).unbind(2)
    rows = zip(*(v.unbind() for v in (z_TB4H, h, gates, i, f, g, o, c, c[1:], tanh_c, out, h[1:])), strict=False)
    for z_t, h_prev, gates_t, i_t, f_t, g_t, o_t, c_prev, c_t, tanh_t, out_t, h_t in rows:
        gates_t.copy_(recur(h_prev, None, z_t)).sigmoid_()
        torch.add(minus_one, g_t, alpha=2, out=g_t)
        torch.mul(f_t, c_prev, out=c_t).addcmul_(i_t, g_t)
        torch.add(c_t, c_t, out=tanh_t).sigmoid_()
        torch.add(minus_one, tanh_t, alpha=2, out=tanh_t)
        h_t.copy_(torch.mul(o_t, tanh_t, out=out_t))
    return out, h, c, gates, tanh_c


def _lstm_steps_back(dout_TBH, dh_BH, dc_BH, dtype, c, gates, tanh_c, recur_back) -> tuple[Tensor, ...]:
    """The backward loop: dz_TB4H in `dtype`, dh and dc before the window (dh without its last product), and db.

    The factors of dc (i, f, g) and dh (o) are each some a∘s(1-s) or a∘(1-t²), that is, PyTorch's derivative of sigmoid
    or tanh times a: one call each for all time steps. The loop then multiplies them by dc and dh in place.
    """
    sigmoid_back = torch.ops.aten.sigmoid_backward.grad_input
    tanh_back = torch.ops.aten.tanh_backward.grad_input
    T, B, H = dout_TBH.shape
    i, f, g, o = gates.view(T, B, 4, H).unbind(2)
    exact_dz = torch.empty(T, B, 4, H, dtype=gates.dtype)
    dz_i, dz_f, dz_g, dz_o = exact_dz.unbind(2)
    sigmoid_back(g, i, grad_input=dz_i)
    sigmoid_back(c[:T], f, grad_input=dz_f)
    tanh_back(i, g, grad_input=dz_g)
    sigmoid_back(tanh_c, o, grad_input=dz_o)
    by_h = torch.ops.aten.tanh_backward(o, tanh_c)

    dz = exact_dz if dtype == gates.dtype else torch.empty_like(exact_dz, dtype=dtype)
    dh = torch.empty_like(dh_BH)
    dc = dc_BH.clone()
    dh_next = dh_BH
    rows = zip(*(v.unbind() for v in (dout_TBH, f, by_h, exact_dz, exact_dz[:, :, :3], dz_o, dz)), strict=True)
    for t, (dout_t, f_t, by_h_t, exact_t, ifg_t, o_t, dz_t) in reversed(list(enumerate(rows))):
        torch.add(dout_t, dh_next, out=dh)
        dc.addcmul_(dh, by_h_t)
        ifg_t.mul_(dc.unsqueeze(1))
        o_t.mul_(dh)
        dc.mul_(f_t)
        if dz is not exact_dz:
            dz_t.copy_(exact_t)
        if t:
            dh_next = recur_back(dz_t.view(B, 4 * H))
    # Summed before rounding; `dz.sum(dtype=float32)` would first copy a bf16 dz, 5 ms for 1400 x 4600.
    return dz.view(T, B, 4 * H), dh, dc, exact_dz.sum((0, 1)).view(-1)
