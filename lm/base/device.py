"""The device under a run: precision, seeds, determinism, peak memory."""

from __future__ import annotations

import os
from typing import Any

import torch

from lm.base.errors import ConfigError
from lm.base.memory import peak_rss_mb
from lm.base.ranks import ALONE, Ranks


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """`auto`, `cpu` or `cuda` -> device, its fp32 set to be fp32; of several processes on a machine each has its GPU.

    Raises ConfigError for cuda where there is none, or fewer than processes.
    """
    # fp32 means fp32: cuDNN's LSTM would take TF32 (10 bits) by default, and bf16 is the faster way to be less exact.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]  # PyTorch adds it on import
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device; use --device auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.size == 1:
        return torch.device("cuda")
    if ranks.local >= (count := torch.cuda.device_count()):
        raise ConfigError(f"--device: PyTorch sees {count} CUDA devices; start as many processes, or use --device cpu")
    torch.cuda.set_device(ranks.local)
    return torch.device("cuda", ranks.local)


def has_native_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX-512 BF16 or AMX) and oneDNN uses it."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` -> `bf16` on GPUs and CPUs that have it in hardware, `fp32` elsewhere; other names stand."""
    if name != "auto":
        return name
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else has_native_bf16()
    return "bf16" if native else "fp32"


def set_determinism(deterministic: bool, seed: int) -> None:
    """Seed every generator and, on request, allow only deterministic algorithms.

    With one seed, machine, library version and number of threads, CPU runs repeat bit for bit either way;
    CUDA needs `deterministic`, which also fixes cuBLAS's workspace.
    """
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call itself imports for over a second
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of every generator that a run on `device` draws from, as tensors."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []}


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `rng_state` returned; a run that moves from CPU to CUDA keeps the GPU's own."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0], device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory so far in MB: resident memory of this process and, on a GPU, what PyTorch took there."""
    peak = {"peak_rss_mb": peak_rss_mb()}
    if device.type == "cuda":
        peak["peak_gpu_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return peak
