"""Triton kernels of an LSTM layer: a time step forward, a time step backward, and a copy that drops, casts and pads.

Shapes: time T, batch B, units H, padded units P. Gates are stacked in the order i, f, g, o.

A step needs what other programs computed in the step before. The end of a kernel is the barrier between them, so no
program waits for another and nothing can deadlock. A CUDA graph makes so many launches cheap.

Matrices are padded with zeros from H to P, a multiple of the block in which a product sums up. So no load of the inner
loop has a mask along the sum, and the compiler pipelines the loop: copies into shared memory run beside products from
it. Padding stays 0: a padded unit has z = 0, so g = 0, so c and h stay 0; its row and column of W_hh are 0, and so is
its dz. Rows of a tile beyond B are neither loaded nor stored.

Products are taken transposed: the weights are the rows, the batch is the columns. The tensor cores of compute
capability 9 take 64 rows at a time, straight from shared memory, but as few as 8 columns. Sums of products, gates and
cell state are fp32.

Only `lm.nn.kernels.triton_lstm` imports this module, and only where triton is found.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def _tanh(x):
    """tanh(x) = 2 sigmoid(2x) - 1, as the CPU kernel computes it, to about 1e-7."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _await_step_before(OVERLAP: tl.constexpr):
    """With programmatic dependent launch: wait for the step before, then let the programs of the next one start.

    Nothing is read or written before the wait. It comes first so that one step at most waits beside a running one.
    """
    if OVERLAP:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()


