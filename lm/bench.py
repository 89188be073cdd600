"""Speed and memory of a full training step against plain PyTorch: `python -m lm.bench --preset awd-lstm --dataset ptb`.

Both programs run in processes of their own and take turns, a few steps each, so that neither shares memory with the
other and whatever else the machine does falls on both. Figures are medians over the turns. The text is random words:
speed does not depend on it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import time
import timeit
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm.base.device import peak_memory, pick_device, pick_precision
from lm.base.errors import ConfigError, LMError, run_cli
from lm.base.memory import HUGE_PAGES, keep_freed_memory
from lm.base.process import show
from lm.base.provenance import cpu_name
from lm.base.threads import usable_cpus
from lm.config.bounds import choices
from lm.config.flags import Parser
from lm.config.schema import TrainConfig
from lm.config.values import make_config
from lm.nn.kernels.choose import check_device, choose_kernel
from lm.nn.plain import PlainLM, plain_step
from lm.nn.products import pack_linear
from lm.tables.speed import measurement, read_measurements, text, write_table
from lm.text.cards import known_corpora
from lm.text.corpus import Corpus
from lm.text.layout import SPLITS
from lm.text.tokenizer import EOS, UNK
from lm.text.words import WordTokenizer
from lm.train import update
from lm.training.phases import Phases, timed_phases
from lm.training.run import Run

# Against too little memory.
SMALLER = "--preset"

Step = Callable[[], Any]
# Label, preset, corpus, changed fields.
Benchmark = tuple[str, str, str, dict[str, Any]]
_CPU = torch.device("cpu")
# Steps in a row before the other program's turn, of which the first, whose caches are cold, does not count. A GPU's
# work is waited for at the end of a turn only, as training does, so a turn must be long beside that.
_STEPS_A_TURN = {"cpu": 3, "cuda": 101}
# Rows of the table in results/speed.
_GROWTH: list[Benchmark] = [
    ("awd-lstm, PTB", "awd-lstm", "ptb", {}),
    ("awd-lstm, WT2", "awd-lstm", "wikitext-2", {}),
    ("examples-650, PTB", "examples-650", "ptb", {}),
    ("examples-200, PTB", "examples-200", "ptb", {}),
    ("awd-lstm, batch 80", "awd-lstm", "ptb", {"batch_size": 80}),
    ("awd-lstm, 575 units", "awd-lstm", "ptb", {"nhid": 575}),
    ("awd-lstm, window 35", "awd-lstm", "ptb", {"bptt": 35}),
]


def random_run(config: TrainConfig, vocab_size: int, device: torch.device = _CPU) -> Run:
    """A training run whose text, 400 windows of it, is random words."""
    tokens = config.batch_size * (config.bptt * 400 + 1)
    ids = np.random.default_rng(0).integers(0, vocab_size, tokens).astype(np.int32)
    tokenizer = WordTokenizer([EOS, UNK, *map(str, range(vocab_size - 2))])
    uncounted = dict.fromkeys(SPLITS, 0)
    corpus = Corpus(
        name="random words",
        source="random words",
        tokenizer=tokenizer,
        splits=dict.fromkeys(SPLITS, ids),
        unk=uncounted,
        lines=uncounted,
        words=uncounted,
        sha256=dict.fromkeys(SPLITS, ""),
        path=None,
    )
    return Run(config, corpus, device)


def endless_update(run: Run) -> None:
    """The next update, at the text's end from its top again."""
    if (window := next(run.windows, None)) is None:
        run.windows.rewind()
        window = next(run.windows)
    update(run, window)


def _our_step(config: TrainConfig, vocab_size: int, device: torch.device) -> tuple[Step, Phases]:
    """The program's own `update` on random text, and the times of its phases."""
    keep_freed_memory()
    run = random_run(config, vocab_size, device)
    phases = timed_phases(run)

    def step() -> None:
        phases.begin()
        endless_update(run)

    return step, phases


def _plain_step(config: TrainConfig, vocab_size: int, device: torch.device) -> tuple[Step, Phases]:
    torch.manual_seed(config.seed)
    with device:
        model = PlainLM(vocab_size, config)
        data = torch.randint(vocab_size, (config.bptt + 1, config.batch_size))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, weight_decay=config.wdecay)
    return lambda: plain_step(model, optimizer, data[:-1], data[1:]), Phases()


