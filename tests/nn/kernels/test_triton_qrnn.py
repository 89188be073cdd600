"""The Triton QRNN: on CPU in Triton's interpreter against the loop in PyTorch, and on a GPU.

`tests/nn/kernels/test_triton.py` compiles its kernels for an H100.
"""

import pytest
import torch

import lm.nn.kernels.choose as choose_module
from lm.base.errors import ConfigError
from lm.nn.kernels.qrnn import QRNNFunction
from lm.nn.qrnn import WeightDropQRNN
from tests.conftest import TINY

pytest.importorskip("triton", minversion="3.6")


def outcome(kernel, H, B, T, dtype=torch.float32, device="cpu", k=1.0, zoneout=0.0):
    """Output, state and every gradient, of a loss that looks at all of them."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((T, B, 6), (B, H), (3 * H, 6), (3 * H,))
    arguments = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    zone = (torch.rand(T, B, H, generator=generator) < zoneout).to(device) if zoneout else None
    out, c = QRNNFunction.apply(*arguments, None, 1.0, zone, k, dtype, True, kernel)
    loss = out.pow(2).sum() + (out[1:] - out[:-1]).pow(2).sum() + (c * c.roll(1)).sum()
    return [out, c, *torch.autograd.grad(loss, arguments)]


def error(got, expected):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("options", [{}, {"k": 0.7}, {"zoneout": 0.3}])
@pytest.mark.parametrize(("H", "B", "T"), [(1, 1, 1), (130, 3, 1), (5, 2, 4), (128, 1, 3)])
def test_output_state_and_every_gradient_equal_the_loop_in_pytorch(H, B, T, options):
    assert error(outcome("triton", H, B, T, **options), outcome("native", H, B, T, **options)) < 1e-5


def test_products_in_fp16_round_no_more_than_the_loop_in_pytorch_does():
    exact = outcome("native", 20, 3, 4)
    half = [error(outcome(kernel, 20, 3, 4, torch.float16), exact) for kernel in ("triton", "native")]
    assert 1e-6 < half[0] < 2 * half[1]


def test_a_layer_on_triton_draws_the_masks_that_others_draw_and_computes_the_same():
    found = []
    for kernel in ("triton", "native"):
        torch.manual_seed(0)
        layer = WeightDropQRNN(3, 5, 2, weight_drop=0.5, zoneout=0.3, kernel=kernel)
        out, state = layer(torch.randn(3, 2, 3), layer.initial_state(2))
        found.append([out, *state, *torch.autograd.grad(out.pow(2).sum() + state[0].sum(), list(layer.parameters()))])
    assert error(*found) < 1e-5


def test_training_is_refused_where_triton_cannot_run(train_here, small_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match="--kernel"):
        train_here("--data", small_dir, *TINY, "--model=QRNN", "--kernel=triton", "--device=cpu", "--out-dir", tmp_path)


def test_float64_takes_the_loop_in_pytorch(monkeypatch):
    monkeypatch.setattr(choose_module, "available", lambda device: True)
    layer = WeightDropQRNN(3, 4, kernel="triton").double()
    out, _ = layer(torch.randn(2, 1, 3, dtype=torch.float64), layer.initial_state(1))
    assert out.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize(("H", "B", "T"), [(1, 1, 1), (17, 33, 3), (1550, 20, 70)])
def test_a_gpu_equals_the_loop_in_pytorch_in_fp32_and_bf16(H, B, T):
    exact = outcome("native", H, B, T, device="cuda")
    assert error(outcome("triton", H, B, T, device="cuda"), exact) < 1e-5
    half = [error(outcome(kernel, H, B, T, torch.bfloat16, "cuda"), exact) for kernel in ("triton", "native")]
    assert half[0] < 2 * half[1] + 1e-6
