"""Which kernel computes a recurrent layer, and in which precision its matrix products are taken.

`native` is PyTorch's own layer (cuDNN on CUDA, oneDNN or a reference loop on CPU), `fused` is `lm.nn.kernels.fused`.
"""

from __future__ import annotations

import torch

from lm.base.device import has_native_bf16

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
