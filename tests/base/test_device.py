"""Device, precision, determinism and the states of random generators."""

import os

import pytest
import torch

from lm.base import device
from lm.base.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_determinism_sets_what_pytorch_asks_for_and_off_unsets_it(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    device.set_determinism(True, 1)
    try:
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # cuBLAS reads it when its first handle is made
    finally:
        device.set_determinism(False, 1)
    assert not torch.are_deterministic_algorithms_enabled()


def test_precision_is_bf16_where_the_hardware_has_it(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert device.pick_precision("auto", CUDA) == ("bf16" if native else "fp32")
        monkeypatch.setattr(device, "has_native_bf16", lambda native=native: native)
        assert device.pick_precision("auto", CPU) == ("bf16" if native else "fp32")
        assert device.pick_precision("fp32", CPU) == "fp32"
        assert device.pick_precision("bf16", CPU) == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused():
    with pytest.raises(ConfigError, match="--device"):
        device.pick_device("cuda")
    assert device.pick_device("auto") == CPU


def test_generator_states_round_trip():
    state = device.rng_state(CPU)
    first = torch.rand(3)
    device.set_rng_state(state, CPU)
    assert torch.equal(torch.rand(3), first)


def test_fp32_means_fp32_on_cuda():
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"
    device.pick_device("auto")
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.rnn.fp32_precision == "ieee"
