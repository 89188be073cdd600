import os
import platform
import signal

import pytest
import torch

from lm.base import device as runtime
from lm.base.errors import ConfigError, Interrupted

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_reported_when_checked_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with runtime.StopSignals() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_another_signal_ends_at_once(first):
    with runtime.StopSignals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_termination_after_another_signal_changes_nothing(first):
    with runtime.StopSignals() as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == first


def test_determinism_sets_what_pytorch_asks_for_and_off_unsets_it(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    runtime.set_determinism(True, 1)
    try:
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # cuBLAS reads it when its first handle is made
    finally:
        runtime.set_determinism(False, 1)
    assert not torch.are_deterministic_algorithms_enabled()


def test_precision_is_bf16_where_the_hardware_has_it(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert runtime.pick_precision("auto", CUDA) == ("bf16" if native else "fp32")
        monkeypatch.setattr(runtime, "has_native_bf16", lambda native=native: native)
        assert runtime.pick_precision("auto", CPU) == ("bf16" if native else "fp32")
        assert runtime.pick_precision("fp32", CPU) == "fp32"
        assert runtime.pick_precision("bf16", CPU) == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused():
    with pytest.raises(ConfigError, match="--device"):
        runtime.pick_device("cuda")
    assert runtime.pick_device("auto") == CPU


def test_generator_states_round_trip():
    state = runtime.rng_state(CPU)
    first = torch.rand(3)
    runtime.set_rng_state(state, CPU)
    assert torch.equal(torch.rand(3), first)


def test_keeping_freed_memory_is_harmless_without_glibc(monkeypatch):
    runtime.keep_freed_memory()

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(runtime.ctypes, "CDLL", missing)
    runtime.keep_freed_memory()


def test_git_state_names_a_commit_or_nothing():
    state = runtime.git_state()
    assert state["commit"] is None or len(state["commit"]) == 40


def test_fp32_means_fp32_on_cuda():
    runtime.pick_device("auto")
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.rnn.fp32_precision == "ieee"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n",
         "AMD EPYC (family 25, model 17)"),
        ("processor : 0\nmodel name : A CPU\n", "A CPU"),
        ("processor : 0\nCPU architecture: 8\n", platform.machine()),
    ],
)  # fmt: skip
def test_a_cpu_is_named_by_its_generation_too(monkeypatch, text, name):
    monkeypatch.setattr(runtime.Path, "read_text", lambda path: text)
    assert runtime.cpu_name() == name
