"""WeightDropLSTM: every kernel against torch's own layers, and what DropConnect promises."""

import copy
import warnings

import pytest
import torch
from torch import nn

import lm.nn.kernels.choose as choose_module
from lm.base.device import pick_device
from lm.base.errors import ConfigError
from lm.nn.dropout import keep_mask
from lm.nn.kernels.choose import choose_kernel
from lm.nn.lstm import WeightDropLSTM
from lm.nn.products import pack_linear, product, transposed, transposed_product

CPU = torch.device("cpu")
NAMES = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


def _layer(cell="LSTM", weight_drop=0.0, kernel="auto", precision="fp32", size=(24, 40), dtype=torch.float32):
    torch.manual_seed(0)
    return WeightDropLSTM(cell, *size, weight_drop, kernel, precision).to(dtype)


def _window(layer, T=9, B=5):
    torch.manual_seed(1)
    weight = layer.weight_hh_l0
    x = torch.randn(T, B, layer.input_size, dtype=weight.dtype, requires_grad=True)
    count = 2 if layer.cell == "LSTM" else 1
    return x, tuple(torch.randn(B, layer.hidden_size, dtype=weight.dtype, requires_grad=True) for _ in range(count))


def _plain(layer, weight_hh=None):
    """The torch layer with the same parameters, its recurrent weight replaced by `weight_hh`."""
    kinds = {"LSTM": nn.LSTM, "GRU": nn.GRU}
    if layer.cell in kinds:
        plain = kinds[layer.cell](layer.input_size, layer.hidden_size)
    else:
        plain = nn.RNN(layer.input_size, layer.hidden_size, nonlinearity=layer.cell[4:].lower())
    plain = plain.to(layer.weight_hh_l0.dtype)
    plain.load_state_dict({name: getattr(layer, name).detach() for name in NAMES})
    if weight_hh is not None:
        plain.weight_hh_l0.data.copy_(weight_hh)
    return plain


def _results(layer, x, state, loss=None):
    """Output, state and all gradients of a loss that looks at all of them."""
    if isinstance(layer, WeightDropLSTM):
        out, state_out = layer(x, state)
    else:
        hx = tuple(s.unsqueeze(0) for s in state)
        out, state_out = layer(x, hx if len(hx) == 2 else hx[0])
        state_out = tuple(s.squeeze(0) for s in (state_out if len(hx) == 2 else (state_out,)))
    value = out.pow(2).mean() + (out[1:] - out[:-1]).pow(2).sum() + sum((s * s.roll(1)).sum() for s in state_out)
    grads = torch.autograd.grad(value, [x, *state, *layer.parameters()])
    return {
        "out": out,
        "state": torch.cat(state_out),
        **dict(zip(["x", *map(str, range(len(state))), *NAMES], grads, strict=True)),
    }


def _error(got, expected):
    return max(((got[k] - expected[k]).abs().max() / expected[k].abs().max()).item() for k in expected)


def _mask_of(layer, seed=3, device="cpu"):
    """The mask that a training forward draws after `seed`, and its scale."""
    torch.manual_seed(seed)
    return keep_mask(tuple(layer.weight_hh_l0.shape), layer.weight_drop, device)