@triton.jit(do_not_specialize=["t"])
def forward_step(
    w, z, h, c, gates, out, t, B,
    H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    KEEP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Time step t of UNITS units and ROWS rows of the batch, all four gates.

        i, f, o = sigmoid(W_hh h_{t-1} + z_t)     g = tanh(W_hh h_{t-1} + z_t)     z_t = W_ih x_t + b
        c_t     = f c_{t-1} + i g                 h_t = o tanh(c_t)

    Reads w_4PP (W_hh) and z_TB4P, in the type of the products. h_(T+1)BP, of that type too, and c_(T+1)BP hold step
    t-1 at index t; it is read and index t+1 is written. Writes out_TBH and, for backward (KEEP), gates_TB4P.
    """
    _await_step_before(OVERLAP)
    first = tl.program_id(0) * UNITS
    row, unit = tl.program_id(1) * ROWS + tl.arange(0, ROWS), first + tl.arange(0, UNITS)
    live = (row < B)[None, :]
    at = t.to(tl.int64) * B + row[None, :]  # the row in what has (T, B) rows; 64 bits, as T is anything
    of_gate, of_cell = at * (4 * P) + unit[:, None], at * P + unit[:, None]
    # Asked for before the product, which hides how long they take; 4 x UNITS x ROWS values in the products' type.
    z_i = tl.load(z + of_gate, mask=live, other=0.0)
    z_f = tl.load(z + of_gate + P, mask=live, other=0.0)
    z_g = tl.load(z + of_gate + 2 * P, mask=live, other=0.0)
    z_o = tl.load(z + of_gate + 3 * P, mask=live, other=0.0)
    c_before = tl.load(c + of_cell, mask=live, other=0.0)

    n, k = tl.arange(0, 4 * UNITS), tl.arange(0, BLOCK)
    w_tile = w + ((n // UNITS) * P + first + n % UNITS)[:, None] * P + k[None, :]
    h_tile = h + at * P + k[:, None]
    product = tl.zeros([4 * UNITS, ROWS], tl.float32)
    for start in range(0, P, BLOCK):
        h_block = tl.load(h_tile + start, mask=live, other=0.0)
        product = tl.dot(tl.load(w_tile + start), h_block, product, input_precision="ieee")

    # Gate 2a + b of the rows to [unit, row, a, b]; `split` takes the last dimension apart.
    even, odd = product.reshape(2, 2, UNITS, ROWS).permute(2, 3, 0, 1).split()
    r_i, r_g = even.split()
    r_f, r_o = odd.split()
    i, f, g, o = tl.sigmoid(r_i + z_i), tl.sigmoid(r_f + z_f), _tanh(r_g + z_g), tl.sigmoid(r_o + z_o)
    c_now = f * c_before + i * g
    h_now = o * _tanh(c_now)
    after = B * P
    tl.store(h + of_cell + after, h_now.to(h.dtype.element_ty), mask=live)
    tl.store(c + of_cell + after, c_now, mask=live)
    tl.store(out + at * H + unit[:, None], h_now, mask=live & (unit < H)[:, None])
    if KEEP:
        tl.store(gates + of_gate, i, mask=live)
        tl.store(gates + of_gate + P, f, mask=live)
        tl.store(gates + of_gate + 2 * P, g, mask=live)
        tl.store(gates + of_gate + 3 * P, o, mask=live)


@triton.jit
def _through_cell(
    dh, dz, gates, c, dout, dc, at, row, unit, B, H: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """dz_t of a tile from dh and dc, the gradients that the next step passes to h_t and c_t.

        dh_t = dh + dout_t                        dz_i = dc_t g i(1-i)     dz_f = dc_t c_{t-1} f(1-f)
        dc_t = dc + dh_t o (1 - tanh²c_t)         dz_g = dc_t i (1-g²)     dz_o = dh_t tanh(c_t) o(1-o)

    The place of dc then holds dc_t f, what this step passes to c_{t-1}.
    """
    live = (row < B)[None, :]
    of_gate, of_cell = at * (4 * P) + unit[:, None], at * P + unit[:, None]
    i = tl.load(gates + of_gate, mask=live, other=0.0)
    f = tl.load(gates + of_gate + P, mask=live, other=0.0)
    g = tl.load(gates + of_gate + 2 * P, mask=live, other=0.0)
    o = tl.load(gates + of_gate + 3 * P, mask=live, other=0.0)
    c_before = tl.load(c + of_cell, mask=live, other=0.0)
    tanh_c = _tanh(tl.load(c + of_cell + B * P, mask=live, other=0.0))
    dh += tl.load(dout + at * H + unit[:, None], mask=live & (unit < H)[:, None], other=0.0)
    dc_place = dc + row[None, :] * P + unit[:, None]
    dc_now = tl.load(dc_place, mask=live, other=0.0) + dh * o * (1 - tanh_c * tanh_c)
    tl.store(dc_place, dc_now * f, mask=live)
    kind = dz.dtype.element_ty
    tl.store(dz + of_gate, (dc_now * g * i * (1 - i)).to(kind), mask=live)
    tl.store(dz + of_gate + P, (dc_now * c_before * f * (1 - f)).to(kind), mask=live)
    tl.store(dz + of_gate + 2 * P, (dc_now * i * (1 - g * g)).to(kind), mask=live)
    tl.store(dz + of_gate + 3 * P, (dh * tanh_c * o * (1 - o)).to(kind), mask=live)


@triton.jit(do_not_specialize=["t"])
def backward_step(
    w_t, dz, gates, c, dout, dh_end, dc, parts, tickets, t, B,
    H: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr, LAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Time step t of UNITS units and ROWS rows of the batch: dh = W_hh^T dz_{t+1}, then `_through_cell`.

    Reads w_t_P4P (W_hh^T), gates_TB4P, c_(T+1)BP, dout_TBH and dz_{t+1} of dz_TB4P; writes dz_t and, in place, dc_BP.
    The last step of the window (LAST) has no product: its dh is dh_end_BP, the gradient to the state after the window.

    The product sums over 4P numbers and has P results, where the forward product sums over P and has 4P: one program a
    tile would make few programs, each with much to read. So SPLIT programs share a tile and each sums a part. The one
    that finishes last, as tickets counts, adds the parts_SBP in their order, so that bits repeat, and goes on alone.
    """
    _await_step_before(OVERLAP)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    live = (row < B)[None, :]
    at = t.to(tl.int64) * B + row[None, :]
    of_row = row[None, :] * P + unit[:, None]
    if LAST:
        dh = tl.load(dh_end + of_row, mask=live, other=0.0)
        _through_cell(dh, dz, gates, c, dout, dc, at, row, unit, B, H, P)
    else:
        part = tl.program_id(2)
        tl.static_assert(4 * P // BLOCK % SPLIT == 0, "the programs of a tile have equal parts of the sum")
        length: tl.constexpr = 4 * P // SPLIT
        k = tl.arange(0, BLOCK)
        w_tile = w_t + unit[:, None] * (4 * P) + part * length + k[None, :]
        dz_tile = dz + (at + B) * (4 * P) + part * length + k[:, None]
        dh = tl.zeros([UNITS, ROWS], tl.float32)
        for start in range(0, length, BLOCK):
            dz_block = tl.load(dz_tile + start, mask=live, other=0.0)
            dh = tl.dot(tl.load(w_tile + start), dz_block, dh, input_precision="ieee")
        if SPLIT == 1:
            _through_cell(dh, dz, gates, c, dout, dc, at, row, unit, B, H, P)
        else:
            tl.store(parts + part * B * P + of_row, dh, mask=live)
            # All of the program's stores come before its ticket, and the others' before what the last one loads.
            tl.debug_barrier()
            ticket = tickets + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
            if tl.atomic_add(ticket, 1, sem="acq_rel") == SPLIT - 1:
                dh = tl.zeros([UNITS, ROWS], tl.float32)
                for other in tl.static_range(SPLIT):  # .cg: from L2, where the others' stores are
                    dh += tl.load(parts + other * B * P + of_row, mask=live, other=0.0, cache_modifier=".cg")
                _through_cell(dh, dz, gates, c, dout, dc, at, row, unit, B, H, P)
                tl.store(ticket, 0)


@triton.jit
def masked_copy(
    source, mask, copy, copy_t, scale, rows, columns, to_rows, to_columns,
    MASKED: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """copy_GRC = mask∘(scale source_GRC) in the type of the copy, in one pass over memory; G blocks, such as gates.

    The copy is larger than the source, padded with zeros, or smaller, without the padding. The product with the scale
    is rounded once, as in `drop_weight`. TRANSPOSED also writes copy_t_C(GR), in whose rows the numbers over which the
    backward product sums lie side by side.
    """
    group = tl.program_id(2)
    row, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = (group.to(tl.int64) * rows + row[:, None]) * columns + column[None, :]
    value = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    if MASKED:  # its shape is that without padding
        kept_rows, kept_columns = tl.minimum(rows, to_rows), tl.minimum(columns, to_columns)
        known = (row < kept_rows)[:, None] & (column < kept_columns)[None, :]
        of_mask = (group.to(tl.int64) * kept_rows + row[:, None]) * kept_columns + column[None, :]
        value = tl.where(tl.load(mask + of_mask, mask=known, other=0) != 0, value * scale, 0.0)
    value = value.to(copy.dtype.element_ty)
    written = (row < to_rows)[:, None] & (column < to_columns)[None, :]
    to_row = group.to(tl.int64) * to_rows + row
    tl.store(copy + to_row[:, None] * to_columns + column[None, :], value, mask=written)
    if TRANSPOSED:
        all_rows = tl.num_programs(2) * to_rows
        to = column[:, None].to(tl.int64) * all_rows + to_row[None, :]
        tl.store(copy_t + to, tl.trans(value), mask=tl.trans(written))
