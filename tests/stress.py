"""Break training runs in every way a machine can: `python -m tests.stress --kills 100 --out results/reliability`.

Writes a table of what was tried and survived; exit code 1 where something was not. 5 to 30 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lm.base.process import STOP_SIGNALS
from lm.base.provenance import cpu_name
from tests import processes
from tests import trials as cases
from tests.conftest import write_corpus
from tests.faults import Faults
from tests.trials import COMMON, SAVE_EVERY, SHORT, SIGNALS, SWITCH, Trials

# Four runs of seconds each.
SWEEP = """dataset = "corpus"
seeds = [1, 2]
[flags]
data = "{corpus}"
emsize = 8
nhid = 12
nlayers = 2
batch_size = 4
bptt = 7
eval_batch_size = 2
lr = 5
epochs = 2
[[grid]]
alpha = [0, 1]
"""
# What a call belongs to, by its path; the first match counts.
PARTS = {
    "token cache": "data",
    "checkpoint": "/ckpt",
    "metrics.jsonl": "metrics.jsonl",
    "train.log": "train.log",
    "result.json": "result.json",
    "lock, config, environment, tokenizer": "run",
    "update": "^training",
    "evaluation window": "^evaluation",
}


class Table:
    """Counts what was tried and what was survived, a line a case."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.failures: list[str] = []

    def add(self, fault: str, where: str, attempts: Iterable[Callable[[], Any]], note: str = "") -> list[Any]:
        """Make the attempts; an AssertionError is one that was not survived. Returns what the others returned."""
        started, returned, tried = time.monotonic(), [], 0
        for attempt in attempts:
            tried += 1
            try:
                returned.append(attempt())
            except AssertionError as error:
                self.failures.append(f"{fault}, {where}, attempt {tried}: {error or traceback.format_exc(limit=-1)}")
                print(self.failures[-1][:2000], file=sys.stderr)
        self.rows.append([fault, where, str(tried), str(len(returned)), note])
        seconds = time.monotonic() - started
        print(f"{fault}, {where}: {len(returned)} of {tried} survived, {seconds:.0f} s", file=sys.stderr)
        return returned

    def note(self, text: str) -> None:
        """Fill the last column of the last line."""
        self.rows[-1][-1] = text


def counted(counts: Counter[str]) -> str:
    """`a 3, b 1`."""
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))


def by_part(trials: Trials) -> dict[str, list[int]]:
    """Numbers of the undisturbed run's calls, by what they belong to."""
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for number, call in enumerate(trials.calls, 1):
        call = call.replace(str(trials.place), "")
        parts[next(name for name, pattern in PARTS.items() if re.search(pattern, call))].append(number)
    return parts


def single_calls(table: Table, faults: Faults, folder: Path) -> None:
    """Every call of a short run, one by one."""
    trials = Trials(faults, folder, ["--data", write_corpus(folder / "corpus", train=50), *SHORT], SWITCH)
    assert trials.expected["result"]["averaged"], "the run must average before it ends"
    parts = by_part(trials)
    for part, numbers in parts.items():
        table.add("SIGKILL at each call", part, [lambda n=n: cases.kill_at(trials, n) for n in numbers])
    for part, numbers in parts.items():
        if needing := [n for n in numbers if re.match("open|write|fsync|mkdir", trials.calls[n - 1])]:
            table.add("disk full from each call on", part, [lambda n=n: cases.fill_disk_at(trials, n) for n in needing])
    two_saved = [n for n in parts["update"] if cases.made_updates(trials.calls[:n]) > 2 * SAVE_EVERY][::10]
    name = "SIGKILL, last.pt damaged, SIGKILL in the save after it"
    table.add(name, "update", [lambda n=n: cases.kill_after_damage(trials, n) for n in two_saved])
    everywhere = parts["update"][::5] + parts["evaluation window"] + parts["checkpoint"][::10]
    found = table.add("SIGKILL, then last.pt deleted", "update, evaluation, checkpoint",
                      [lambda n=n: cases.lose_last_after(trials, n) for n in everywhere])  # fmt: skip
    table.note(counted(Counter(found)))
    half_way = parts["update"][10::10]
    attempts = [lambda n=n: cases.cut_metrics_after(trials, n) for n in half_way]
    table.add("SIGKILL, then half of metrics.jsonl lost", "update", attempts, "all lines whole, the same weights")
    save = trials.positions("open .*last.pt")[2]
    moments = {
        "update": parts["update"][::10],
        "evaluation window": parts["evaluation window"],
        "checkpoint": [n for n in parts["checkpoint"] if save <= n < save + 12],
        "result.json": parts["result.json"],
    }
    for signals, code in SIGNALS.items():
        names = ", then ".join(number.name for number in signals)
        for part, numbers in moments.items():
            attempts = [lambda n=n, s=signals: cases.send_at(trials, n, s) for n in numbers]
            table.add(names, part, attempts, f"exit code {code}")
    table.add("no fault", "a whole run, in another process", [lambda: trials.finish(trials.new_place())] * 3)