@pytest.mark.parametrize("T", [1, 2, 9])
@pytest.mark.parametrize("B", [1, 5])
@pytest.mark.parametrize("kernel", ["native", "fused"])
def test_fp32_output_state_and_every_gradient_equal_nn_lstm_with_the_dropped_weight(kernel, T, B):
    layer = _layer(weight_drop=0.5, kernel=kernel)
    x, state = _window(layer, T, B)
    mask, scale = _mask_of(layer)
    expected = _results(_plain(layer, layer.weight_hh_l0 * mask * scale), x, state)
    expected["weight_hh_l0"] = expected["weight_hh_l0"] * mask * scale
    torch.manual_seed(3)
    assert _error(_results(layer, x, state), expected) < 1e-5


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"])
def test_native_eval_is_bitwise_the_plain_layer_whatever_the_weight_drop(cell):
    layer = _layer(cell, weight_drop=0.5, kernel="native").eval()
    x, state = _window(layer)
    got, expected = _results(layer, x, state), _results(_plain(layer).eval(), x, state)
    assert all(torch.equal(got[k], expected[k]) for k in expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_eval_is_bitwise_the_layer_without_weight_drop(precision):
    layer = _layer(weight_drop=0.5, kernel="fused", precision=precision).eval()
    x, state = _window(layer)
    got, expected = _results(layer, x, state), _results(_layer(kernel="fused", precision=precision), x, state)
    assert all(torch.equal(got[k], expected[k]) for k in expected)


def _round_products(function):
    """Run with the operands of every product rounded to bf16 and all else in float64: the error bf16 cannot avoid."""

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a.bfloat16().double() @ b.bfloat16().double().t()

        @staticmethod
        def backward(ctx, grad):
            a, b = (t.bfloat16().double() for t in ctx.saved_tensors)
            grad = grad.bfloat16().double()
            return grad @ b, grad.t() @ a

    return function(Rounded.apply)


def _reference_lstm(layer, x, state, linear):
    h, c = state
    out = []
    for x_t in x:
        z = linear(x_t, layer.weight_ih_l0) + linear(h, layer.weight_hh_l0) + layer.bias_ih_l0 + layer.bias_hh_l0
        i, f, g, o = z.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out), (h, c)


