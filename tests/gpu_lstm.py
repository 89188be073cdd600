"""Check, tune and time the Triton LSTM on a GPU, in about four minutes: `python -m tests.gpu_lstm --out DIR`.

    check     errors against float64 in units of those that rounding makes; the same bits again, and in a CUDA graph
    tune      microseconds a time step, forward and backward, of a handful of tiles for each size
    again     the check on the fastest tiles
    compare   a whole layer on the fastest tiles against cuDNN in bf16 and in fp32
    profile   what the kernels of training steps of AWD-LSTM take, on the fastest tiles

DIR/gpu_lstm.json is written after each figure, so that a sitting that ends early loses none; DIR/gpu_lstm.txt is for
reading. All times are of CUDA graphs, as in training. `--tiny` runs every line in Triton's interpreter:

    TRITON_INTERPRET=1 python -m tests.gpu_lstm --tiny --out DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import logging
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch.profiler import ProfilerActivity, profile

from lm.base.device import pick_device
from lm.bench import random_run
from lm.config.values import make_config
from lm.nn.kernels import triton_lstm
from lm.nn.kernels.triton_lstm import Tile, TritonLSTM, backward_steps, choose_tiles, forward_steps, padded_size
from lm.nn.lstm import WeightDropLSTM
from lm.train import update
from lm.training.cudagraphs import CUDAGraphs
from tests.nn.kernels.reference import beyond_rounding, draw_case, results
from tests.nn.kernels.tiles import tiles_to_try

logger = logging.getLogger("gpu_lstm")
Size = tuple[int, int, int, int]
Pair = tuple[Tile, Tile]
# Input, units, batch and length of the window: the layers of the presets, on PTB and on WikiText-2.
SIZES = [(inputs, hidden, batch, 70) for batch in (20, 80) for inputs, hidden in ((1150, 1150), (1150, 400))]
SIZES += [(hidden, hidden, batch, 35) for batch in (20, 80) for hidden in (650, 200)]
TINY = {"emsize": 6, "nhid": 8, "nlayers": 2, "batch_size": 3, "bptt": 4, "eval_batch_size": 2}


def window(hidden: int, batch: int, T: int, tiles: Pair, device: torch.device) -> dict[str, Callable]:
    """The loops of a window over random numbers, as functions of nothing: forward, backward."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    P = padded_size(hidden, *tiles)
    weight = torch.randn(4, P, P, device=device).mul_(hidden**-0.5).to(dtype)
    weight_t = weight.view(4 * P, P).t().contiguous()
    z = torch.randn(T, batch, 4, P, device=device).to(dtype)
    h, c, dh, dc = torch.randn(4, batch, hidden, device=device)
    dout = torch.randn(T, batch, hidden, device=device)
    _, _, kept_c, gates = forward_steps(weight, z, h, c, tiles[0], keep=True)
    return {
        "forward": lambda: forward_steps(weight, z, h, c, tiles[0], keep=True),
        "backward": lambda: backward_steps(weight_t, dout, dh, dc, kept_c, gates, tiles[1]),
    }


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Time of the function's kernels, recorded into a graph: the median of five turns of twenty; on a CPU one call."""
    graphs, token = CUDAGraphs(device), torch.zeros(1, device=device)
    warm_up, turns, calls, wait = 1, 1, 1, lambda: None
    if device.type == "cuda":
        warm_up, turns, calls, wait = 3, 5, 20, torch.cuda.synchronize
    for _ in range(warm_up):
        graphs(lambda _: function(), token)
    spent = []
    for _ in range(turns):
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            graphs(lambda _: function(), token)
        wait()
        spent.append((time.perf_counter() - started) / calls)
    return statistics.median(spent)


def loop_seconds(hidden: int, batch: int, T: int, tiles: Pair, device: torch.device, name: str) -> float:
    """Time of a window's forward or backward loop."""
    return seconds(window(hidden, batch, T, tiles, device)[name], device)


def attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    """The function's result, or what went wrong: the figures after it are wanted all the same."""
    try:
        return function(), ""
    except Exception as problem:
        return None, f"{type(problem).__name__}: {problem}"[:300]


def compile_tile(hidden: int, batch: int, name: str, tiles: Pair, kind: str) -> str:
    """Run a tile in a process of its own, which leaves its kernels in Triton's cache; returns what went wrong."""

    def run() -> None:
        window(hidden, batch, 2, tiles, torch.device(kind))[name]()
        if kind == "cuda":
            torch.cuda.synchronize()

    return attempt(run)[1]