def _worker(connection: Connection, ours: bool, config: TrainConfig, vocab_size: int, threads: int, name: str) -> None:
    """Answer each `True` with the mean duration of a turn's steps, `False` with phases and peak memory."""
    torch.set_num_threads(threads)
    device = pick_device(name) if ours else torch.device(name)  # plain PyTorch keeps its settings, TF32 in cuDNN
    step, phases = (_our_step if ours else _plain_step)(config, vocab_size, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    steps = _STEPS_A_TURN[device.type]
    for _ in range(steps):
        step()
    phases.forget()
    while connection.recv():
        step()
        wait()
        started = time.perf_counter()
        for _ in range(steps - 1):
            step()
        wait()
        connection.send((time.perf_counter() - started) / (steps - 1))
        phases.end()
    connection.send((phases.medians(), peak_memory(device)))
    connection.close()


def _ask(connection: Connection, more: bool) -> Any:
    """A worker's answer. Raises LMError if it has died."""
    try:
        connection.send(more)
        return connection.recv()
    except (EOFError, OSError):
        raise LMError("a measuring process ended early; if it says nothing above, memory may have run out") from None


def products(config: TrainConfig, vocab_size: int) -> list[tuple[int, int, int, int]]:
    """A step's matrix products: how often, and m, k, n of (m, k) x (k, n)."""
    T, B, E, H = config.bptt, config.batch_size, config.emsize, config.nhid
    found = [(1, T * B, E, vocab_size), (1, T * B, vocab_size, E), (1, vocab_size, T * B, E)]
    widths = [E, *[H] * (config.nlayers - 1), E]
    for inputs, hidden in itertools.pairwise(widths):
        gates = 4 * hidden
        found += [(T, B, hidden, gates), (T, B, gates, hidden), (1, gates, T * B, hidden)]
        found += [(1, T * B, inputs, gates), (1, T * B, gates, inputs), (1, gates, T * B, inputs)]
    return found


def gemm_seconds(config: TrainConfig, vocab_size: int, dtype: torch.dtype, device: torch.device = _CPU) -> float:
    """Time of a step's matrix products alone, at their real shapes, each in its fastest form."""
    shapes = products(config, vocab_size)
    return sum(count * _product_seconds(m, k, n, dtype, min(count, 10), device) for count, m, k, n in shapes)


def _product_seconds(m: int, k: int, n: int, dtype: torch.dtype, repeats: int, device: torch.device) -> float:
    """Median time of one (m, k) x (k, n) product over seven rounds of `repeats`: on a CPU with packed weights or
    plain, on a GPU within a CUDA graph."""
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
    if device.type == "cuda":
        return _replay_seconds(lambda: a @ b, repeats)
    packed = pack_linear(b.t().contiguous())
    rounds = [timeit.repeat(form, number=repeats, repeat=7) for form in (lambda: packed(a), lambda: a @ b)]
    return min(map(statistics.median, rounds)) / repeats


def _replay_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call's kernels over seven replays of a CUDA graph that holds `repeats` of them."""
    call()  # libraries set themselves up, which cannot be recorded
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    spent = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        spent.append(start.elapsed_time(end) / 1e3 / repeats)
    return statistics.median(spent)


def gflop(config: TrainConfig, vocab_size: int) -> float:
    """Arithmetic in a step's matrix products, in 1e9 operations."""
    return sum(2e-9 * count * m * k * n for count, m, k, n in products(config, vocab_size))


def measure(config: TrainConfig, vocab_size: int, turns: int, threads: int, device: str = "cpu") -> dict[str, Any]:
    """Take turns between our step and plain PyTorch's; returns the figures that `--json` prints."""
    keep_freed_memory()
    torch.set_num_threads(threads)  # for the products alone; each worker sets its own
    config = dataclasses.replace(config, variable_bptt=False)
    context = multiprocessing.get_context("spawn")
    workers = []
    asked = os.environ.get(HUGE_PAGES)
    for ours in (True, False):
        if not ours:
            os.environ.pop(HUGE_PAGES, None)  # plain PyTorch as it comes
        here, there = context.Pipe()
        process = context.Process(target=_worker, args=(there, ours, config, vocab_size, threads, device), daemon=True)
        # Only this process hears Ctrl-C: the other one, a daemon, ends with it.
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, heard)
        there.close()  # else this process would wait for ever for a worker that has died
        workers.append((here, process))
    if asked is not None:  # for our worker in the next row of a table
        os.environ[HUGE_PAGES] = asked
    times: list[list[float]] = [[], []]
    for _ in range(turns):
        for (connection, _), spent in zip(workers, times, strict=True):
            spent.append(_ask(connection, True))
    reports = []
    for connection, process in workers:
        reports.append(_ask(connection, False))
        process.join()
    (phases, memory), (_, plain_memory) = reports
    seconds, plain_seconds = (statistics.median(spent) for spent in times)
    tokens = config.batch_size * config.bptt
    place = torch.device(device)
    precision = pick_precision(config.precision, place)
    kernel, _ = choose_kernel(config.kernel, config.model, precision, place, torch.float32, config.nhid)
    row = {
        "tokens_per_s": round(tokens / seconds), "seconds_per_step": seconds,
        "plain_tokens_per_s": round(tokens / plain_seconds), "plain_seconds_per_step": plain_seconds,
        "ratio": statistics.median(p / o for o, p in zip(*times, strict=True)),
        "kernel": kernel, "precision": precision, "threads": threads, "cpu": cpu_name(), "torch": torch.__version__,
        "turns": turns,
    }  # fmt: skip
    for name in memory:
        row |= {name: round(memory[name]), f"plain_{name}": round(plain_memory[name])}
    if device == "cuda":
        row["gpu"] = torch.cuda.get_device_name()
    gemm = gemm_seconds(config, vocab_size, torch.bfloat16 if precision == "bf16" else torch.float32, place)
    row |= {"gemm_seconds": gemm, "gemm_ratio": seconds / gemm, "gemm_gflop": gflop(config, vocab_size)}
    return row | {"phases": phases | {"rest": seconds - sum(phases.values())}}


