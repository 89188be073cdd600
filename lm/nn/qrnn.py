"""One QRNN layer with DropConnect on its matrix (Bradbury et al. 2016, arXiv 1611.01576), as awd-lstm-lm uses it.

Shapes: time T, batch B, input I, units H; gate blocks stacked along 3H in the order z, f, o, as in pytorch-qrnn.

    z = tanh(y_z)     f, o = sigmoid(y_f), sigmoid(y_o)       y_t = (m∘W) [x_t, x_{t-1}] + b      (window 2)
    c_t = f∘z + (1 - f)∘c_{t-1}                               y_t = (m∘W) x_t + b                 (window 1)
    h_t = o∘c_t

No gate depends on the step before, so y of a whole window is one matrix product; only c runs over time. m is drawn once
per forward, so the whole window sees the same dropped weight. The convention is pytorch-qrnn's: f = 1 takes the
candidate, where the paper's f = 1 keeps the state. `lm.nn.kernels.qrnn` computes the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lm.base.ranks import Columns
from lm.nn.dropout import columns_mask, keep_mask, keep_probability
from lm.nn.kernels.choose import check_names, choose_kernel, untraced
from lm.nn.kernels.qrnn import QRNNFunction
from lm.nn.lstm import State


class WeightDropQRNN(nn.Module):
    """One QRNN layer, time-major, with an output gate and DropConnect on its matrix.

    `linear` is the (3H, window I) matrix and its bias, in the order [x_t, x_{t-1}], named and initialised as in
    pytorch-qrnn. In training each forward draws one mask of it, and with zoneout (Krueger et al. 2017; the paper,
    sec. 2.1) for each time step and unit whether f is 0, so that the unit keeps its state. In evaluation f is scaled by
    1 - zoneout, its expectation. `kernel` and `precision`: see `choose_kernel`.

    Raises:
        ValueError: the window is neither 1 nor 2, the kernel or precision is unknown, the kernel is not for QRNNs, or
            `weight_drop` or `zoneout` is not in [0, 1) or so near to 1 that it would keep nothing.
        ConfigError: in a forward pass on a device that the kernel is not for.
        RuntimeError: within `torch.export`, for the Triton kernel.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        window: int = 1,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        kernel: str = "auto",
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        if window not in (1, 2):
            raise ValueError(f"window must be 1 or 2, got {window}")
        keep_probability(weight_drop)
        keep_probability(zoneout)
        check_names(kernel, "QRNN", precision)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.window = window
        self.weight_drop = weight_drop
        self.zoneout = zoneout
        self.columns: Columns | None = None  # of a batch that x holds, as of the other dropouts
        self.kernel = kernel
        self.precision = precision
        self.linear = nn.Linear(window * input_size, 3 * hidden_size)

    def initial_state(self, batch_size: int) -> State:
        """Zeros: c_BH and, for window 2, the input x_BI before the first."""
        sizes = (self.hidden_size, self.input_size)[: self.window]
        return tuple(self.linear.bias.new_zeros(batch_size, size) for size in sizes)

    def without_dropout(self) -> None:
        """Compute from now on what evaluation does, whose gradients are no different here."""
        self.eval()

    def chosen_kernel(self) -> tuple[str, torch.dtype]:
        """What computes the layer where its weights lie now, and the type of its products; see `choose_kernel`."""
        weight = self.linear.weight
        return choose_kernel(self.kernel, "QRNN", self.precision, weight.device, weight.dtype, self.hidden_size)

    def forward(self, x_TBI: Tensor, state: State) -> tuple[Tensor, State]:
        """Run a window: x_TBI and state (c_BH,), with window 2 (c_BH, x_BI) -> out_TBH and the state after it.

        Output and state have the dtype of the weights, whatever the product is computed in.
        """
        c_BH, *before = state
        weight = self.linear.weight
        kernel, dtype = self.chosen_kernel()
        mask, scale, zone, k = None, 1.0, None, 1.0
        if self.training and self.weight_drop:
            mask, scale = keep_mask(tuple(weight.shape), self.weight_drop, weight.device, dtype)
        if self.training and self.zoneout:
            shape = (*x_TBI.shape[:2], self.hidden_size)
            zone = columns_mask(weight, shape, self.zoneout, self.columns)[0] == 0
        elif self.zoneout:
            k = 1 - self.zoneout
        x = x_TBI
        if before:
            x = torch.cat([x_TBI, torch.cat([before[0].unsqueeze(0), x_TBI[:-1]])], 2)
        apply = untraced(QRNNFunction.apply) if kernel == "triton" else QRNNFunction.apply
        out, c_BH = apply(
            x, c_BH, weight, self.linear.bias, mask, scale, zone, k, dtype, torch.is_grad_enabled(), kernel
        )
        return out, (c_BH, x_TBI[-1]) if before else (c_BH,)

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, window={self.window}"
        drops = f"weight_drop={self.weight_drop}, zoneout={self.zoneout}"
        return f"{sizes}, {drops}, kernel={self.kernel}, precision={self.precision}"
