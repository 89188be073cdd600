"""An LSTM layer on the Triton kernels of `lm.nn.kernels.triton_steps`, one launch a time step and direction.

cuDNN's persistent LSTM takes at most 1024 units in fp16, so 1150 units in bf16 run on its general LSTM, which launches
several kernels a time step. Here a time step is one kernel. What needs no time loop is one large product: W_ih x before
the loop, dx and the gradients of weights and biases after it. The recurrent weight is masked, scaled, cast and padded
once a window. At 1150 units it takes 10.6 MB in bf16, so an L2 cache of 50 MB can keep it from step to step.

A window of T steps is 2T launches from Python; training records them into a CUDA graph. To that end nothing here waits
for the GPU, no shape depends on data, and all memory comes from PyTorch.

Backward needs the gates and c. Both are kept in fp32: just below 1 bf16 numbers are 2^-8 apart, so a forget gate f of
0.999 would become 1, and its gradient, which has the factor f(1-f), would become 0. In fp32 the kernels add nothing to
the error of rounding the operands of the products. The price at 1150 units and batch 20 is 0.46 MB of memory traffic a
step, beside the 10.6 MB of the weight.

On an H200 a time step of 1150 units and 20 rows takes 5.0 us forward and 6.9 us backward, and every result is within
1.4 times the error of rounding the operands alone (`results/speed/gpu-lstm.md`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The kernels are tested with 3.6 and 3.7, which come with PyTorch 2.11 to 2.13 for CUDA.
_OLDEST_TRITON = (3, 6)
# A copy's programs take 64 x 64 numbers: rows of 128 bytes or more, read and, transposed, written.
COPY_BLOCK = 64


@dataclass(frozen=True)
class Tile:
    """What one program of a step computes, and how. All numbers but `split` and `stages` are powers of two.

    A program computes `units` units of `rows` rows of the batch. It multiplies `block` numbers of the sum at a time and
    has `stages` blocks in shared memory or on the way there. `split` programs share the sum of a backward tile. With
    `overlap` the programs of a step start while those of the step before still run (programmatic dependent launch).
    """

    units: int
    rows: int
    block: int = 64
    warps: int = 4
    stages: int = 4
    split: int = 1
    overlap: bool = False


def available(device: torch.device) -> bool:
    """Whether the kernels run there: by CUDA with what builds them, or anywhere with TRITON_INTERPRET=1.

    They are built by a Triton that is new enough, and by a C compiler, for the code that starts a kernel.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return _has_triton()
    return device.type == "cuda" and _has_triton() and _has_compiler()


@functools.cache
def _has_triton() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    return tuple(int(part) for part in _triton_version().split(".")[:2]) >= _OLDEST_TRITON


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:  # it came under another name, as pytorch-triton-rocm
        import triton

        return triton.__version__


@functools.cache
def _has_compiler() -> bool:
    return "CC" in os.environ or any(map(shutil.which, ("gcc", "clang")))


@functools.cache
def _steps() -> ModuleType:
    from lm.nn.kernels import triton_steps

    return triton_steps