def compile_all(trials: list[tuple[int, int, str, Pair]], device: torch.device) -> list[str]:
    """What went wrong with each trial, after all were compiled, several at a time."""
    workers = 1 if device.type == "cpu" else max(1, (os.cpu_count() or 1) - 2)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(compile_tile, *zip(*trials, strict=True), itertools.repeat(device.type)))


def all_trials(sizes: list[Size], tiny: bool) -> list[tuple[int, int, str, Pair]]:
    """(units, batch, kernel, tiles) of every tile to try, those that overlap last: they are the likeliest to fail."""
    trials = []
    for _, hidden, batch, _ in sizes:
        default = choose_tiles(hidden, batch, torch.bfloat16)
        forwards, backwards = tiles_to_try(hidden, batch)
        trials += [(hidden, batch, "forward", (tile, default[1])) for tile in forwards]
        trials += [(hidden, batch, "backward", (default[0], tile)) for tile in backwards]
    trials.sort(key=lambda trial: any(tile.overlap for tile in trial[3]))
    if tiny:  # one of each, and one with what the interpreter does not know
        first = {trial[2]: trial for trial in reversed(trials)}
        return [first["forward"], first["backward"], trials[-1]]
    return trials


def check(sizes: list[Size], device: torch.device) -> Iterator[dict[str, Any]]:
    """Errors of every result against float64, in units of the error of rounding, and whether bits repeat."""
    kinds = [(size, torch.bfloat16) for size in sizes] if device.type == "cuda" else []
    for size, dtype in [(sizes[0], torch.float16), *kinds]:
        inputs, hidden, batch, T = size
        case = draw_case(T, batch, inputs, hidden, weight_drop=0.5, device=device.type)

        def run(case: Any = case, dtype: torch.dtype = dtype) -> dict[str, torch.Tensor]:
            return results(lambda *arguments: TritonLSTM.apply(*arguments, dtype, True), case)

        first, again = run(), run()
        places = {name: torch.empty_like(value) for name, value in first.items()}

        def step(_: torch.Tensor, run: Any = run, places: Any = places) -> None:
            for name, value in run().items():
                places[name].copy_(value)

        graphs = CUDAGraphs(device)
        for _ in range(3 if device.type == "cuda" else 1):
            graphs(step, torch.zeros(1, device=device))
        errors = beyond_rounding(lambda *arguments, dtype=dtype: TritonLSTM.apply(*arguments, dtype, True), case, dtype)
        yield {
            "size": size, "dtype": str(dtype), "passed": max(errors.values()) < 3, "worst": max(errors.values()),
            "repeats": all(torch.equal(first[name], again[name]) for name in first),
            "repeats_in_a_graph": all(torch.equal(first[name], places[name]) for name in first), "errors": errors,
        }  # fmt: skip


def tune(sizes: list[Size], trials: list, problems: list[str], device: torch.device) -> Iterator[dict[str, Any]]:
    """Microseconds a time step of each tile that could be compiled."""
    lengths = {(hidden, batch): T for _, hidden, batch, T in sizes}
    for (hidden, batch, name, pair), problem in zip(trials, problems, strict=True):
        T = lengths[hidden, batch]
        row = {"hidden": hidden, "batch": batch, "kernel": name, "us_a_step": None, "problem": problem}
        if not problem:
            measure = functools.partial(loop_seconds, hidden, batch, T, pair, device, name)
            spent, row["problem"] = attempt(measure)
            row["us_a_step"] = spent and 1e6 * spent / T
        yield row | {"tile": dataclasses.asdict(pair[0 if name == "forward" else 1])}


def best_tiles(rows: list[dict[str, Any]]) -> dict[tuple[int, int], Pair]:
    """(units, batch) -> the fastest forward and backward tile, the default where none was measured."""
    best = {}
    for hidden, batch in {(row["hidden"], row["batch"]) for row in rows}:
        tiles = list(choose_tiles(hidden, batch, torch.bfloat16))
        for at, kernel in enumerate(("forward", "backward")):
            of_kernel = [row for row in rows if (row["hidden"], row["batch"], row["kernel"]) == (hidden, batch, kernel)]
            if timed := [row for row in of_kernel if row["us_a_step"]]:
                tiles[at] = Tile(**min(timed, key=lambda row: row["us_a_step"])["tile"])
        best[hidden, batch] = tuple(tiles)
    return best


@contextmanager
def using(best: dict[tuple[int, int], Pair]) -> Iterator[None]:
    """Let the layers take these tiles, and their own for other sizes."""

    def choose(hidden: int, batch: int, dtype: torch.dtype) -> Pair:
        if (hidden, batch) in best and dtype != torch.float32:
            return best[hidden, batch]
        return choose_tiles(hidden, batch, dtype)

    with mock.patch.object(triton_lstm, "choose_tiles", choose):
        yield


