"""One recurrent layer with DropConnect on its hidden-to-hidden matrix, and a fast LSTM kernel for CPUs.

Shapes: time T, batch B, input I, hidden H; gate blocks stacked along 4H in the order i, f, g, o, as `nn.LSTM`.

    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)      z_t = W_ih x_t + b_ih + (m∘W_hh) h_{t-1} + b_hh
    g       = tanh(z_g)
    c_t     = f∘c_{t-1} + i∘g                               h_t = o∘tanh(c_t)

m is drawn once per forward, so the whole window sees the same dropped weight (Merity et al. 2018, sec. 2).

The fused kernel (`_FusedLSTM`) is plain PyTorch, one autograd function a layer. It wins over `torch._VF.lstm` on CPU by
  * doing every product that needs no time loop as one product over all T*B rows (W_ih x, both weight gradients, dx);
  * packing W_hh for oneDNN once a window, straight and transposed, instead of once a time step;
  * bf16 products on CPUs that have them, with gates, cell state, sums and outputs in fp32;
  * one sigmoid call for all four gates, as tanh(z) = 2 sigmoid(2z) - 1: rows of g are doubled in the packed weights
    (exact in binary floating point), and sigmoid over (B, 4H) takes half the time of tanh over (B, H);
  * taking the factors of the backward pass that do not depend on the gradient for all time steps at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lm.dropout import drop_gradient, drop_weight, keep_mask, keep_probability
from lm.runtime import has_native_bf16

State = tuple[Tensor, ...]
Linear = Callable[..., Tensor]

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
# Units from which the fused kernel is the faster one, see `choose_kernel`.
_FUSED_FROM_UNITS = 300


def choose_kernel(
    kernel: str, cell: str, precision: str, device: torch.device, dtype: torch.dtype, hidden_size: int
) -> tuple[str, torch.dtype]:
    """Return ("native" | "fused", dtype of the products) for a layer whose weights are `dtype` on `device`.

    "auto" takes the fused kernel for an LSTM in bf16 on a CPU with native bf16 from 300 units on, else the native one
    (cuDNN on CUDA, oneDNN or the reference loop on CPU). Forward + backward of one layer, fp32
    native / fp32 fused / bf16 fused, in ms on 2 cores: 200 units (T 35, B 20) 5.2/9.8/7.0; 300 9.5/15/9.6; 650
    39/48/31; 1150 (T 70) 256/254/138; 1150 (T 70, B 80) 899/958/537. So fp32 is fused only where it is asked for.
    bf16 without a fast bf16 kernel (native on CPU) becomes fp32: faster there, and more exact.

    Raises ValueError for an unknown name, and for `kernel="fused"` where the fused kernel cannot run.
    """
    if kernel not in ("auto", "native", "fused") or precision not in ("fp32", "bf16"):
        raise ValueError(f"kernel must be auto|native|fused and precision fp32|bf16, got {kernel!r}, {precision!r}")
    can_fuse = cell == "LSTM" and device.type == "cpu"
    if kernel == "fused" and not can_fuse:
        raise ValueError(f'kernel="fused" is for LSTM layers on CPU, not {cell} on {device.type}')
    bf16 = precision == "bf16" and dtype == torch.float32
    fused = kernel == "fused" or (
        kernel == "auto" and can_fuse and bf16 and hidden_size >= _FUSED_FROM_UNITS and has_native_bf16()
    )
    return ("fused" if fused else "native"), (torch.bfloat16 if bf16 and (fused or device.type == "cuda") else dtype)


def pack_linear(weight_NK: Tensor) -> Linear:
    """Return linear(x, bias=None, add=None) -> x @ weight.T + bias or + add, with the weight packed for oneDNN.

    The only place that touches private operators (those that `torch.compile` emits for a frozen linear layer). One
    [20, 1150] x [1150, 4600] product takes 0.24 ms packed and 0.50 ms plain in bf16, 0.50 and 1.9 in fp32 (2 cores).
    Where an operator is missing or refuses the tensor, the plain product is returned: same result, slower.
    """
    if weight_NK.dtype in (torch.float32, torch.bfloat16) and weight_NK.device.type == "cpu":
        try:
            run, run_add = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary
            packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK)
        except (AttributeError, RuntimeError):
            pass
        else:

            def linear(x: Tensor, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
                if add is None:
                    return run(x, packed, bias, "none", [], "")
                return run_add(x, add, packed, bias, "add")

            return linear

    def plain(x: Tensor, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        y = nn.functional.linear(x, weight_NK, bias)
        return y if add is None else y.add_(add)

    return plain


def transposed(weight_NK: Tensor, block: int = 512) -> Tensor:
    """Contiguous transpose, copied in blocks of rows: 0.9 ms for 4600 x 1150 in bf16, `.t().contiguous()` 1.9 ms."""
    out = weight_NK.new_empty(weight_NK.shape[::-1])
    for start in range(0, weight_NK.shape[0], block):
        out[:, start : start + block].copy_(weight_NK[start : start + block].t())
    return out


def product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b for large matrices; in fp32 on CPU through `pack_linear`: 36 ms with its packing against 72 plain."""
    if a_MK.dtype == torch.float32 and a_MK.device.type == "cpu":
        return pack_linear(transposed(b_KN))(a_MK)
    return a_MK @ b_KN


