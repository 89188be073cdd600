"""The QRNN layer against its formulas, read one step at a time, and what the model makes of it."""

import pytest
import torch

import lm.nn.kernels.choose as choose_module
from lm.base.errors import ConfigError
from lm.config.values import make_config
from lm.nn.dropout import keep_mask
from lm.nn.kernels.choose import choose_kernel
from lm.nn.model import AWDLSTM, count_parameters
from lm.nn.qrnn import WeightDropQRNN
from lm.nn.regularization import regularization_terms
from tests.nn.test_model import NO_DROPOUT, B, V, batch, tiny

T = 9


def drawn(window=2, dtype=torch.float64, sizes=(T, B, 5, 7), **options):
    """A layer with an input and a state, all from fixed seeds."""
    torch.manual_seed(0)
    steps, columns, inputs, units = sizes
    layer = WeightDropQRNN(inputs, units, window, **options).to(dtype)
    x = torch.randn(steps, columns, inputs, dtype=dtype, requires_grad=True)
    return layer, x, tuple(torch.randn_like(part).requires_grad_() for part in layer.initial_state(columns))


def plain(weight, bias, x, state, zone=None, k=1.0):
    """Output and state by the formulas of Bradbury et al. 2016, sec. 2, one step after the other."""
    c, before = state[0], state[-1]
    out = []
    for t, x_t in enumerate(x):
        seen = torch.cat([x_t, before], 1) if len(state) == 2 else x_t
        z, f, o = (seen @ weight.t() + bias).chunk(3, 1)
        f = f.sigmoid() * k if zone is None else f.sigmoid() * zone[t]
        c = f * z.tanh() + (1 - f) * c
        out.append(o.sigmoid() * c)
        before = x_t
    return torch.stack(out), (c, before)[: len(state)]


def results(outcome, *leaves):
    """Output, state and the gradients of a loss that looks at all of them."""
    out, state = outcome
    loss = out.pow(2).sum() + (out[1:] - out[:-1]).pow(2).sum() + sum((s * s.roll(1)).sum() for s in state)
    return out, *state, *torch.autograd.grad(loss, leaves)