def layer_window(kernel: str, precision: str, size: Size, device: torch.device) -> dict[str, Callable]:
    """A layer with weight drop over a window: forward alone, and with backward to weights, input and state."""
    inputs, hidden, batch, T = size
    torch.manual_seed(0)
    layer = WeightDropLSTM("LSTM", inputs, hidden, 0.5, kernel, precision).to(device)
    x = torch.randn(T, batch, inputs, device=device, requires_grad=True)
    state = tuple(torch.randn(batch, hidden, device=device, requires_grad=True) for _ in range(2))
    dout = torch.randn(T, batch, hidden, device=device)
    leaves = [x, *state, *layer.parameters()]
    return {
        "forward": lambda: layer(x, state)[0],
        "forward and backward": lambda: torch.autograd.grad(layer(x, state)[0], leaves, dout),
    }


def compare(sizes: list[Size], device: torch.device) -> Iterator[dict[str, Any]]:
    """Microseconds a time step of a whole layer, its products, mask and copies included, by kernel and precision."""
    bf16 = "bf16" if device.type == "cuda" else "fp32"
    for size in sizes:
        row: dict[str, Any] = {"size": size}
        for kernel, precision in (("triton", bf16), ("native", bf16), ("native", "fp32")):
            for part, function in layer_window(kernel, precision, size, device).items():
                spent, wrong = attempt(lambda function=function: seconds(function, device))
                row[f"{kernel} {precision}, {part}"] = 1e6 * spent / size[3] if spent else wrong
        yield row


def profiled(device: torch.device, tiny: bool) -> str:
    """The profiler's table of training steps of AWD-LSTM on PTB, kernels by their time."""
    config = make_config("awd-lstm", "ptb", kernel="triton", variable_bptt=False, **TINY if tiny else {})
    run = random_run(config, 30 if tiny else 10_000, device)
    for _ in range(1 if tiny else 5):
        update(run, next(run.windows))
    kind = "cpu" if tiny else "cuda"
    with profile(activities=[getattr(ProfilerActivity, kind.upper())]) as record:
        for _ in range(1 if tiny else 5):
            update(run, next(run.windows))
        if not tiny:
            torch.cuda.synchronize()
    averages = record.key_averages()
    return averages.table(sort_by=f"self_{kind}_time_total", row_limit=40, max_name_column_width=70)


def text(found: dict[str, Any]) -> str:
    """The figures, for reading: the tiles of each size from the fastest on."""
    lines = [f"{found['gpu']}, PyTorch {found['torch']}, Triton {found['triton']}"]
    for row in found.get("check", []) + found.get("again", []):
        lines.append(" ".join(f"{name} {value}" for name, value in row.items() if name != "errors"))
    tuned = found.get("tune", [])
    for row in sorted(tuned, key=lambda r: (r["hidden"], r["batch"], r["kernel"], r["us_a_step"] or 1e9)):
        figure = f"{row['us_a_step']:8.2f} us" if row["us_a_step"] else row["problem"]
        lines.append(f"{row['hidden']:5} x {row['batch']:3} {row['kernel']:8} {figure}  {Tile(**row['tile'])}")
    for row in found.get("compare", []):
        lines.append(" ".join(f"{k}: {v if isinstance(v, str | tuple) else round(v, 2)};" for k, v in row.items()))
    return "\n".join(lines) + "\n\n" + found.get("profile", "")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7d ms  %(message)s")
    device = pick_device("cpu" if arguments.tiny else "cuda")
    sizes = [(6, 10, 3, 2)] if arguments.tiny else SIZES
    gpu = "no GPU" if arguments.tiny else torch.cuda.get_device_name()
    found: dict[str, Any] = {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}

    def keep(name: str, rows: Iterator[dict[str, Any]]) -> None:
        found[name] = []
        for row in rows:
            found[name].append(row)
            logger.info("%s: %s", name, row)
            (arguments.out / "gpu_lstm.json").write_text(json.dumps(found, indent=1) + "\n")
            (arguments.out / "gpu_lstm.txt").write_text(text(found))

    trials = all_trials(sizes, arguments.tiny)
    problems = compile_all(trials, device)
    logger.info("%d tiles compiled, of which %d failed", len(trials), sum(map(bool, problems)))
    keep("check", check(sizes, device))
    keep("tune", tune(sizes, trials, problems, device))
    with using(best_tiles(found["tune"])):
        keep("again", check(sizes, device))
        keep("compare", compare(sizes, device))
        found["profile"], wrong = attempt(lambda: profiled(device, arguments.tiny))
        found["profile"] = found["profile"] or wrong
    keep("end", iter([{"seconds": time.process_time()}]))


if __name__ == "__main__":
    main()