def choose_tiles(hidden_size: int, batch_size: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """The tiles of a forward and of a backward step (results/speed/gpu-lstm.md).

    On an H200 they are the fastest of those tried or within 7 %, but for three not yet tried: forward at 80 rows, and
    backward at 100 rows of 1150 units, whose sum was tried whole and took 17.3 us.

    16 units forward are 64 rows of W_hh, what one instruction of the tensor cores takes, and make 72 programs at 1150
    units. 64 units backward are 64 rows of W_hh^T; their sum is split until there are about as many programs as the 132
    multiprocessors: at 40 rows a whole sum takes 19.2 us, its third 8.7. Tiles have at most 32 rows of the batch: 100
    rows of 1150 units take 9.8 us forward so, and 11.8 in one tile.
    """
    rows = 16 if batch_size <= 16 else 32
    if dtype == torch.float32:  # no tensor cores, and twice the shared memory: for comparisons only
        return Tile(16, rows, 32, 4, 2), Tile(16, rows, 32, 4, 2)
    across = -(-hidden_size // 64)
    programs = across * -(-batch_size // rows)
    # Equal parts of the sum, of 4 blocks a tile across; two parts even if they make more programs than that.
    parts = [n for n in range(2, 9) if 4 * across % n == 0 and n * programs <= 132]
    split = max(parts, default=2 if programs <= 132 else 1)
    return Tile(16, rows), Tile(64, rows, warps=8, split=split)


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
    grid = (-(-rows // COPY_BLOCK), -(-columns // COPY_BLOCK), G)
    with torch.cuda.device_of(copy):
        _steps().masked_copy[grid](
            source_GRC.contiguous(), mask, copy, copy_t, scale, R, C, rows, columns,
            MASKED=mask is not None, TRANSPOSED=transposed, BLOCK=COPY_BLOCK,
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

    Interface and formulas of the CPU kernel (`lm.nn.kernels.fused`). The weights are fp32, and so is everything but the
    products, which take and give `dtype`; the sums of the recurrent products stay fp32. H is padded to P, and I to a
    multiple of 8, since matrix products are slower over rows that are not aligned to 16 bytes.

        before the steps    z_t     = W_ih x_t + b_ih + b_hh
        after them          dx_t    = W_ih^T dz_t             dW_ih   = sum_t dz_t x_t^T
                            db      = sum_t dz_t              dW_hh   = m∘sum_t dz_t h_{t-1}^T
                            dh_{-1} = (m∘W_hh)^T dz_0         dc_{-1} = dc_0 f_0
    """

    @staticmethod
    def forward(ctx, x_TBI, h_BH, c_BH, w_ih, w_hh, b_ih, b_hh, mask, scale, dtype, keep):
        _check(x_TBI, w_hh, dtype)
        (T, B, inputs), H = x_TBI.shape, h_BH.shape[1]
        tiles = choose_tiles(H, B, dtype)
        P, columns = padded_size(H, *tiles), -(-inputs // 8) * 8
        x = masked_copy(x_TBI.reshape(1, T * B, inputs), T * B, columns, dtype)[0][0]
        w_in = masked_copy(w_ih.view(4, H, inputs), P, columns, dtype)[0].view(4 * P, columns)
        w_rec, w_rec_t = masked_copy(w_hh.view(4, H, H), P, P, dtype, mask, scale, transposed=keep)
        bias = torch.nn.functional.pad((b_ih + b_hh).view(4, H), (0, P - H)).to(dtype)
        z = torch.addmm(bias.view(-1), x, w_in.t()).view(T, B, 4, P)
        out, h, c, gates = forward_steps(w_rec, z, h_BH, c_BH, tiles[0], keep)
        if keep:
            ctx.save_for_backward(x, w_in, w_rec_t, mask, h, c, gates)
            ctx.scale, ctx.tile, ctx.sizes = scale, tiles[1], (T, B, inputs, H)
        return out, out[-1].clone(), c[-1, :, :H].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_TBH, dh_BH, dc_BH):
        x, w_in, w_rec_t, mask, h, c, gates = ctx.saved_tensors
        (T, B, inputs, H), P = ctx.sizes, c.shape[2]
        dz, dc = backward_steps(w_rec_t, dout_TBH, dh_BH, dc_BH, c, gates, ctx.tile)
        dz = dz.view(T * B, 4 * P)
        dh = (dz[:B] @ w_rec_t.t())[:, :H].float() if ctx.needs_input_grad[1] else None
        exact = torch.float32
        dw_in, dw_rec = dz.t() @ x, dz.t() @ h[:-1].flatten(0, 1)
        dw_ih = masked_copy(dw_in.view(4, P, -1), H, inputs, exact)[0].view(4 * H, inputs)
        dw_hh = masked_copy(dw_rec.view(4, P, P), H, H, exact, mask, ctx.scale)[0].view(4 * H, H)
        db = dz.sum(0, dtype=exact).view(4, P)[:, :H].reshape(-1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = masked_copy((dz @ w_in).unsqueeze(0), T * B, inputs, exact)[0].view(T, B, inputs)
        return dx, dh, dc[:, :H], dw_ih, dw_hh, db, db, None, None, None, None


def _check(x: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """Raise where the kernels cannot run, rather than let Triton say so in its terms."""
    if weight.dtype != torch.float32 or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(
            f"the Triton LSTM has fp32 weights and fp32, bf16 or fp16 products, not {weight.dtype}, {dtype}"
        )
    if not available(x.device):
        raise RuntimeError(
            "the Triton LSTM needs CUDA, triton >= 3.6 and gcc or clang, and lacks one of them on "
            f"{x.device.type}; use another kernel"
        )
    if x.device.type != "cuda" and dtype == torch.bfloat16:
        raise TypeError("Triton's interpreter multiplies bf16 wrongly; use fp32 or fp16 there")