def test_bf16_errors_stay_within_three_times_those_of_rounding_the_operands_of_the_products():
    """Operands are rounded once and results once more: per product sqrt(3) of the operands' error in the mean."""
    layer = _layer(kernel="fused", precision="bf16", size=(64, 96))
    x, state = _window(layer, T=30, B=8)
    exact = copy.deepcopy(layer).double()
    exact.kernel = "native"
    x64, state64 = x.detach().double().requires_grad_(), tuple(s.detach().double().requires_grad_() for s in state)

    class Reference(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.layer, self.linear = exact, linear

        def forward(self, x, hx):
            out, s = _reference_lstm(self.layer, x, tuple(v.squeeze(0) for v in hx), self.linear)
            return out, tuple(v.unsqueeze(0) for v in s)

    expected = _results(exact, x64, state64)
    plain = _results(Reference(nn.functional.linear), x64, state64)
    assert _error(plain, expected) < 1e-10
    rounded = _round_products(lambda linear: _results(Reference(linear), x64, state64))
    got = _results(layer, x, state)
    for name, exact_value in expected.items():
        inevitable = (rounded[name] - exact_value).norm()
        assert (got[name] - exact_value).norm() < 3 * inevitable + 1e-6 * exact_value.norm(), name


@pytest.mark.parametrize("mask", [False, True])
def test_float64_passes_gradcheck(mask):
    layer = _layer(weight_drop=0.5 if mask else 0.0, kernel="fused", size=(3, 4), dtype=torch.float64)
    x, state = _window(layer, T=4, B=2)

    def run(x, h, c, *weights):
        torch.manual_seed(3)  # one mask in all evaluations
        out, state = torch.func.functional_call(layer, dict(zip(NAMES, weights, strict=True)), (x, (h, c)))
        return out, *state

    assert torch.autograd.gradcheck(run, (x, *state, *layer.parameters()))


@pytest.mark.parametrize("kernel", ["native", "fused"])
def test_raw_weight_gets_the_masked_gradient_and_stays_as_it_was(kernel):
    layer = _layer(weight_drop=0.5, kernel=kernel)
    before = layer.weight_hh_l0.detach().clone()
    mask, _ = _mask_of(layer)
    torch.manual_seed(3)
    layer(*_window_seeded(layer, 3))[0].sum().backward()
    assert layer.weight_hh_l0.grad[mask == 0].eq(0).all()
    assert layer.weight_hh_l0.grad[mask == 1].ne(0).all()
    assert torch.equal(layer.weight_hh_l0, before)


def _window_seeded(layer, seed):
    window = _window(layer)
    torch.manual_seed(seed)
    return window


@pytest.mark.parametrize("kernel", ["native", "fused"])
def test_one_mask_is_drawn_per_forward_in_training_and_none_in_eval(kernel):
    layer = _layer(weight_drop=0.5, kernel=kernel)
    x, state = _window(layer)
    for _ in range(2):  # whatever came before
        _mask_of(layer)
        after_one_mask = torch.get_rng_state()
        torch.manual_seed(3)
        first = layer.train()(x, state)[0]
        assert torch.equal(torch.get_rng_state(), after_one_mask)
        assert not torch.equal(layer(x, state)[0], first)
        layer.eval()
        before = torch.get_rng_state()
        assert torch.equal(layer(x, state)[0], layer(x, state)[0])
        assert torch.equal(torch.get_rng_state(), before)


def test_all_kernels_see_the_same_mask_for_the_same_seed():
    outs = []
    for kernel, precision in (("native", "fp32"), ("fused", "fp32"), ("fused", "bf16")):
        layer = _layer(weight_drop=0.5, kernel=kernel, precision=precision)
        outs.append(layer(*_window_seeded(layer, 3))[0])
    torch.testing.assert_close(outs[1], outs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(outs[2], outs[0], atol=2e-2, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_and_threads_give_the_same_bits(precision, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        layer = _layer(weight_drop=0.5, kernel="fused", precision=precision, size=(100, 150))
        runs = [_results(layer, *_window_seeded(layer, 3)) for _ in range(2)]
        assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("missing", ["_reorder_linear_weight", "_linear_pointwise", "refused"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_missing_or_failing_private_operator_costs_only_speed(monkeypatch, missing, precision):
    layer = _layer(weight_drop=0.5, kernel="fused", precision=precision)
    expected = _results(layer, *_window_seeded(layer, 3))

    def refuse(*args):
        raise RuntimeError("not on this CPU")

    class Operators:
        def __getattr__(self, name):
            if name == missing:
                raise AttributeError(name)
            return refuse if missing == "refused" and name.startswith("_reorder") else getattr(original, name)

    original = torch.ops.mkldnn
    monkeypatch.setattr(torch.ops, "mkldnn", Operators())
    got = _results(layer, *_window_seeded(layer, 3))
    assert _error(got, expected) < (1e-5 if precision == "fp32" else 3e-2)


def test_packed_and_plain_products_agree(monkeypatch):
    torch.manual_seed(0)
    weight, x, add, bias = torch.randn(1100, 33), torch.randn(7, 33), torch.randn(7, 1100), torch.randn(1100)
    linear = pack_linear(weight)
    torch.testing.assert_close(linear(x, bias), x @ weight.t() + bias, atol=1e-4, rtol=0)
    torch.testing.assert_close(linear(x, None, add), x @ weight.t() + add, atol=1e-4, rtol=0)
    assert torch.equal(transposed(weight), weight.t()) and transposed(weight).is_contiguous()
    torch.testing.assert_close(product(x, weight.t().contiguous()), x @ weight.t(), atol=1e-4, rtol=0)
    torch.testing.assert_close(transposed_product(x, add), x.t() @ add, atol=1e-4, rtol=0)


def test_kernel_choice(monkeypatch):
    fp32, bf16, fp64, cuda = torch.float32, torch.bfloat16, torch.float64, torch.device("cuda")
    monkeypatch.setattr(choose_module, "has_native_bf16", lambda: True)
    assert choose_kernel("auto", "LSTM", "bf16", CPU, fp32, 1150) == ("fused", bf16)
    assert choose_kernel("auto", "LSTM", "bf16", CPU, fp32, 200) == ("native", fp32)
    assert choose_kernel("auto", "LSTM", "fp32", CPU, fp32, 1150) == ("native", fp32)
    assert choose_kernel("fused", "LSTM", "fp32", CPU, fp32, 200) == ("fused", fp32)
    assert choose_kernel("auto", "LSTM", "bf16", CPU, fp64, 1150) == ("native", fp64)
    assert choose_kernel("fused", "LSTM", "bf16", CPU, fp64, 1150) == ("fused", fp64)
    assert choose_kernel("native", "LSTM", "bf16", CPU, fp32, 1150) == ("native", fp32)
    assert choose_kernel("auto", "GRU", "bf16", CPU, fp32, 1150) == ("native", fp32)
    assert choose_kernel("auto", "RNN_TANH", "fp32", cuda, fp32, 1150) == ("native", fp32)
    monkeypatch.setattr(choose_module, "has_native_bf16", lambda: False)
    assert choose_kernel("auto", "LSTM", "bf16", CPU, fp32, 1150) == ("native", fp32)
    assert choose_kernel("fused", "LSTM", "bf16", CPU, fp32, 1150) == ("fused", bf16)
    monkeypatch.setattr(choose_module, "available", lambda device: False)
    assert choose_kernel("auto", "LSTM", "bf16", cuda, fp32, 1150) == ("native", bf16)
    monkeypatch.setattr(choose_module, "available", lambda device: True)
    assert choose_kernel("auto", "LSTM", "bf16", cuda, fp32, 1150) == ("triton", bf16)
    assert choose_kernel("auto", "LSTM", "bf16", cuda, fp32, 200) == ("native", bf16)
    assert choose_kernel("auto", "LSTM", "fp32", cuda, fp32, 1150) == ("native", fp32)
    assert choose_kernel("auto", "QRNN", "bf16", cuda, fp32, 1150) == ("native", bf16)
    for owner, name, value in ((torch.compiler, "is_compiling", lambda: True), (torch.version, "hip", "7.0")):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(owner, name, value)
            assert choose_kernel("auto", "LSTM", "bf16", cuda, fp32, 1150) == ("native", bf16)
    assert choose_kernel("triton", "LSTM", "bf16", cuda, fp32, 1150) == ("triton", bf16)
    assert choose_kernel("triton", "LSTM", "fp32", cuda, fp32, 1150) == ("native", fp32)
    assert choose_kernel("triton", "LSTM", "bf16", CPU, fp32, 1150) == ("triton", fp32)
    assert choose_kernel("triton", "LSTM", "bf16", cuda, fp64, 1150) == ("native", fp64)


def test_impossible_requests_are_refused(monkeypatch):
    unknown = [("turbo", "LSTM", "fp32"), ("auto", "LSTM", "fp16")]
    for request in (*unknown, ("fused", "GRU", "fp32"), ("triton", "GRU", "fp32")):
        with pytest.raises(ValueError, match="kernel"):
            choose_kernel(*request, CPU, torch.float32, 8)
    with pytest.raises(ConfigError, match="fused"):
        choose_kernel("fused", "LSTM", "fp32", torch.device("cuda"), torch.float32, 8)
    monkeypatch.setattr(choose_module, "available", lambda device: False)
    with pytest.raises(ConfigError, match="Triton"):
        choose_kernel("triton", "LSTM", "bf16", CPU, torch.float32, 8)
    with pytest.raises(ValueError, match="cell"):
        WeightDropLSTM("QRNN", 2, 2)
    with pytest.raises(ValueError, match="dropout"):
        WeightDropLSTM("LSTM", 2, 2, weight_drop=1.0)


def test_auto_takes_the_fused_kernel_for_bf16_and_is_bitwise_the_plain_layer_in_fp32_evaluation(monkeypatch):
    monkeypatch.setattr(choose_module, "has_native_bf16", lambda: True)
    layer = _layer(weight_drop=0.5, precision="bf16", size=(20, 300))
    fused = _layer(weight_drop=0.5, precision="bf16", size=(20, 300), kernel="fused")
    assert torch.equal(layer(*_window_seeded(layer, 3))[0], fused(*_window_seeded(fused, 3))[0])
    layer.precision = "fp32"
    got, expected = (_results(m, *_window(layer)) for m in (layer.eval(), _plain(layer)))
    assert all(torch.equal(got[k], expected[k]) for k in expected)


def test_layer_works_without_native_bf16(monkeypatch):
    monkeypatch.setattr(choose_module, "has_native_bf16", lambda: False)
    layer = _layer(weight_drop=0.5, precision="bf16", size=(20, 300))
    exact = _layer(weight_drop=0.5, size=(20, 300))
    assert torch.equal(layer(*_window_seeded(layer, 3))[0], exact(*_window_seeded(exact, 3))[0])


def test_parameters_have_the_names_shapes_and_range_of_torch():
    for cell in ("LSTM", "GRU", "RNN_TANH"):
        layer = _layer(cell)
        plain = _plain(layer)
        assert {n: p.shape for n, p in layer.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
        assert all(p.abs().max() <= 40**-0.5 and p.std() > 0.4 * 40**-0.5 for p in layer.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepcopy_and_train_eval_train_leave_the_layer_as_it_was(precision):
    layer = _layer(weight_drop=0.5, precision=precision, kernel="fused")
    first = _results(layer, *_window_seeded(layer, 3))
    twin = copy.deepcopy(layer)
    layer.eval()(*_window(layer))
    again, copied = (_results(m.train(), *_window_seeded(m, 3)) for m in (layer, twin))
    assert all(torch.equal(first[k], again[k]) and torch.equal(first[k], copied[k]) for k in first)


@pytest.mark.parametrize("kernel", ["native", "fused"])
def test_weights_changed_in_place_are_seen_by_the_next_window_also_without_grad(kernel):
    layer = _layer(kernel=kernel).eval()
    x, state = _window(layer)
    with torch.no_grad():
        before = layer(x, state)[0]
        layer.weight_hh_l0.data.mul_(2)
        after = layer(x, state)[0]
    torch.testing.assert_close(after, _plain(layer)(x, tuple(s.unsqueeze(0) for s in state))[0], atol=1e-5, rtol=0)
    assert not torch.equal(before, after) and not after.requires_grad


@pytest.mark.parametrize("kernel", ["native", "fused"])
def test_window_after_window_carries_the_state(kernel):
    layer = _layer(kernel=kernel).eval()
    x, state = _window(layer, T=8)
    with torch.no_grad():
        whole, end = layer(x, state)
        first, middle = layer(x[:3], state)
        second, last = layer(x[3:], middle)
    torch.testing.assert_close(torch.cat([first, second]), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(last, end, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["native", "fused"])
def test_input_that_needs_no_gradient_gets_none(kernel):
    layer = _layer(kernel=kernel)
    x, state = _window(layer)
    layer(x.detach(), tuple(s.detach() for s in state))[0].sum().backward()
    assert x.grad is None and layer.weight_ih_l0.grad is not None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_second_backward_through_a_retained_graph_gives_the_same_gradient(precision):
    layer = _layer(kernel="fused", precision=precision, weight_drop=0.5)
    value = layer(*_window(layer))[0].sum()
    first, second = (torch.autograd.grad(value, list(layer.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_layer_runs_on_the_meta_device():
    layer = WeightDropLSTM("LSTM", 6, 8, 0.5).to("meta")
    out, state = layer(torch.empty(3, 2, 6, device="meta"), tuple(torch.empty(2, 8, device="meta") for _ in range(2)))
    assert out.shape == (3, 2, 8) and [s.shape for s in state] == [(2, 8), (2, 8)]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(64, 128), (40, 115)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_runs_cudnn_on_one_chunk_without_a_warning_and_bf16_on_tensor_cores(precision, size):
    pick_device("cuda")
    layer = _layer(weight_drop=0.5, precision=precision, size=size)
    x, state = _window(layer)
    mask, scale = _mask_of(layer, device="cuda")
    dropped = mask.cpu() * scale
    expected = _results(_plain(layer, layer.weight_hh_l0 * dropped), x, state)
    expected["weight_hh_l0"] = expected["weight_hh_l0"] * dropped
    layer = layer.cuda()
    x, state = x.detach().cuda().requires_grad_(), tuple(s.detach().cuda().requires_grad_() for s in state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, _ = layer(x, state)
        torch.manual_seed(3)
        found = _results(layer, x, state)
    found = {name: value.cpu() for name, value in found.items()}
    assert _error(found, expected) < (1e-4 if precision == "fp32" else 5e-2)
    node = out.grad_fn if precision == "fp32" else out.grad_fn.next_functions[0][0]  # below the cast to fp32
    assert "CudnnRnn" in node.name()
    assert torch.backends.cudnn.rnn.fp32_precision == ("ieee" if precision == "fp32" else "tf32")