def small_disks(table: Table, faults: Faults, folder: Path) -> None:
    """Real limits of files and of a disk, TensorBoard's files among them."""
    flags = ["--data", write_corpus(folder / "corpus", train=50), *SHORT, "--tensorboard"]
    trials = Trials(faults, folder, flags, SWITCH)
    limits = [1, 100, 500, 900, 2_000, 4_000, 6_000, 10_000, 20_000, 30_000]
    name = "files limited (RLIMIT_FSIZE), the limit growing from try to try"
    for hit in table.add(name, f"{len(limits)} limits", [lambda: cases.limit_files(trials, limits)]):
        table.note(f"stopped at {counted(hit)}")
    name = "disk of a fixed size (tmpfs), growing by 15 % from try to try"
    if not cases.can_mount(folder):
        table.add(name, "skipped: mounting is not permitted", [])
        return
    sizes = [int(8 * 1.15**i) // 4 * 4 for i in range(60)]
    for hit in table.add(name, "until all fits", [lambda: cases.fill_small_disk(trials, sizes)]):
        table.note(f"stopped at {counted(hit)}")


def real_processes(table: Table, faults: Faults, folder: Path, kills: int, seed: int) -> None:
    """`python -m lm.train` itself: random kills, two at a time, memory."""
    corpus = write_corpus(folder / "corpus", train=300, held_out=1000)
    flags = ["--data", corpus, *COMMON, "--epochs=8", "--log-interval=1"]
    trials = Trials(faults, folder, flags)
    metrics = trials.expected["metrics"]
    averaged = min(r["epoch"] for r in metrics if r.get("averaged"))
    where = f"8 epochs, {trials.expected['result']['steps']} updates, NT-ASGD from epoch {averaged} on"
    name = "SIGKILL of a real process at random moments"
    for runs, counts in table.add(name, where, [lambda: processes.kill_at_random(trials, kills, seed)]):
        table.rows[-1][2:4] = [str(counts.total())] * 2
        table.note(f"{runs} runs; killed in {counted(counts)}")
    attempts = [lambda: processes.two_processes(trials.new_place(), flags, trials.expected)] * 3
    table.add("two processes on one run", "the second refused; the first killed, another takes over", attempts)
    attempts = [lambda: processes.deleted_directory(trials.new_place(), flags, trials.expected)] * 3
    table.add("run directory deleted and begun anew by another process", "the first ends, the second goes on", attempts)
    attempts = [lambda: processes.closed_streams(trials.new_place(), flags, trials.expected)]
    table.add("standard input, output and error closed", "from the start", attempts)
    for first in STOP_SIGNALS:
        attempts = [lambda n=first: processes.repeated_signals(trials.new_place(), flags, trials.expected, n)] * 2
        name = f"{signal.Signals(first).name}, then SIGTERM every 50 ms"
        table.add(name, "until the process has ended", attempts, f"exit code {128 + first}")
    name = "SIGKILL, SIGINT, SIGTERM or SIGHUP of `lm.sweep --jobs 2` at random moments"
    study = SWEEP.format(corpus=corpus)
    attempts = [lambda: processes.disturb_sweep(folder, study, max(1, kills // 5), seed)]
    for counts in table.add(name, "four runs of two epochs", attempts):
        table.rows[-1][2:4] = [str(counts.total())] * 2
        table.note(counted(counts))
    steps, flags = 3000, ["--data", corpus, *COMMON, "--log-interval=25"]
    attempt = [lambda: processes.memory_growth(trials.new_place(), flags, steps)]
    for size, growth in table.add("memory", f"{steps} updates", attempt):
        table.note(f"{size:.0f} MB resident in the middle, largest change from there on {growth:.2f} % (allowed: 2 %)")
    attempt = [lambda: cases.log_megabytes(folder / "logs", metrics)]
    for sizes in table.add("size of logs", "500 epochs of PTB, batch 20, bptt 70", attempt):
        table.note(", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()) + " (allowed: 50 MB each)")


def write_readme(table: Table, out: Path, command: str, minutes: float) -> None:
    """The table with its command."""
    lines = [
        "# What a run survives",
        "",
        f"`{command}` on {cpu_name()}, PyTorch {torch.__version__}; {minutes:.0f} minutes. "
        "Small variants of every line are in the test suite (`tests/test_reliability.py`).",
        "",
        "*Survived* means that the exit code and the one message are those documented, that what was saved before is "
        f"still good, and that at most `--save-every` ({SAVE_EVERY}) updates are lost. The run is then resumed with "
        "`--resume auto` and must end as an undisturbed one does:",
        "",
        "- `last.pt` and `best.pt` are the same bit for bit, optimizer, averages and random generators included.",
        "- `result.json` is the same except for times and memory.",
        "- `metrics.jsonl` has every record once.",
        "- No other file is left.",
        "",
        "A *call* is a system call that changes a file of the run directory or of the token cache: open, write, fsync, "
        "rename, unlink, truncate, mkdir. *Where* names the file that the call belongs to, or what the run did then. "
        "SIGKILL comes before the call, or in the middle of a write.",
        "",
        "| fault | where | tried | survived | remarks |",
        "|---|---|--:|--:|---|",
        *(f"| {' | '.join(row)} |" for row in table.rows),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m tests.stress", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="random kills of real processes (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="folder for README.md")
    arguments = parser.parse_args()
    table, others, started = Table(), Table(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Faults() as faults, Faults() as more, ThreadPoolExecutor() as pool:
        folder = Path(scratch).resolve()
        real = pool.submit(real_processes, table, more, folder / "real", arguments.kills, arguments.seed)
        single_calls(others, faults, folder / "calls")
        small_disks(others, faults, folder / "disks")
        real.result()
    for ratio in others.add("cost of --deterministic", "CPU, 1 thread, examples-200", [processes.deterministic_cost]):
        others.note(f"{ratio:.2f} times the CPU time of an update without it (median of 9 alternated turns)")
    table.rows += others.rows
    command = f"python -m tests.stress --kills {arguments.kills} --seed {arguments.seed} --out {arguments.out}"
    write_readme(table, arguments.out, command, (time.monotonic() - started) / 60)
    sys.exit(bool(table.failures or others.failures))


if __name__ == "__main__":
    main()
