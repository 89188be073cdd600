"""The Triton softmax of the loss: in Triton's interpreter against closed forms in float64, and on a GPU."""

import pytest
import torch
import torch.nn.functional as F

import lm.nn.loss as loss_module
from lm.nn.loss import linear_cross_entropy

pytest.importorskip("triton", minversion="3.6")
from lm.nn.kernels.triton_loss import BLOCK, softmax_gradient_


def _expected(z, target):
    """Nats and their sum's gradient by z, in float64."""
    z = z.double().requires_grad_()
    nats = F.cross_entropy(z, target, reduction="none")
    return nats.detach(), torch.autograd.grad(nats.sum(), z)[0]


def _logits(rows, vocabulary, dtype, padding=0, scale=3.0, device="cpu"):
    """Random logits, alone and with padding, and targets that have the first and the last word."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, vocabulary, generator=generator).mul(scale).to(dtype)
    target = torch.randint(vocabulary, (rows,), generator=generator)
    target[0], target[-1] = 0, vocabulary - 1
    padded = torch.cat([z, torch.full((rows, padding), float("-inf"), dtype=dtype)], 1)
    return z.to(device), padded.to(device), target.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "padding"), [(1, 0), (5, 3), (BLOCK, 0), (BLOCK + 1, 7), (2 * BLOCK - 1, 1)])
def test_nats_and_gradient_are_those_of_the_formulas_and_padding_becomes_0(vocabulary, padding, dtype):
    z, padded, target = _logits(3, vocabulary, dtype, padding)
    nats = softmax_gradient_(padded, target)
    expected_nats, expected_dz = _expected(z, target)
    torch.testing.assert_close(nats.double(), expected_nats, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(padded[:, :vocabulary].double(), expected_dz, atol=torch.finfo(dtype).eps, rtol=1e-5)
    assert torch.equal(padded[:, vocabulary:], torch.zeros(3, padding, dtype=dtype))


def test_extreme_logits_stay_finite_and_exact():
    z = torch.tensor([[300.0, -300.0, 0.0], [300.0, -300.0, 0.0]])
    assert softmax_gradient_(z, torch.tensor([1, 0])).tolist() == [600.0, 0.0]
    assert z.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


def _loss_and_gradients(vocabulary=333, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    h, w, b = (torch.randn(shape, generator=generator) for shape in ((70, 24), (vocabulary, 24), (vocabulary,)))
    target = torch.randint(vocabulary, (70,), generator=generator).to(device)
    inputs = [tensor.to(device).requires_grad_() for tensor in (h, w / 24**0.5, b)]
    loss = linear_cross_entropy(*inputs, target, "bf16")
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("padding", [0, 3])
def test_the_loss_and_its_gradients_are_those_of_pytorchs_operators(padding, monkeypatch):
    expected = _loss_and_gradients()
    monkeypatch.setattr(loss_module, "_padding", lambda weight, dtype: padding)
    monkeypatch.setattr(loss_module, "triton_softmax", True)
    for got, value in zip(_loss_and_gradients(), expected, strict=True):
        assert got.shape == value.shape and got.dtype == torch.float32
        assert (got - value).norm() <= 2**-7 * value.norm()  # the interpreter rounds to bf16 towards 0


def test_a_padded_vocabulary_changes_nothing_but_the_order_of_sums(monkeypatch):
    expected = _loss_and_gradients()
    monkeypatch.setattr(loss_module, "_padding", lambda weight, dtype: 5)
    for got, value in zip(_loss_and_gradients(), expected, strict=True):
        assert got.shape == value.shape
        assert (got - value).norm() <= 2**-8 * value.norm()


def test_a_padded_vocabulary_is_cut_off_again_where_the_weights_have_the_type_of_the_products(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    h, w, b = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((6, 8), (30, 8), (30,)))
    case = h, w, b, torch.randint(30, (6,), generator=generator), torch.bfloat16
    expected = loss_module.nats_and_gradients(*case)
    monkeypatch.setattr(loss_module, "_padding", lambda weight, dtype: 2)
    for got, value in zip(loss_module.nats_and_gradients(*case), expected, strict=True):
        assert got.shape == value.shape
        assert (got - value).norm() <= 2**-6 * value.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [10_000, 33_278])
def test_on_a_gpu_it_is_that_of_pytorchs_operators_and_repeats_to_the_bit(vocabulary, monkeypatch):
    z, padded, target = _logits(300, vocabulary, torch.bfloat16, -vocabulary % 16, device="cuda")
    again = padded.clone()
    nats = softmax_gradient_(padded, target)
    expected_nats, expected_dz = _expected(z, target)
    torch.testing.assert_close(nats.double(), expected_nats, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(padded[:, :vocabulary].double(), expected_dz, atol=2**-8, rtol=2**-8)
    assert torch.equal(softmax_gradient_(again, target), nats) and torch.equal(again, padded)
    expected = _loss_and_gradients(vocabulary, "cuda")
    monkeypatch.setattr(loss_module, "triton_softmax", True)
    for got, value in zip(_loss_and_gradients(vocabulary, "cuda"), expected, strict=True):
        assert (got - value).norm() <= 2**-8 * value.norm()
