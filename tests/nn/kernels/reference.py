"""An LSTM layer as its formulas read, and the error that rounding the operands of its products alone makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ["x", "h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
Layer = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A layer's arguments: those that get gradients, in the order of NAMES, and the mask with its scale."""

    arguments: list[Tensor]
    mask: Tensor | None
    scale: float

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another type, as leaves."""
        arguments = [argument.detach().to(dtype).requires_grad_() for argument in self.arguments]
        return Case(arguments, None if self.mask is None else self.mask.to(dtype), self.scale)


def draw_case(T: int, B: int, inputs: int, H: int, weight_drop: float = 0.0, device: str = "cpu") -> Case:
    """Random arguments of a usual size from a fixed seed, drawn on the CPU."""
    generator = torch.Generator().manual_seed(1)
    weights = [(4 * H, inputs), (4 * H, H), (4 * H,), (4 * H,)]
    tensors = [torch.randn(shape, generator=generator) for shape in ((T, B, inputs), (B, H), (B, H))]
    tensors += [(torch.rand(shape, generator=generator) * 2 - 1) * H**-0.5 for shape in weights]
    mask = (torch.rand(4 * H, H, generator=generator) >= weight_drop).float().to(device) if weight_drop else None
    return Case([tensor.to(device).requires_grad_() for tensor in tensors], mask, 1 / (1 - weight_drop))


def plain_lstm(x, h, c, w_ih, w_hh, b_ih, b_hh, mask, scale, linear=torch.nn.functional.linear):  # noqa: ANN001, ANN201
    """The formulas of Merity et al. 2018, sec. 2, one time step after the other."""
    if mask is not None:
        w_hh = w_hh * mask * scale
    out = []
    for x_t in x:
        i, f, g, o = (linear(x_t, w_ih) + linear(h, w_hh) + b_ih + b_hh).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out), h, c


def rounding(dtype: torch.dtype) -> Layer:
    """The plain layer in float64 with the operands of every product rounded to `dtype`, those of backward too."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):  # noqa: ANN001, ANN205
            ctx.save_for_backward(a, b)
            return a.to(dtype).double() @ b.to(dtype).double().t()

        @staticmethod
        def backward(ctx, grad):  # noqa: ANN001, ANN205
            a, b = (operand.to(dtype).double() for operand in ctx.saved_tensors)
            grad = grad.to(dtype).double()
            return grad @ b, grad.t() @ a

    return lambda *arguments: plain_lstm(*arguments, linear=Product.apply)


def results(layer: Layer, case: Case) -> dict[str, Tensor]:
    """Output, state, and every gradient of a loss that looks at all of them."""
    out, h, c = layer(*case.arguments, case.mask, case.scale)
    loss = out.pow(2).sum() + (out[1:] - out[:-1]).pow(2).sum() + (h * h.roll(1)).sum() + (c * c.roll(1)).sum()
    gradients = torch.autograd.grad(loss, case.arguments)
    return {"out": out, "h": h, "c": c} | dict(zip(NAMES, gradients, strict=True))


def largest_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any result, relative to the largest number of that result."""
    return max(((got[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items())


def beyond_rounding(layer: Layer, case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Each result's error in units of the error that rounding the operands to `dtype` makes.

    Operands are rounded once and results once more: sqrt(3) of the operands' error in the mean, so 3 is a bound. Where
    that error is 0 it counts as 1e-6 of the result, what the sums in fp32 may differ by.
    """
    exact = results(plain_lstm, case.to(torch.float64))
    inevitable = results(rounding(dtype), case.to(torch.float64))
    got = results(layer, case)
    return {
        name: ((got[name] - value).norm() / ((inevitable[name] - value).norm() + 1e-6 * value.norm())).item()
        for name, value in exact.items()
    }
