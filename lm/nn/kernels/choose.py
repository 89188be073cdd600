"""Which kernel computes a recurrent layer, and in which precision its matrix products are taken.

`native` is PyTorch's own layer (cuDNN on CUDA, oneDNN or a reference loop on CPU), for a QRNN `lm.nn.kernels.qrnn`;
`fused` is `lm.nn.kernels.fused`, and `triton` is `lm.nn.kernels.triton_lstm` or `lm.nn.kernels.triton_qrnn`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from lm.base.device import has_native_bf16
from lm.base.errors import ConfigError
from lm.config.bounds import choices
from lm.config.schema import KERNEL_CELLS, ComputeConfig
from lm.nn.kernels.triton_lstm import available

_KERNELS = choices(ComputeConfig, "kernel")
# A layer's are decided: `auto` has become one of them.
_PRECISIONS = tuple(name for name in choices(ComputeConfig, "precision") if name != "auto")
# Units from which the fused kernel is the faster one, see `choose_kernel`.
_FUSED_FROM_UNITS = 300
# The fewest units of a layer for which the Triton kernel was measured on a GPU.
_TRITON_FROM_UNITS = 400


def check_names(kernel: str, cell: str, precision: str) -> None:
    """Raise ValueError for an unknown name, and for a kernel that is not for the cell."""
    if kernel not in _KERNELS or precision not in _PRECISIONS:
        raise ValueError(
            f"kernel must be {'|'.join(_KERNELS)} and precision {'|'.join(_PRECISIONS)}, got {kernel!r}, {precision!r}"
        )
    cells = KERNEL_CELLS.get(kernel)
    if cells and cell not in cells:
        raise ValueError(f"kernel={kernel!r} is for {' and '.join(cells)} layers, not {cell}")


def check_device(kernel: str, device: torch.device) -> None:
    """Raise ConfigError, naming the flag, where a kernel that is asked for cannot run on the device."""
    if kernel == "fused" and device.type != "cpu":
        raise ConfigError("--kernel: the fused kernel is for CPUs; use auto or native, or --device cpu")
    if kernel == "triton" and not available(device):
        raise ConfigError(
            "--kernel: the Triton kernels need a CUDA device, triton >= 3.6 and gcc or clang; use auto or native"
        )


def choose_kernel(
    kernel: str, cell: str, precision: str, device: torch.device, dtype: torch.dtype, hidden_size: int
) -> tuple[str, torch.dtype]:
    """Return ("native" | "fused" | "triton", dtype of the products) for a layer whose weights are `dtype` on `device`.

    "auto" takes the fused kernel for an LSTM in bf16 on a CPU with native bf16 from 300 units on, the Triton kernel for
    one in bf16 on CUDA from 400 units on where it can run, else the native one (cuDNN on CUDA, oneDNN or the reference
    loop on CPU). Two to four full-size runs that share an H200 take 55 to 67 % as long a step with Triton as with cuDNN
    (results/speed/gpu-lstm.md); a run alone has not been measured.
    On CPU, forward + backward of one layer, fp32 native / fp32 fused / bf16 fused, in ms on 2 cores: 200 units (T 35,
    B 20) 5.2/9.8/7.0; 300 9.5/15/9.6; 650 39/48/31; 1150 (T 70) 256/254/138; 1150 (T 70, B 80) 899/958/537. So fp32 is
    fused only where it is asked for. bf16 without a fast bf16 kernel (native on CPU) becomes fp32: faster there, and
    more exact.

    A QRNN's native kernel is `lm.nn.kernels.qrnn`, on all devices, with a product in bf16 where the hardware has it.

    "triton" is for bf16 on CUDA. An LSTM's fp32 there, as in evaluation, stays with cuDNN: tensor cores do not take
    fp32. A QRNN's kernels have no products, and run in fp32 too; "auto" leaves them, which no GPU has measured, alone.
    On CPU Triton's interpreter computes in fp32.

    Raises ValueError for an unknown name and a kernel that is not for the cell; ConfigError for one not for the device;
    RuntimeError for "triton" within `torch.export`, which would have to trace its launches. `torch.compile` leaves the
    layer as it is: `untraced`.
    """
    check_names(kernel, cell, precision)
    check_device(kernel, device)
    can_fuse = cell == "LSTM" and device.type == "cpu"
    on_cuda = device.type == "cuda"
    bf16 = precision == "bf16" and dtype == torch.float32
    if kernel == "auto" and cell == "LSTM" and bf16 and on_cuda and hidden_size >= _TRITON_FROM_UNITS:
        # torch.compile cannot trace a loop of launches, and on AMD's GPUs the kernels were never tried.
        tried = not torch.compiler.is_compiling() and torch.version.hip is None
        kernel = "triton" if tried and available(device) else "native"
    if kernel == "triton" and dtype == torch.float32 and (bf16 or cell == "QRNN" or not on_cuda):
        if torch.compiler.is_compiling():
            raise RuntimeError('the Triton kernels are launched in a loop, which cannot be traced; use kernel="native"')
        return "triton", torch.bfloat16 if on_cuda and bf16 else dtype
    fused = kernel == "fused" or (
        kernel == "auto" and can_fuse and bf16 and hidden_size >= _FUSED_FROM_UNITS and has_native_bf16()
    )
    has_bf16 = fused or on_cuda or (cell == "QRNN" and has_native_bf16())
    return ("fused" if fused else "native"), (torch.bfloat16 if bf16 and has_bf16 else dtype)


def untraced(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` of a function whose kernels are launched in a loop, called in plain Python under `torch.compile`, too."""
    # Without the condition every command would load the compiler.
    return torch.compiler.disable(apply) if "torch._dynamo" in sys.modules else apply
