"""The fused decoder and cross entropy against F.cross_entropy, in every precision and chunking."""

import math

import pytest
import torch
import torch.nn.functional as F

import lm.nn.loss as loss_module
from lm.nn.loss import linear_cross_entropy, token_cross_entropy


def _problem(n=70, e=24, v=333, dtype=torch.float32, spread=1.0):
    gen = torch.Generator().manual_seed(0)
    h, w, b = (
        torch.randn(*s, generator=gen, dtype=dtype) * k
        for s, k in (((n, e), 1.0), ((v, e), spread / e**0.5), ((v,), 0.5))
    )
    return [t.requires_grad_() for t in (h, w, b)], torch.randint(v, (n,), generator=gen)


def _value_and_gradients(function, inputs):
    value = function()
    return [value, *torch.autograd.grad(value, inputs)]


def _relative(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


@pytest.mark.parametrize("chunk", [1, 333 * 32, 1 << 21])
@pytest.mark.parametrize("block", [1, 333 * 48, 1 << 25])
def test_fp32_loss_and_gradients_equal_the_plain_ones_for_any_chunking(monkeypatch, chunk, block):
    monkeypatch.setattr(loss_module, "_CACHED_LOGITS", chunk)
    monkeypatch.setattr(loss_module, "_block_logits", lambda weight: block)
    (h, w, b), target = _problem()
    ours = _value_and_gradients(lambda: linear_cross_entropy(h, w, b, target), (h, w, b))
    plain = _value_and_gradients(lambda: F.cross_entropy(F.linear(h, w, b), target), (h, w, b))
    assert max(map(_relative, ours, plain)) < 1e-5
    assert ours[0].shape == () and ours[0].dtype == torch.float32


def test_a_block_has_at_least_128_rows_in_fp32_however_large_the_vocabulary(monkeypatch):
    monkeypatch.setattr(loss_module, "_BLOCK_LOGITS_FP32", 333 * 130)

    def products(v):
        rows = []
        real = loss_module._nats_and_gradient_
        monkeypatch.setattr(loss_module, "_nats_and_gradient_", lambda z, *rest: rows.append(len(z)) or real(z, *rest))
        (h, w, b), target = _problem(n=300, v=v)
        linear_cross_entropy(h, w, b, target)
        monkeypatch.setattr(loss_module, "_nats_and_gradient_", real)
        return rows

    assert (products(333), products(3330)) == ([130, 130, 40], [128, 128, 44])


def test_bf16_error_is_that_of_rounding_operands_and_results_of_the_products():
    (h, w, b), target = _problem(n=400, v=2000)
    ours = _value_and_gradients(lambda: linear_cross_entropy(h, w, b, target, "bf16"), (h, w, b))
    plain = _value_and_gradients(lambda: F.cross_entropy(F.linear(h, w, b), target), (h, w, b))
    z = F.linear(h, w, b)
    bound = (2**-9 * z.abs() + 2**-8 * F.linear(h.abs(), w.abs(), b.abs())).max().item()
    assert abs(ours[0] - plain[0]).item() < min(2 * bound, 2e-3)
    for got, expected in zip(ours[1:], plain[1:], strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() / expected.norm() < 2**-7


def test_the_number_of_rows_taken_at_a_time_changes_no_bit_in_bf16_but_those_of_the_bias(monkeypatch):
    (h, w, b), target = _problem()
    results = []
    for logits in (1, 333 * 32, 1 << 20):
        monkeypatch.setattr(loss_module, "_CACHED_LOGITS", logits)
        results.append(_value_and_gradients(lambda: linear_cross_entropy(h, w, b, target, "bf16"), (h, w, b)))
    for other in results[:-1]:
        assert all(torch.equal(a, c) for a, c in zip(other[:3], results[-1][:3], strict=True))
        torch.testing.assert_close(other[3], results[-1][3])


def test_float64_passes_gradcheck():
    (h, w, b), target = _problem(n=5, e=3, v=7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: linear_cross_entropy(*t, target), (h, w, b))
    assert torch.autograd.gradcheck(lambda *t: 3 * linear_cross_entropy(*t, target, "bf16") ** 2, (h, w, b))


def test_extreme_logits_stay_finite_and_exact():
    h, w = torch.tensor([[1.0], [1.0]]), torch.tensor([[300.0], [-300.0], [0.0]])
    target = torch.tensor([1, 0])
    expected = F.cross_entropy(F.linear(h, w), target)
    assert (
        linear_cross_entropy(h, w, torch.zeros(3), target).item() == pytest.approx(expected.item(), rel=1e-6) == 300.0
    )


def test_evaluation_form_sums_nats_in_float64_and_builds_no_graph():
    (h, w, b), target = _problem(n=100)
    total = token_cross_entropy(h, w, b, target).sum(dtype=torch.float64)
    assert total.dtype == torch.float64 and total.shape == () and not total.requires_grad
    expected = F.cross_entropy(F.linear(h.double(), w.double(), b.double()), target, reduction="sum")
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert total.item() / 100 == pytest.approx(linear_cross_entropy(h, w, b, target).item(), rel=1e-6)


def test_uniform_logits_cost_log_v():
    zero = torch.zeros(10, 4)
    assert token_cross_entropy(
        zero, torch.zeros(50, 4), torch.zeros(50), torch.arange(10)
    ).sum().item() == pytest.approx(10 * math.log(50), rel=1e-6)


def test_gradient_is_scaled_by_the_gradient_that_comes_in():
    (h, w, b), target = _problem()
    once = torch.autograd.grad(linear_cross_entropy(h, w, b, target), (h, w, b))
    scaled = torch.autograd.grad(linear_cross_entropy(h, w, b, target) * -3.0, (h, w, b))
    for a, c in zip(once, scaled, strict=True):
        torch.testing.assert_close(-3 * a, c)


def test_no_gradient_work_without_grad():
    (h, w, b), target = _problem()
    with torch.no_grad():
        assert not linear_cross_entropy(h, w, b, target).requires_grad
    (grad,) = torch.autograd.grad(linear_cross_entropy(h, w.detach(), b.detach(), target), h)
    assert grad.shape == h.shape


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_inputs_give_the_same_bits(precision):
    (h, w, b), target = _problem(n=500)
    runs = [_value_and_gradients(lambda: linear_cross_entropy(h, w, b, target, precision), (h, w, b)) for _ in range(2)]
    assert all(torch.equal(a, c) for a, c in zip(*runs, strict=True))


def test_unknown_precision_is_refused():
    (h, w, b), target = _problem()
    with pytest.raises(ValueError, match="precision"):
        linear_cross_entropy(h, w, b, target, "fp16")
