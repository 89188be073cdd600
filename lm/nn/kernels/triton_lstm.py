"""An LSTM layer on Triton kernels, one launch a time step: what `lm.nn.kernels.triton_steps` is called with.

cuDNN's persistent LSTM is for at most 1024 units in fp16, so 1150 units in bf16 run on its general one, of several
kernels a time step. Here a step is one kernel forward and one backward, and everything without a time loop is one large
product: W_ih x before the loop; dx and the gradients of both weights and of the bias after it. The recurrent weight is
masked, scaled, cast and padded once a window; at 1150 units it has 10.6 MB in bf16, and an L2 cache of 50 MB can keep
it from step to step. A window of T steps is 2T launches from Python, so training records it into a CUDA graph; nothing
here waits for the GPU, has a shape that depends on data, or takes memory but from PyTorch.

What backward needs is kept in fp32: gates_TB4P and c. In bf16 numbers just below 1 are 2^-8 apart, so a forget gate of
0.998 would become 1 and its gradient, a factor f(1-f), 0; in fp32 the kernels add nothing to the error of rounding the
products' operands. It costs 5 P B numbers of 4 bytes a step, 0.46 MB at 1150 units and batch 20, next to 10.6 MB of
weights.

Not yet measured on a GPU: `python -m tests.gpu_lstm` compares, times and tunes.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The kernels are tested with 3.6 and 3.7, which come with PyTorch 2.11 to 2.13 for CUDA.
_OLDEST_TRITON = (3, 6)
# A copy's programs take 64 x 64 numbers: rows of 128 bytes or more, read and, transposed, written.
_COPY_BLOCK = 64


@dataclass(frozen=True)
class Tile:
    """What one program of a step computes, and how: see `triton_steps`.

    `units` and `rows` (of the batch) are its part of the result, `block` numbers of the sum are multiplied at a time,
    `stages` of them are loaded ahead; `split` programs share the sum of a backward tile. With `overlap` a step's
    programs start before the last step's have ended (programmatic dependent launch). All but `split` are powers of two.
    """

    units: int
    rows: int
    block: int = 64
    warps: int = 4
    stages: int = 4
    split: int = 1
    overlap: bool = False


def available(device: torch.device) -> bool:
    """Whether the kernels run there: a CUDA device, or any with TRITON_INTERPRET=1, and a Triton that is new enough."""
    if not (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        return False
    return _has_triton()


@functools.cache
def _has_triton() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    return tuple(int(part) for part in version("triton").split(".")[:2]) >= _OLDEST_TRITON


@functools.cache
def _steps() -> ModuleType:
    from lm.nn.kernels import triton_steps

    return triton_steps


def choose_tiles(hidden_size: int, batch_size: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """The tiles of a forward and of a backward step.

    Counted, not yet measured, for the 132 multiprocessors of an H100. Forward, 16 units are 64 rows of W_hh, which is
    what a tensor core instruction takes, and 72 programs at 1150 units. Backward, 64 units for the same reason, whose
    sum is then split to about a hundred programs. A tile has the whole batch up to 128 rows forward; backward up to 32,
    as each thread keeps some ten numbers a unit and row.
    """
    rows = max(16, min(1 << (batch_size - 1).bit_length(), 128))
    if dtype == torch.float32:  # no tensor cores, and twice the shared memory: for comparisons only
        return Tile(16, min(rows, 32), 32, 4, 2), Tile(16, min(rows, 32), 32, 4, 2)
    back_rows = min(rows, 32)
    across = -(-hidden_size // 64)
    programs = across * -(-batch_size // back_rows)
    # Equal parts of the sum, of 4 blocks a tile across, and no more programs than multiprocessors.
    split = max(n for n in range(1, 9) if n == 1 or (4 * across % n == 0 and n * programs <= 132))
    return Tile(16, rows), Tile(64, back_rows, warps=8, split=split)


def padded_size(hidden_size: int, *tiles: Tile) -> int:
    """P: the units up to the next multiple of every tile's units and block, all powers of two."""
    multiple = max(max(tile.units, tile.block) for tile in tiles)
    return -(-hidden_size // multiple) * multiple


def masked_copy(
    source_GRC: Tensor,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    scale: float = 1.0,
    transposed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`mask * scale * source` of `dtype`, padded with zeros or cut to (G, rows, columns), and its transpose.

    The mask has the shape without padding; the transpose, None unless asked for, is (columns, G * rows).
    """
    G, R, C = source_GRC.shape
    copy = source_GRC.new_empty(G, rows, columns, dtype=dtype)
    copy_t = source_GRC.new_empty(columns, G * rows, dtype=dtype) if transposed else None
    grid = (-(-rows // _COPY_BLOCK), -(-columns // _COPY_BLOCK), G)
    with torch.cuda.device_of(copy):
        _steps().masked_copy[grid](
            source_GRC.contiguous(), mask, copy, copy_t, scale, R, C, rows, columns,
            MASKED=mask is not None, TRANSPOSED=transposed, BLOCK=_COPY_BLOCK,
        )  # fmt: skip
    return copy, copy_t


def _launch(kernel: str, tile: Tile, split: int, B: int, P: int, *arguments: object, **constants: object) -> None:
    """Launch a step's programs: as many as have units and rows, times those that share a tile."""
    options = {"launch_pdl": True} if tile.overlap else {}  # the interpreter does not know it
    getattr(_steps(), kernel)[P // tile.units, -(-B // tile.rows), split](
        *arguments, B, P=P, ROWS=tile.rows, UNITS=tile.units, BLOCK=tile.block, OVERLAP=tile.overlap,
        num_warps=tile.warps, num_stages=tile.stages, **constants, **options,
    )  # fmt: skip


def forward_steps(
    w_4PP: Tensor, z_TB4P: Tensor, h_BH: Tensor, c_BH: Tensor, tile: Tile, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The forward loop: from W_ih x + b to out_TBH, h and c of steps -1 to T-1, padded, and with `keep` the gates."""
    (T, B, _, P), H = z_TB4P.shape, h_BH.shape[1]
    h, c = (z_TB4P.new_empty(T + 1, B, P, dtype=kind) for kind in (z_TB4P.dtype, torch.float32))
    for buffer, start in ((h, h_BH), (c, c_BH)):
        buffer[0, :, H:].zero_()
        buffer[0, :, :H].copy_(start)
    out = torch.empty_like(c[1:, :, :H], memory_format=torch.contiguous_format)
    gates = torch.empty_like(z_TB4P, dtype=torch.float32) if keep else None
    with torch.cuda.device_of(out):
        for t in range(T):
            _launch("forward_step", tile, 1, B, P, w_4PP, z_TB4P, h, c, gates, out, t, H=H, KEEP=keep)
    return out, h, c, gates


def backward_steps(
    w_t_P4P: Tensor, dout_TBH: Tensor, dh_BH: Tensor, dc_BH: Tensor, c: Tensor, gates_TB4P: Tensor, tile: Tile
) -> tuple[Tensor, Tensor]:
    """The backward loop: dz_TB4P in the type of the weight, and dc_BP before the window."""
    (T, B, _, P), H = gates_TB4P.shape, dh_BH.shape[1]
    dz = torch.empty_like(gates_TB4P, dtype=w_t_P4P.dtype)
    dh_end, dc = gates_TB4P.new_zeros(2, B, P)
    dh_end[:, :H].copy_(dh_BH)
    dc[:, :H].copy_(dc_BH)
    dout = dout_TBH.contiguous()
    parts = gates_TB4P.new_empty(tile.split, B, P)
    tickets = torch.zeros(-(-B // tile.rows) * (P // tile.units), dtype=torch.int32, device=dz.device)
    buffers = (w_t_P4P, dz, gates_TB4P, c, dout, dh_end, dc, parts, tickets)
    with torch.cuda.device_of(dz):
        for t in reversed(range(T)):
            last = t == T - 1
            split = 1 if last else tile.split
            _launch("backward_step", tile, split, B, P, *buffers, t, H=H, SPLIT=split, LAST=last)
    return dz, dc


class TritonLSTM(torch.autograd.Function):
    """x_TBI, h_BH, c_BH, W_ih, W_hh, b_ih, b_hh, mask, scale, dtype, keep -> out_TBH, h_BH, c_BH.

    Interface and formulas of the CPU kernel: products take and give `dtype` (sums of the recurrent ones stay fp32),
    everything else is fp32, as the weights must be. P is H padded, I up to a multiple of 8: with rows of less than 16
    bytes' alignment the products would run on slower kernels.

        z_t  = W_ih x_t + b_ih + b_hh (+ (m∘W_hh) h_{t-1} in the steps)
        dW_ih = sum_t dz_t x_t^T     dW_hh = m∘sum_t dz_t h_{t-1}^T     db = sum_t dz_t     dx_t = W_ih^T dz_t
        dh_{-1} = (m∘W_hh)^T dz_0    dc_{-1} = dc_0 f_0
    """

    @staticmethod
    def forward(ctx, x_TBI, h_BH, c_BH, w_ih, w_hh, b_ih, b_hh, mask, scale, dtype, keep):
        _check(x_TBI, w_hh, dtype)
        T, B, I = x_TBI.shape
        H = h_BH.shape[1]
        tiles = choose_tiles(H, B, dtype)
        P = padded_size(H, *tiles)
        inputs = -(-I // 8) * 8
        x = masked_copy(x_TBI.reshape(1, T * B, I), T * B, inputs, dtype)[0][0]
        w_in = masked_copy(w_ih.view(4, H, I), P, inputs, dtype)[0].view(4 * P, inputs)
        w_rec, w_rec_t = masked_copy(w_hh.view(4, H, H), P, P, dtype, mask, scale, transposed=keep)
        bias = torch.nn.functional.pad((b_ih + b_hh).view(4, H), (0, P - H)).to(dtype)
        z = torch.addmm(bias.view(-1), x, w_in.t()).view(T, B, 4, P)
        out, h, c, gates = forward_steps(w_rec, z, h_BH, c_BH, tiles[0], keep)
        if keep:
            ctx.save_for_backward(x, w_in, w_rec_t, mask, h, c, gates)
            ctx.scale, ctx.tile, ctx.sizes = scale, tiles[1], (T, B, I, H)
        return out, out[-1].clone(), c[-1, :, :H].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_TBH, dh_BH, dc_BH):
        x, w_in, w_rec_t, mask, h, c, gates = ctx.saved_tensors
        T, B, I, H = ctx.sizes
        P = c.shape[2]
        dz, dc = backward_steps(w_rec_t, dout_TBH, dh_BH, dc_BH, c, gates, ctx.tile)
        dz = dz.view(T * B, 4 * P)
        dh = (dz[:B] @ w_rec_t.t())[:, :H].float() if ctx.needs_input_grad[1] else None
        exact = torch.float32
        dw_ih = masked_copy((dz.t() @ x).view(4, P, -1), H, I, exact)[0].view(4 * H, I)
        dw_hh = masked_copy((dz.t() @ h[:-1].flatten(0, 1)).view(4, P, P), H, H, exact, mask, ctx.scale)[0].view(
            4 * H, H
        )
        db = dz.sum(0, dtype=exact).view(4, P)[:, :H].reshape(-1)
        dx = (
            masked_copy((dz @ w_in).unsqueeze(0), T * B, I, exact)[0].view(T, B, I) if ctx.needs_input_grad[0] else None
        )
        return dx, dh, dc[:, :H], dw_ih, dw_hh, db, db, None, None, None, None


def _check(x: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """Raise where the kernels cannot run, rather than let Triton say so in its terms."""
    if torch.compiler.is_compiling():
        raise RuntimeError('the Triton LSTM is a loop of launches, which cannot be traced; use kernel="native"')
    if weight.dtype != torch.float32 or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(
            f"the Triton LSTM has fp32 weights and fp32, bf16 or fp16 products, not {weight.dtype}, {dtype}"
        )
    if not available(x.device):
        raise RuntimeError(
            f"the Triton LSTM needs CUDA and triton >= 3.6, and this is {x.device.type}; use another kernel"
        )
    if x.device.type != "cuda" and dtype == torch.bfloat16:
        raise TypeError("Triton's interpreter multiplies bf16 wrongly; use fp32 or fp16 there")