def transposed_product(a_KM: Tensor, b_KN: Tensor) -> Tensor:
    """a.T @ b for large matrices: the sum over all time steps and rows K of outer products."""
    if a_KM.dtype == torch.float32 and a_KM.device.type == "cpu":
        return product(transposed(a_KM), b_KN)
    return a_KM.t() @ b_KN


class _FusedLSTM(torch.autograd.Function):
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
        T, B, H = *x.shape[:2], h_BH.shape[1]
        z_TB4H = pack_linear(w_in)(x.reshape(T * B, -1), bias.to(dtype)).view(T, B, 4 * H)
        out, h, c, gates, tanh_c = _lstm_steps(z_TB4H, h_BH, c_BH, pack_linear(w_rec))
        if keep:
            ctx.save_for_backward(x, w_ih, mask, h, c, gates, tanh_c)
            ctx.recur_back, ctx.scale = recur_back, scale
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
    (T, B, _), H, exact = z_TB4H.shape, h_BH.shape[1], c_BH.dtype
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
    dh, dc, dh_next = torch.empty_like(dh_BH), dc_BH.clone(), dh_BH
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


class _FlatWeights(torch.autograd.Function):
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


class WeightDropLSTM(nn.Module):
    """One recurrent layer, time-major, with DropConnect on its hidden-to-hidden matrix (AWD-LSTM, sec. 2).

    Parameters carry the names, shapes and gate order of a one-layer `nn.LSTM` / `nn.GRU` / `nn.RNN` and start at
    U(-1/sqrt(H), 1/sqrt(H)). In training each forward draws one mask from the global generator of the weight's device;
    kept weights are scaled by 1/(1 - weight_drop), and the raw weight receives the masked gradient. `kernel` and
    `precision`: see `choose_kernel`. In eval mode, native in fp32, it is bitwise the plain layer.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        weight_drop: float = 0.0,
        kernel: str = "auto",
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        if cell not in _GATES:
            raise ValueError(f"cell must be one of {', '.join(_GATES)}, got {cell!r}")
        keep_probability(weight_drop)
        choose_kernel(kernel, cell, precision, torch.device("cpu"), torch.float32, hidden_size)
        self.cell, self.input_size, self.hidden_size = cell, input_size, hidden_size
        self.weight_drop, self.kernel, self.precision = weight_drop, kernel, precision
        rows = _GATES[cell] * hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(rows))
        self.bias_hh_l0 = nn.Parameter(torch.empty(rows))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H))."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x_TBI: Tensor, state: State) -> tuple[Tensor, State]:
        """Run a window: x_TBI and state (h_BH, c_BH), (h_BH,) if not LSTM -> out_TBH and the state after it.

        Output and state have the dtype of the weights, whatever the products are computed in.
        """
        weight, mask, scale = self.weight_hh_l0, None, 1.0
        kernel, dtype = choose_kernel(
            self.kernel, self.cell, self.precision, weight.device, weight.dtype, self.hidden_size
        )
        if self.training and self.weight_drop:
            mask, scale = keep_mask(tuple(weight.shape), self.weight_drop, weight.device, dtype)
        if kernel == "native":
            return self._native(x_TBI, state, mask, scale, dtype)
        weights = (self.weight_ih_l0, weight, self.bias_ih_l0, self.bias_hh_l0)
        out, *state = _FusedLSTM.apply(x_TBI, *state, *weights, mask, scale, dtype, torch.is_grad_enabled())
        return out, tuple(state)

    def _native(self, x: Tensor, state: State, mask: Tensor | None, scale: float, dtype: torch.dtype):
        weights = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        exact = self.weight_hh_l0.dtype
        if mask is not None:
            weights[1] = weights[1] * mask.to(exact).mul_(scale)
        if x.is_cuda:
            # "ieee" bars not only fp32 from tensor cores but bf16 as well (ATen/cudnn/Descriptors.h).
            torch.backends.cudnn.rnn.fp32_precision = "ieee" if dtype == torch.float32 else "tf32"
            weights = list(_FlatWeights.apply(dtype, *weights))
        hx = [s.unsqueeze(0).to(dtype) for s in state]
        run = getattr(torch._VF, self.cell.lower())
        hx = hx if self.cell == "LSTM" else hx[0]
        out, *state = run(x.to(dtype), hx, weights, True, 1, 0.0, self.training, False, False)
        return out.to(exact), tuple(s.squeeze(0).to(exact) for s in state)

    def extra_repr(self) -> str:
        sizes, choices = f"{self.input_size}, {self.hidden_size}", f"kernel={self.kernel}, precision={self.precision}"
        return f"{self.cell}, {sizes}, weight_drop={self.weight_drop}, {choices}"