def error(got, expected):
    """The largest difference, relative to the largest number of the same tensor."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_output_state_and_every_gradient_equal_a_plain_loop_in_float64(window, dtype, tolerance):
    layer, x, state = drawn(window, dtype)
    got = results(layer(x, state), x, *state, *layer.parameters())
    leaves = [value.detach().double().requires_grad_() for value in (x, *state, *layer.parameters())]
    weight, bias = leaves[-2:]
    expected = results(plain(weight, bias, leaves[0], leaves[1:-2]), *leaves)
    assert error(got, expected) < tolerance
    assert {value.dtype for value in got} == {dtype}


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_passes_with_masks_and_zoneout_in_training_and_in_evaluation(window, training):
    layer, x, state = drawn(window, sizes=(3, 2, 2, 3), weight_drop=0.5, zoneout=0.3)
    layer.train(training)
    names = [name for name, _ in layer.named_parameters()]

    def function(weight, bias, x, *state):
        torch.manual_seed(1)
        values = dict(zip(names, (weight, bias), strict=True))
        out, after = torch.func.functional_call(layer, values, (x, state))
        return out, *after

    assert torch.autograd.gradcheck(function, (*layer.parameters(), x, *state))


def test_one_weight_mask_holds_for_the_whole_window_and_its_gradient_reaches_the_raw_weight():
    layer, x, state = drawn(weight_drop=0.4)
    torch.manual_seed(2)
    got = results(layer(x, state), layer.linear.weight)
    torch.manual_seed(2)
    mask, scale = keep_mask(tuple(layer.linear.weight.shape), 0.4, "cpu", torch.float64)
    expected = results(plain(layer.linear.weight * mask * scale, layer.linear.bias, x, state), layer.linear.weight)
    assert error(got, expected) < 1e-12
    assert not got[-1][mask == 0].any()
    assert not torch.equal(layer(x, state)[0], got[0])  # the next window has another mask


def test_zoneout_holds_units_in_training_and_scales_the_forget_gate_in_evaluation():
    layer, x, state = drawn(zoneout=0.25)
    parameters = (layer.linear.weight, layer.linear.bias)
    torch.manual_seed(3)
    got = results(layer(x, state), *parameters)
    torch.manual_seed(3)
    zone, _ = keep_mask((T, B, 7), 0.25, "cpu", torch.float64)
    assert 0 < (zone == 0).double().mean() < 0.5
    assert error(got, results(plain(*parameters, x, state, zone), *parameters)) < 1e-12
    got = results(layer.eval()(x, state), *parameters)
    assert error(got, results(plain(*parameters, x, state, k=0.75), *parameters)) < 1e-12


def test_a_state_that_is_held_throughout_does_not_move_by_a_bit():
    layer, x, state = drawn(zoneout=0.9999)
    assert torch.equal(layer(x, state)[1][0], state[0])


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("cut", [1, 4, T - 1])
def test_one_window_equals_two_with_the_state_carried(window, cut):
    layer, x, state = drawn(window)
    whole, after = layer(x, state)
    first, carried = layer(x[:cut], state)
    second, last = layer(x[cut:], carried)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, after)


def test_a_window_of_two_sees_the_word_before_across_windows_and_nothing_before_the_first():
    layer, x, _ = drawn()
    out, (c, last) = layer(x, layer.initial_state(B))
    assert torch.equal(last, x[-1])
    forgotten = layer(x[:1], (c, torch.zeros_like(last)))[0]
    assert not torch.allclose(layer(x[:1], (c, last))[0], forgotten)
    torch.testing.assert_close(out[:1], layer(x[:1], (torch.zeros_like(c), torch.zeros_like(last)))[0])


def test_extreme_gates_and_long_windows_stay_finite_and_exact():
    layer, x, state = drawn(1, torch.float32)
    with torch.no_grad():
        layer.linear.weight.mul_(1000)  # gates of exactly 0 and 1: what divides by products of 1 - f fails here
    got = results(layer(x, state), x, *state)
    assert all(value.isfinite().all() for value in got)
    leaves = [value.detach().double().requires_grad_() for value in (x, *state)]
    weight, bias = (value.detach().double() for value in layer.parameters())
    assert error(got[:2], results(plain(weight, bias, leaves[0], leaves[1:]), *leaves)[:2]) < 1e-5


def test_bf16_products_are_close_where_the_hardware_has_them_and_fp32_elsewhere(monkeypatch):
    layer, x, state = drawn(dtype=torch.float32)
    exact = results(layer(x, state), x, *layer.parameters())
    layer.precision = "bf16"
    monkeypatch.setattr(choose_module, "has_native_bf16", lambda: False)
    assert torch.equal(layer(x, state)[0], exact[0])
    monkeypatch.setattr(choose_module, "has_native_bf16", lambda: True)
    rounded = results(layer(x, state), x, *layer.parameters())
    assert 1e-5 < error(rounded, exact) < 0.05
    assert {value.dtype for value in rounded} == {torch.float32}


def test_kernel_choice_and_refusals(monkeypatch):
    fp32, bf16, cpu, cuda = torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(choose_module, "available", lambda device: True)
    assert choose_kernel("auto", "QRNN", "bf16", cuda, fp32, 1150) == ("native", bf16)
    assert choose_kernel("triton", "QRNN", "bf16", cuda, fp32, 1150) == ("triton", bf16)
    assert choose_kernel("triton", "QRNN", "fp32", cuda, fp32, 1150) == ("triton", fp32)
    assert choose_kernel("triton", "QRNN", "bf16", cpu, fp32, 1150) == ("triton", fp32)
    with pytest.raises(ValueError, match="fused"):
        WeightDropQRNN(2, 2, kernel="fused")
    with pytest.raises(ValueError, match="window"):
        WeightDropQRNN(2, 2, window=3)
    with pytest.raises(ConfigError, match="--kernel: fused is for LSTM"):
        make_config(model="QRNN", kernel="fused")
    with pytest.raises(ConfigError, match="--zoneout"):
        make_config(zoneout=0.1)


def test_the_model_has_the_windows_widths_and_names_of_awd_lstm_lm():
    model = AWDLSTM(V, tiny(model="QRNN"))
    assert [(rnn.window, rnn.input_size, rnn.hidden_size) for rnn in model.rnns] == [
        (2, 8, 12),
        (1, 12, 12),
        (1, 12, 8),
    ]
    names = {f"rnns.{layer}.linear.{name}" for layer in range(3) for name in ("weight", "bias")}
    assert names | {"encoder.weight", "decoder.weight", "decoder.bias"} == set(model.state_dict())
    assert [[tuple(part.shape) for part in layer] for layer in model.initial_state(B)] == [
        [(B, 12), (B, 8)], [(B, 12)], [(B, 8)]
    ]  # fmt: skip
    with torch.device("meta"):  # weights and biases, written out
        layers = sum(3 * h * (i + 1) for i, h in ((800, 1550), (1550, 1550), (1550, 1550), (1550, 400)))
        assert count_parameters(AWDLSTM(10_000, make_config("awd-qrnn", "ptb"))) == 10_000 * 401 + layers


def test_without_dropout_training_computes_and_differentiates_what_evaluation_does():
    model = AWDLSTM(V, tiny(model="QRNN", zoneout=0.3))
    tokens, targets = batch()
    copy = model.without_dropout()
    model.eval()
    for output, owner in ((model(tokens, model.initial_state(B)), model), (copy(tokens, copy.initial_state(B)), copy)):
        owner.loss(output, targets).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


def test_ar_and_tar_cover_the_last_output_and_their_gradients_reach_every_layer():
    model = AWDLSTM(V, tiny(model="QRNN", **NO_DROPOUT))
    output = model(batch()[0], model.initial_state(B))
    terms = regularization_terms(output.raw, output.after_dropout, 2.0, 1.0)
    expected = 2 * output.raw[-1].pow(2).mean() + (output.raw[-1][1:] - output.raw[-1][:-1]).pow(2).mean()
    torch.testing.assert_close(terms["ar"] + terms["tar"], expected)
    sum(terms.values()).backward()
    assert all(rnn.linear.weight.grad.any() and rnn.linear.bias.grad.any() for rnn in model.rnns)
