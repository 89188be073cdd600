"""One recurrent layer with DropConnect on its hidden-to-hidden matrix (AWD-LSTM: Merity et al. 2018, sec. 2).

Shapes: time T, batch B, input I, hidden H; gate blocks stacked along 4H in the order i, f, g, o, as `nn.LSTM`.

    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)      z_t = W_ih x_t + b_ih + (m∘W_hh) h_{t-1} + b_hh
    g       = tanh(z_g)
    c_t     = f∘c_{t-1} + i∘g                               h_t = o∘tanh(c_t)

m is drawn once per forward, so the whole window sees the same dropped weight. `lm.nn.kernels` computes the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lm.nn.dropout import keep_mask, keep_probability
from lm.nn.kernels.choose import check_names, choose_kernel, untraced
from lm.nn.kernels.cudnn import FlatWeights
from lm.nn.kernels.fused import FusedLSTM
from lm.nn.kernels.triton_lstm import TritonLSTM

State = tuple[Tensor, ...]
_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class WeightDropLSTM(nn.Module):
    """One recurrent layer, time-major, with DropConnect on its hidden-to-hidden matrix (AWD-LSTM, sec. 2).

    Parameters carry the names, shapes and gate order of a one-layer `nn.LSTM` / `nn.GRU` / `nn.RNN` and start at
    U(-1/sqrt(H), 1/sqrt(H)). In training each forward draws one mask from the global generator of the weight's device;
    kept weights are scaled by 1/(1 - weight_drop), and the raw weight receives the masked gradient. `kernel` and
    `precision`: see `choose_kernel`. In eval mode, native in fp32, it is bitwise the plain layer.

    Raises:
        ValueError: the cell, kernel or precision is unknown, the kernel is not for the cell, or `weight_drop` is not in
            [0, 1) or so near to 1 that it would keep nothing.
        ConfigError: in a forward pass on a device that the kernel is not for.
        RuntimeError: within `torch.export`, for the Triton kernel.
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
        check_names(kernel, cell, precision)
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.weight_drop = weight_drop
        self.kernel = kernel
        self.precision = precision
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

    def initial_state(self, batch_size: int) -> State:
        """Zeros: (h_BH, c_BH), (h_BH,) if not LSTM."""
        count = 2 if self.cell == "LSTM" else 1
        return tuple(self.bias_ih_l0.new_zeros(batch_size, self.hidden_size) for _ in range(count))

    def without_dropout(self) -> None:
        """Compute in training mode what evaluation does."""
        self.weight_drop = 0.0

    def chosen_kernel(self) -> tuple[str, torch.dtype]:
        """What computes the layer where its weights lie now, and the type of its products; see `choose_kernel`."""
        weight = self.weight_hh_l0
        return choose_kernel(self.kernel, self.cell, self.precision, weight.device, weight.dtype, self.hidden_size)

    def forward(self, x_TBI: Tensor, state: State) -> tuple[Tensor, State]:
        """Run a window: x_TBI and state (h_BH, c_BH), (h_BH,) if not LSTM -> out_TBH and the state after it.

        Output and state have the dtype of the weights, whatever the products are computed in.
        """
        weight = self.weight_hh_l0
        mask, scale = None, 1.0
        kernel, dtype = self.chosen_kernel()
        if self.training and self.weight_drop:
            entry = torch.bool if kernel == "native" else dtype
            mask, scale = keep_mask(tuple(weight.shape), self.weight_drop, weight.device, entry)
        if kernel == "native":
            return self._native(x_TBI, state, mask, scale, dtype)
        weights = (self.weight_ih_l0, weight, self.bias_ih_l0, self.bias_hh_l0)
        apply = FusedLSTM.apply if kernel == "fused" else untraced(TritonLSTM.apply)
        out, *after = apply(x_TBI, *state, *weights, mask, scale, dtype, torch.is_grad_enabled())
        return out, tuple(after)

    def _native(
        self, x: Tensor, state: State, mask: Tensor | None, scale: float, dtype: torch.dtype
    ) -> tuple[Tensor, State]:
        weights: list[Tensor] = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        exact = self.weight_hh_l0.dtype
        if mask is not None:
            weights[1] = weights[1] * mask * scale  # a mask of bits: autograd keeps it, a quarter of one in fp32
        if x.is_cuda:
            # "ieee" bars not only fp32 from tensor cores but bf16 as well (ATen/cudnn/Descriptors.h).
            allowed = "ieee" if dtype == torch.float32 else "tf32"
            torch.backends.cudnn.rnn.fp32_precision = allowed  # type: ignore[attr-defined]  # PyTorch adds it on import
            weights = list(FlatWeights.apply(dtype, *weights))
        before = [s.unsqueeze(0).to(dtype) for s in state]
        hx = before if self.cell == "LSTM" else before[0]
        run = getattr(torch._VF, self.cell.lower())
        out, *after = run(x.to(dtype), hx, weights, True, 1, 0.0, self.training, False, False)
        return out.to(exact), tuple(s.squeeze(0).to(exact) for s in after)

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}"
        choices = f"kernel={self.kernel}, precision={self.precision}"
        return f"{self.cell}, {sizes}, weight_drop={self.weight_drop}, {choices}"
