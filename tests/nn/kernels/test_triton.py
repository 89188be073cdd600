"""The Triton LSTM: on CPU in Triton's interpreter against the plain formulas, compiled for an H100, and on a GPU."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
import torch

from lm.base.errors import ConfigError
from lm.nn.kernels import triton_lstm
from lm.nn.kernels.triton_lstm import Tile, TritonLSTM, available, masked_copy
from lm.nn.lstm import WeightDropLSTM
from lm.nn.qrnn import WeightDropQRNN
from tests.conftest import TINY
from tests.nn.kernels.reference import beyond_rounding, draw_case, largest_error, plain_lstm, results

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
CPU = torch.device("cpu")
pytest.importorskip("triton", minversion="3.6")
# The interpreter takes about a millisecond an operation of a program, whatever its size: few large programs.
LARGE = Tile(128, 64, 128), Tile(128, 64, 128, split=2)


def _layer(dtype=FP32):
    return lambda *arguments: TritonLSTM.apply(*arguments, dtype, True)


@pytest.fixture
def large_copies(monkeypatch):
    monkeypatch.setattr(triton_lstm, "COPY_BLOCK", 512)


def _with_tiles(monkeypatch, *tiles):
    monkeypatch.setattr(triton_lstm, "choose_tiles", lambda *sizes: tiles)


@pytest.mark.parametrize("weight_drop", [0.0, 0.5])
@pytest.mark.parametrize(("H", "B", "T"), [(1, 1, 1), (1, 33, 3), (17, 20, 1), (17, 1, 3), (17, 33, 3)])
def test_fp32_output_state_and_every_gradient_equal_the_plain_formulas(H, B, T, weight_drop):
    case = draw_case(T, B, 7, H, weight_drop)
    assert largest_error(results(_layer(), case), results(plain_lstm, case)) < 1e-5


@pytest.mark.parametrize(("H", "B", "T"), [(400, 20, 3), (1150, 20, 2)])
def test_the_sizes_of_the_model_equal_the_plain_formulas(H, B, T, monkeypatch, large_copies):
    _with_tiles(monkeypatch, *LARGE)
    case = draw_case(T, B, 30, H, weight_drop=0.5)
    assert largest_error(results(_layer(), case), results(plain_lstm, case)) < 1e-5


@pytest.mark.parametrize(("H", "B", "T"), [(17, 33, 3), (60, 20, 3)])
def test_fp16_errors_stay_within_three_times_those_of_rounding_the_operands_of_the_products(H, B, T, large_copies):
    case = draw_case(T, B, 24, H, weight_drop=0.5)
    assert max(beyond_rounding(_layer(FP16), case, FP16).values()) < 3


def test_a_sum_shared_by_programs_is_the_sum_of_one_and_repeats_to_the_bit(monkeypatch):
    case = draw_case(3, 20, 5, 30)
    _with_tiles(monkeypatch, Tile(32, 32, 32), Tile(16, 16, 16))
    alone = results(_layer(), case)
    _with_tiles(monkeypatch, Tile(32, 32, 32), Tile(16, 16, 16, split=4))
    shared, again = results(_layer(), case), results(_layer(), case)
    assert largest_error(shared, alone) < 1e-6
    assert all(torch.equal(shared[name], again[name]) for name in shared)


@pytest.mark.parametrize("tiles", [(Tile(8, 16, 16), Tile(32, 16, 64, split=2)), (Tile(32, 64, 64), Tile(16, 32, 16))])
def test_every_tile_gives_the_same_numbers(tiles, monkeypatch):
    case = draw_case(2, 20, 5, 30, weight_drop=0.5)
    _with_tiles(monkeypatch, *tiles)
    assert largest_error(results(_layer(), case), results(plain_lstm, case)) < 1e-5


def test_without_backward_nothing_is_kept_and_the_output_has_the_same_bits():
    case = draw_case(3, 5, 4, 9, weight_drop=0.5)
    with torch.no_grad():
        bare = TritonLSTM.apply(*case.arguments, case.mask, case.scale, FP32, False)
    kept = _layer()(*case.arguments, case.mask, case.scale)
    assert all(torch.equal(a, b) for a, b in zip(bare, kept, strict=True)) and bare[0].grad_fn is None


def test_a_second_backward_through_a_retained_graph_gives_the_same_gradient():
    case = draw_case(3, 5, 4, 9, weight_drop=0.5)
    value = _layer()(*case.arguments, case.mask, case.scale)[0].sum()
    first, second = (torch.autograd.grad(value, case.arguments, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_input_and_state_that_need_no_gradient_get_none():
    case = draw_case(2, 5, 4, 9)
    for argument in case.arguments[:3]:
        argument.requires_grad_(False)
    _layer()(*case.arguments, None, 1.0)[0].sum().backward()
    assert [argument.grad is None for argument in case.arguments] == [True] * 3 + [False] * 4


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_a_masked_copy_is_drop_weight_padded_with_zeros_and_its_transpose(dtype):
    weight, mask = torch.randn(3, 70, 33), (torch.rand(3, 70, 33) < 0.5).to(dtype)
    copy, copy_t = masked_copy(weight, 80, 64, dtype, mask, 4 / 3, transposed=True)
    expected = torch.zeros(3, 80, 64, dtype=dtype)
    expected[:, :70, :33] = (weight * (4 / 3)).to(dtype) * mask
    assert torch.equal(copy, expected) and torch.equal(copy_t, expected.flatten(0, 1).t())
    back, nothing = masked_copy(copy, 70, 33, FP32, mask, 2.0)
    assert torch.equal(back, expected[:, :70, :33].float() * 2) and nothing is None


def test_a_layer_on_triton_draws_the_mask_that_others_draw_and_computes_the_same():
    results_of = {}
    for kernel in ("triton", "native"):
        torch.manual_seed(0)
        layer = WeightDropLSTM("LSTM", 6, 10, weight_drop=0.5, kernel=kernel)
        x, state = torch.randn(3, 4, 6), (torch.randn(4, 10), torch.randn(4, 10))
        out, state = layer(x, state)
        gradients = torch.autograd.grad(out.pow(2).sum() + state[1].sum(), list(layer.parameters()))
        results_of[kernel] = dict(enumerate((out, *state, *gradients)))
    assert largest_error(results_of["triton"], results_of["native"]) < 1e-5


def test_training_on_triton_is_training_on_the_native_kernel_and_refused_where_it_cannot_run(
    train_here, corpus_dir, tmp_path, monkeypatch
):
    flags = ("--data", corpus_dir, *TINY, "--max-steps=1", "--eval-batch-size=32", "--no-eval-test", "--no-tensorboard",
             "--eval-train-tokens=64", "--precision=fp32", "--device=cpu")  # fmt: skip
    runs = {kernel: (*flags, f"--kernel={kernel}", "--out-dir", tmp_path / kernel) for kernel in ("triton", "native")}
    triton, native = (train_here(*flags) for flags in runs.values())
    assert triton["valid_loss"] == pytest.approx(native["valid_loss"], rel=1e-5)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match="--kernel"):
        train_here(*runs["triton"], "--seed=2", "--out-dir", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_what_the_kernels_cannot_do_is_refused(monkeypatch):
    case = draw_case(1, 1, 1, 1)
    with pytest.raises(TypeError, match="interpreter"):
        _layer(BF16)(*case.arguments, None, 1.0)
    with pytest.raises(TypeError, match="fp32 weights"):
        _layer()(*case.to(torch.float64).arguments, None, 1.0)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="needs CUDA"):
        _layer()(*case.arguments, None, 1.0)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(("kind", "name"), [(WeightDropLSTM, "LSTM"), (WeightDropQRNN, "QRNN")])
def test_torch_compile_leaves_the_layer_as_it_is_and_torch_export_refuses_it(kind, name):
    torch.manual_seed(0)
    layer = kind(*["LSTM"] * (name == "LSTM"), 3, 5, kernel="triton")
    x, state = torch.randn(2, 2, 3), layer.initial_state(2)
    gradients = []
    for call in (layer, torch.compile(layer, backend="eager")):
        out, _ = call(x, state)
        gradients.append([out, *torch.autograd.grad(out.square().sum(), [*layer.parameters()])])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    torch.backends.cudnn.allow_tf32 = True  # torch.export refuses to start after `pick_device`, which sets a part of it
    with pytest.raises(RuntimeError, match="cannot be traced"):
        torch.export.export(layer, (x, state))


def test_available_where_triton_is_new_enough_and_can_run(monkeypatch):
    assert available(CPU) and available(torch.device("cuda"))
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("CC", "cc")
    triton_lstm._has_compiler.cache_clear()
    assert not available(CPU) and available(torch.device("cuda"))
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    triton_lstm._has_compiler.cache_clear()
    assert not available(torch.device("cuda"))
    monkeypatch.setenv("CC", "cc")
    triton_lstm._has_compiler.cache_clear()
    monkeypatch.setattr(triton_lstm, "version", lambda name: "3.5.1")
    triton_lstm._has_triton.cache_clear()
    assert not available(torch.device("cuda"))
    monkeypatch.setattr(triton_lstm, "version", lambda name: importlib.metadata.version("no such package"))
    triton_lstm._has_triton.cache_clear()
    assert available(torch.device("cuda"))  # it came with a package of another name
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    triton_lstm._has_triton.cache_clear()
    assert not available(torch.device("cuda"))
    triton_lstm._has_triton.cache_clear()
    triton_lstm._has_compiler.cache_clear()


@pytest.fixture(scope="module")
def compiled():
    """What `python -m tests.nn.kernels.compile_triton` reports, in a process where kernels are not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    sizes = ["1150x20", "400x80", "1150x40", "1150x100"]
    command = [sys.executable, "-m", "tests.nn.kernels.compile_triton", "--sizes", *sizes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kernels_compile_for_an_h100_without_spills_and_run_their_products_beside_their_copies(compiled):
    assert {line["kernel"] for line in compiled} == {
        "forward", "backward", "last", "pool_forward", "pool_backward", "loss", "copy"
    }  # fmt: skip
    for line in compiled:
        assert line["stack"] == line["spills"] == 0, line
        assert line["smem"] <= 227 * 1024, line
        if line["kernel"] in ("forward", "backward"):
            assert line["products"] > 0 and line["copies"] > 0 and line["pipelined"], line


@pytest.mark.gpu
@pytest.mark.parametrize(("H", "B", "T"), [(17, 33, 3), (400, 20, 35), (1150, 80, 20)])
def test_bf16_on_a_gpu_stays_within_three_times_the_error_of_rounding(H, B, T):
    case = draw_case(T, B, 24, H, weight_drop=0.5, device="cuda")
    assert max(beyond_rounding(_layer(BF16), case, BF16).values()) < 3


@pytest.mark.gpu
@pytest.mark.parametrize(("H", "B", "T"), [(1, 1, 1), (17, 33, 3), (400, 20, 9)])
def test_fp32_on_a_gpu_equals_cudnn(H, B, T):
    torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "ieee"
    case = draw_case(T, B, 24, H, device="cuda")

    def cudnn(x, h, c, *rest):
        out, h, c = torch._VF.lstm(x, [h[None], c[None]], list(rest[:4]), True, 1, 0.0, True, False, False)
        return out, h[0], c[0]

    assert largest_error(results(_layer(), case), results(cudnn, case)) < 1e-5


@pytest.mark.gpu
def test_a_gpu_repeats_to_the_bit_inside_and_outside_of_a_cuda_graph():
    from lm.training.cudagraphs import CUDAGraphs

    case = draw_case(9, 20, 400, 1150, weight_drop=0.5, device="cuda")
    places = {name: torch.empty_like(value) for name, value in results(_layer(BF16), case).items()}

    def step(_):
        for name, value in results(_layer(BF16), case).items():
            places[name].copy_(value)

    graphs, seen = CUDAGraphs(torch.device("cuda")), []
    for _ in range(4):  # as it is, recorded and played, played, played
        graphs(step, torch.zeros(1, device="cuda"))
        seen.append({name: value.clone() for name, value in places.items()})
    assert all(torch.equal(seen[0][name], other[name]) for other in seen[1:] for name in places)
