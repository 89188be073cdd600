"""Time and memory of a decoder: `python -m tests.decoder_cost --types 267735 --cutoffs 2800 20000 76000`.

Computes the loss and its gradients for targets drawn by Zipf's law, and prints one JSON object. Memory is the peak of
resident memory above what was resident before the decoder was made: the matrix, its gradient, and all that computing
them takes.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()  # as the commands do, so that threads that wait take no CPU seconds

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from lm.base.device import pick_device, pick_precision
from lm.base.memory import keep_freed_memory, peak_rss_mb
from lm.nn.adaptive import AdaptiveDecoder
from lm.nn.loss import LinearDecoder


def decoder_cost(types: int, features: int, rows: int, steps: int, cutoffs: Sequence[int]) -> dict[str, Any]:
    """Wall and CPU seconds of a step, the first one included, and MB (10^6 bytes)."""
    torch.manual_seed(1)
    h_NE = torch.randn(rows, features, requires_grad=True)
    target_N = (torch.rand(rows, dtype=torch.float64) * torch.tensor(types + 1.0).log()).exp().long() - 1
    h_NE.mm(h_NE.t())  # threads and the product's own memory are there from here on
    before = psutil.Process().memory_info().rss / 1e6
    decoder = AdaptiveDecoder(features, types, cutoffs) if cutoffs else LinearDecoder(features, types)
    precision = pick_precision("auto", pick_device("cpu"))
    started, cpu_started = time.perf_counter(), time.process_time()
    for _ in range(steps):
        decoder.zero_grad()
        decoder.loss(h_NE, target_N, precision).backward()
    return {
        "types": types, "cutoffs": list(cutoffs), "features": features, "rows": rows, "steps": steps,
        "seconds_per_step": (time.perf_counter() - started) / steps,
        "cpu_seconds_per_step": (time.process_time() - cpu_started) / steps,
        "peak_mb": round(peak_rss_mb() - before), "matrix_mb": round(decoder.weight.nbytes / 1e6),
        "in_last_cluster": (target_N >= cutoffs[-1]).double().mean().item() if cutoffs else None,
        "precision": precision,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m tests.decoder_cost", description=__doc__)
    parser.add_argument("--types", type=int, required=True, help="words of the vocabulary")
    parser.add_argument("--features", type=int, default=400, help="columns of the matrix (default: 400)")
    parser.add_argument("--rows", type=int, default=4200, help="targets (default: 4200)")
    parser.add_argument("--steps", type=int, default=1, help="how often (default: 1)")
    parser.add_argument("--cutoffs", type=int, nargs="+", default=[], help="of the adaptive softmax; none: one softmax")
    arguments = vars(parser.parse_args())
    keep_freed_memory()
    print(json.dumps(decoder_cost(**arguments)))


if __name__ == "__main__":
    main()