def main() -> None:
    """Command line."""
    parser = Parser("python -m lm.bench", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--preset", default="awd-lstm", help="preset of lm.train to measure (default: awd-lstm)")
    parser.add_argument("--dataset", default="ptb", choices=["ptb", "wikitext-2"], help="sets the vocabulary size")
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each program (default: 7)")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="CPU threads of each (default: all)")
    parser.add_argument("--precision", choices=choices(TrainConfig, "precision"), default="auto", help="of ours")
    parser.add_argument("--kernel", choices=choices(TrainConfig, "kernel"), default="auto", help="of ours")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where both programs compute")
    parser.add_argument("--table", metavar="DIR", help="measure every row of the speed table, add it to DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    given = {name for name in ("preset", "dataset") if getattr(arguments, name) != parser.get_default(name)}
    if arguments.table and given:
        raise ConfigError("--table: measures rows of its own; leave --preset and --dataset out")
    asked = make_config(arguments.preset, arguments.dataset)
    if asked.optimizer != "sgd" or asked.model != "LSTM":
        raise ConfigError("--preset: the plain program knows SGD and LSTMs only")
    if not (1 <= arguments.turns <= 1_000_000 and 1 <= arguments.threads <= 1024):
        raise ConfigError("--turns and --threads: must be at least 1, threads at most 1024")
    check_device(arguments.kernel, pick_device(arguments.device))
    measured: list[Benchmark] = [(arguments.preset, arguments.preset, arguments.dataset, {})]
    earlier: list[dict[str, Any]] = []
    if arguments.table:
        earlier = read_measurements(Path(arguments.table))
        measured = _GROWTH
    rows: dict[str, dict[str, Any]] = {}
    for label, preset, dataset, changes in measured:
        config = make_config(preset, dataset, **changes, precision=arguments.precision, kernel=arguments.kernel)
        vocab_size = known_corpora()[dataset].vocab_size
        rows[label] = measure(config, vocab_size, arguments.turns, arguments.threads, arguments.device)
        if arguments.table:  # after each row, so that a measurement cut short loses none
            write_table(Path(arguments.table), [*earlier, measurement(rows)])
        if not arguments.json:
            show(text(label, rows[label]) + "\n")
    if arguments.json:
        show(json.dumps(rows if arguments.table else rows[arguments.preset]) + "\n")


if __name__ == "__main__":
    run_cli(main, SMALLER)
