"""Check, tune and time the Triton LSTM on a GPU, in about five minutes: `python3 -m tests.gpu_lstm --out DIR`.

    check     errors against float64 in units of those that rounding makes; the same bits again, and in a CUDA graph
    compare   a whole layer against cuDNN in bf16 and in fp32
    profile   what the kernels of training steps of AWD-LSTM take
    tune      microseconds a time step, forward and backward, of a handful of tiles for each size
    loss      milliseconds of the loss with its gradients: as it is, without alignment, with the Triton softmax
    overlap   tune, check, compare and profile with tiles whose steps overlap

First come check, compare and profile on the tiles that the program would take, then tune, then those three on the
fastest tiles. What never ran on a GPU may take its context along: the loss comes after them, and tiles that overlap,
which may also wait for ever, come last, in a process of their own that has a time limit. `--stages check compare` takes
a minute.

DIR/gpu_lstm.json is written after each figure, so that a sitting that ends early loses none; DIR/gpu_lstm.txt is for
reading. All times are of CUDA graphs, as in training. `--tiny` runs every line in Triton's interpreter:

    TRITON_INTERPRET=1 python3 -m tests.gpu_lstm --tiny --out DIR
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch.profiler import ProfilerActivity, profile

from lm.base.device import pick_device
from lm.bench import random_run
from lm.config.values import make_config
from lm.nn import loss
from lm.nn.kernels import triton_lstm
from lm.nn.kernels.triton_lstm import Tile, TritonLSTM, choose_tiles
from lm.nn.lstm import WeightDropLSTM
from lm.train import update
from lm.training.cudagraphs import CUDAGraphs
from tests.gpu_tiles import Pair, Size, all_trials, attempt, best_tiles, seconds, tune
from tests.nn.kernels.reference import beyond_rounding, draw_case, results

logger = logging.getLogger("gpu_lstm")
# Input, units, batch and length of the window: the layers of the presets, on PTB and on WikiText-2.
SIZES = [(inputs, hidden, batch, 70) for batch in (20, 40, 80, 100) for inputs, hidden in ((1150, 1150), (1150, 400))]
SIZES += [(hidden, hidden, 20, 35) for hidden in (650, 200)]
STAGES = ("check", "compare", "profile", "tune", "loss", "overlap")
OVERLAP_S = 150.0  # of all that is done with tiles that overlap
TINY: dict[str, Any] = {"emsize": 6, "nhid": 8, "nlayers": 2, "batch_size": 3, "bptt": 4, "eval_batch_size": 2}


def check(sizes: list[Size], device: torch.device) -> Iterator[dict[str, Any]]:
    """Errors of every result against float64, in units of the error of rounding, and whether bits repeat."""
    kinds = [(size, torch.bfloat16) for size in sizes] if device.type == "cuda" else []
    for size, dtype in [(sizes[0], torch.float16), *kinds]:
        inputs, hidden, batch, T = size
        case = draw_case(T, batch, inputs, hidden, weight_drop=0.5, device=device.type)

        def run(case: Any = case, dtype: torch.dtype = dtype) -> dict[str, torch.Tensor]:
            found = results(lambda *arguments: TritonLSTM.apply(*arguments, dtype, True), case)
            # An autograd graph that lives on ties its leaves to its stream, which breaks recording on another.
            return {name: value.detach() for name, value in found.items()}

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


def losses(device: torch.device, *, tiny: bool) -> Iterator[dict[str, Any]]:
    """Milliseconds of the loss and its gradients in bf16, by what it is computed with."""
    ways = {
        "as it is": {"triton_softmax": loss.triton_softmax},
        "rows not aligned": {"_ALIGNED_WORDS": 1},
        "Triton softmax": {"triton_softmax": True},
    }
    for rows, vocabulary in [(3, 30)] if tiny else [(1400, 10_000), (2800, 10_000), (5600, 33_278)]:
        torch.manual_seed(0)
        h, w, b = (torch.randn(*shape, device=device) for shape in ((rows, 400), (vocabulary, 400), (vocabulary,)))
        target = torch.randint(vocabulary, (rows,), device=device)
        row: dict[str, Any] = {"rows": rows, "vocabulary": vocabulary}
        for name, changes in ways.items():
            with mock.patch.multiple(loss, **changes):
                call = functools.partial(loss.nats_and_gradients, h, w / 20, b, target, torch.bfloat16)
                spent, wrong = attempt(lambda call=call: seconds(call, device))
                row[name] = 1e3 * spent if spent else wrong
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
    for stage in ("", ", fastest tiles", ", overlap"):
        for row in found.get(f"check{stage}", []):
            cells = " ".join(f"{name} {value}" for name, value in row.items() if name != "errors")
            lines.append(f"check{stage}: {cells}")
        for row in found.get(f"compare{stage}", []):
            cells = " ".join(f"{k}: {v if isinstance(v, str | list | tuple) else round(v, 2)};" for k, v in row.items())
            lines.append(f"compare{stage}: {cells}")
    for row in found.get("loss", []):
        cells = " ".join(f"{k} {v if isinstance(v, str) else round(v, 3)};" for k, v in row.items())
        lines.append(f"loss: {cells}")
    tuned = found.get("tune", []) + found.get("tune, overlap", [])
    for row in sorted(tuned, key=lambda r: (r["hidden"], r["batch"], r["kernel"], r["us_a_step"] or 1e9)):
        figure = f"{row['us_a_step']:8.2f} us" if row["us_a_step"] else row["problem"]
        lines.append(f"{row['hidden']:5} x {row['batch']:3} {row['kernel']:8} {figure}  {Tile(**row['tile'])}")
    profiles = [f"\n{name}\n{table}" for name, table in found.items() if name.startswith("profile")]
    return "\n".join(lines + profiles) + "\n"


class Record:
    """The figures of all stages so far, in `out`/gpu_lstm.json and .txt."""

    def __init__(self, out: Path, device: torch.device) -> None:
        self._json, self._text = out / "gpu_lstm.json", out / "gpu_lstm.txt"
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
        self.found: dict[str, Any] = {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}

    def read(self) -> None:
        """Go on where another process has stopped."""
        self.found = json.loads(self._json.read_text())

    def keep(self, name: str, rows: Iterator[dict[str, Any]]) -> None:
        """Write each row as it comes; what goes wrong ends this stage alone."""
        self.found[name] = []

        def take() -> None:
            for row in rows:
                self.found[name].append(row)
                logger.info("%s: %s", name, row)
                self.write()

        if problem := attempt(take)[1]:
            logger.warning("%s: %s", name, problem)
            self.found[f"{name}: failed"] = problem
            self.write()

    def write(self) -> None:
        """Put everything on the disk."""
        self._json.write_text(json.dumps(self.found, indent=1) + "\n")
        self._text.write_text(text(self.found))


def judge(record: Record, name: str, asked: argparse.Namespace, sizes: list[Size], device: torch.device) -> None:
    """Check, compare and profile, what is asked for of these, on the tiles that the layers take now."""
    if "check" in asked.stages:
        record.keep(f"check{name}", check(sizes, device))
    if "compare" in asked.stages:
        record.keep(f"compare{name}", compare(sizes, device))
    if "profile" in asked.stages:
        table, problem = attempt(lambda: profiled(device, asked.tiny))
        record.found[f"profile{name}"] = table or problem
        record.write()


def tune_and_judge(
    record: Record, name: str, asked: argparse.Namespace, sizes: list[Size], device: torch.device
) -> None:
    """Time the tiles to try, then judge the fastest of all that were timed."""
    trials = all_trials(sizes, overlap=asked.overlap, tiny=asked.tiny)
    record.keep("tune, overlap" if asked.overlap else "tune", tune(sizes, trials, device))
    with using(best_tiles(record.found.get("tune", []) + record.found.get("tune, overlap", []))):
        judge(record, name, asked, sizes, device)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what to do (default: all)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--overlap", action="store_true", help="how the program starts itself for tiles that overlap")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7d ms  %(message)s")
    device = pick_device("cpu" if arguments.tiny else "cuda")
    sizes = [(6, 10, 3, 2)] if arguments.tiny else SIZES
    record = Record(arguments.out, device)
    if arguments.overlap:
        record.read()
        tune_and_judge(record, ", overlap", arguments, sizes, device)
        return
    judge(record, "", arguments, sizes, device)
    if "tune" in arguments.stages:
        tune_and_judge(record, ", fastest tiles", arguments, sizes, device)
    if "loss" in arguments.stages:
        record.keep("loss", losses(device, tiny=arguments.tiny))
    if "overlap" in arguments.stages:
        command = [sys.executable, "-m", "tests.gpu_lstm", "--overlap", *sys.argv[1:]]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, check=False, timeout=OVERLAP_S)


if __name__ == "__main__":
    main()
