"""Triton kernels of a QRNN's fo-pooling: one launch for a window forward, one backward.

Shapes: time T, batch B, units H; gates are stacked along 3H in the order z, f, o. The functions and their formulas are
those of `lm.nn.kernels.qrnn`. A unit's state depends on no other unit, so a program takes a block of units of one row
of the batch through all time steps, and c stays in its registers. Backward computes the gates again from W x + b, which
is less to store. That is of the products' type, so gates that were rounded to bf16, of which those near 1 would lose
their derivative, stand nowhere.

Compiled for an H100 and tested in Triton's interpreter; not yet measured on a GPU. Only `lm.nn.kernels.qrnn` imports
this module, and only where the kernel is chosen.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Units of a program: at 1150 units and 20 rows 180 programs, for the 132 multiprocessors of an H100.
UNITS = 128
WARPS = 4


@triton.jit
def _gates(y, live, k, H: tl.constexpr):
    """z, the sigmoid of f, and o of a time step."""
    z = 2 * tl.sigmoid(2 * tl.load(y, mask=live, other=0.0).to(tl.float32)) - 1
    s = tl.sigmoid(tl.load(y + H, mask=live, other=0.0).to(tl.float32))
    o = tl.sigmoid(tl.load(y + 2 * H, mask=live, other=0.0).to(tl.float32))
    return z, s, k * s, o


@triton.jit
def pool_forward(y, c, out, k, T, B, H: tl.constexpr, UNITS: tl.constexpr):
    """Reads y_TB3H and c_(T+1)BH at index 0; writes the rest of c, and out_TBH."""
    row = tl.program_id(1)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    live = unit < H
    y += row * 3 * H + unit
    c += row * H + unit
    out += row * H + unit
    c_now = tl.load(c, mask=live, other=0.0)
    for _ in range(T):
        z, _s, f, o = _gates(y, live, k, H)
        c_now += f * (z - c_now)
        y += B * 3 * H
        c += B * H
        tl.store(c, c_now, mask=live)
        tl.store(out, o * c_now, mask=live)
        out += B * H


@triton.jit(do_not_specialize=["T"])  # else a T of 1 would be no tensor, which `to` needs
def pool_backward(dout, dc_end, y, c, dy, dc, k, T, B, H: tl.constexpr, UNITS: tl.constexpr):
    """Reads dout_TBH, dc_end_BH (the gradient by the last c), y_TB3H and c_(T+1)BH; writes dy_TB3H and dc_BH."""
    row = tl.program_id(1)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    live = unit < H
    of_row = row * H + unit
    before_last = (T - 1).to(tl.int64) * B  # 64 bits, as T is anything
    y += before_last * 3 * H + row * 3 * H + unit
    dy += before_last * 3 * H + row * 3 * H + unit
    dout += before_last * H + of_row
    c += before_last * H + of_row
    c_now = tl.load(c + B * H, mask=live, other=0.0)
    dc_now = tl.load(dc_end + of_row, mask=live, other=0.0)
    kind = dy.dtype.element_ty
    for _ in range(T):
        z, s, f, o = _gates(y, live, k, H)
        c_before = tl.load(c, mask=live, other=0.0)
        dh = tl.load(dout, mask=live, other=0.0)
        dc_now += dh * o
        tl.store(dy, (dc_now * f * (1 - z * z)).to(kind), mask=live)
        tl.store(dy + H, (dc_now * (z - c_before) * f * (1 - s)).to(kind), mask=live)
        tl.store(dy + 2 * H, (dh * c_now * o * (1 - o)).to(kind), mask=live)
        dc_now *= 1 - f
        c_now = c_before
        y -= B * 3 * H
        dy -= B * 3 * H
        dout -= B * H
        c -= B * H
    tl.store(dc + of_row, dc_now, mask=live)


def pool(y_TB3H: Tensor, c_BH: Tensor, k: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `lm.nn.kernels.qrnn.pool`; what is kept for backward is y itself."""
    T, B, H = len(y_TB3H), *c_BH.shape
    c = c_BH.new_empty(T + 1, B, H)
    c[0] = c_BH
    out = torch.empty_like(c[1:])
    _launch(pool_forward, y_TB3H, c, out, float(k), T, B, H=H)
    return out, c, y_TB3H


def pool_back(dout_TBH: Tensor, dc_BH: Tensor, c: Tensor, y_TB3H: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """As `lm.nn.kernels.qrnn.pool_back`, from y instead of the gates; dy has the type of y."""
    T, B, H = dout_TBH.shape
    dy, dc = torch.empty_like(y_TB3H), torch.empty_like(c[0])
    _launch(pool_backward, dout_TBH.contiguous(), dc_BH.contiguous(), y_TB3H, c, dy, dc, float(k), T, B, H=H)
    return dy, dc


def _launch(kernel: triton.JITFunction, *arguments: object, H: int) -> None:
    B, c = arguments[-1], arguments[1]
    with torch.cuda.device_of(c):
        kernel[-(-H // UNITS), B](*arguments, H=H, UNITS=UNITS, num_warps=WARPS)
