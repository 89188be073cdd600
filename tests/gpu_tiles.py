"""The fastest tiles of the Triton LSTM on a GPU: each is compiled in a process of its own, then timed."""

from __future__ import annotations

import dataclasses
import functools
import logging
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lm.nn.kernels.triton_lstm import Tile, backward_steps, choose_tiles, forward_steps, padded_size
from lm.training.cudagraphs import CUDAGraphs
from tests.nn.kernels.tiles import tiles_to_try

logger = logging.getLogger("gpu_lstm")
Size = tuple[int, int, int, int]
Pair = tuple[Tile, Tile]
Trial = tuple[int, int, str, Pair]
COMPILE_S = 60.0


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


def compile_all(trials: list[Trial], device: torch.device) -> list[str]:
    """What went wrong with each trial, after all were compiled, several at a time.

    A fault of the GPU spoils its process for the trials after it, so those that failed get one each.
    """
    problems = compiled(trials, device)
    failed = [number for number, problem in enumerate(problems) if problem]
    for number, problem in zip(failed, compiled([trials[number] for number in failed], device, 1), strict=True):
        problems[number] = problem
    return problems


def compiled(trials: list[Trial], device: torch.device, tasks_each: int | None = None) -> list[str]:
    """What went wrong with each trial; a process ends after `tasks_each`, and all do after COMPILE_S seconds."""
    if not trials:
        return []
    workers = 1 if device.type == "cpu" else max(1, (os.cpu_count() or 1) - 2)
    end = time.monotonic() + COMPILE_S
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=tasks_each) as pool:  # whose end kills
        answers = [pool.apply_async(compile_tile, (*trial, device.type)) for trial in trials]
        found = [attempt(lambda answer=answer: answer.get(max(0.0, end - time.monotonic()))) for answer in answers]
    return [problem or failure for problem, failure in found]


def all_trials(sizes: list[Size], *, overlap: bool, tiny: bool) -> list[Trial]:
    """(units, batch, kernel, tiles) of every tile to try, either those that overlap or those that do not."""
    trials = []
    for _, hidden, batch, _ in sizes:
        default = choose_tiles(hidden, batch, torch.bfloat16)
        forwards, backwards = tiles_to_try(hidden, batch)
        trials += [(hidden, batch, "forward", (tile, default[1])) for tile in forwards if tile.overlap == overlap]
        trials += [(hidden, batch, "backward", (default[0], tile)) for tile in backwards if tile.overlap == overlap]
    if tiny:  # one of each; with `overlap` what the interpreter does not know
        first = {trial[2]: trial for trial in reversed(trials)}
        return [first["forward"], first["backward"]]
    return trials


def tune(sizes: list[Size], trials: list[Trial], device: torch.device) -> Iterator[dict[str, Any]]:
    """Microseconds a time step of each tile that could be compiled."""
    problems = compile_all(trials, device)
    logger.info("%d tiles compiled, of which %d failed", len(trials), sum(map(bool, problems)))
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
