"""The program at the size of WikiText-103 and enwik8, on made-up text: `python -m tests.full_size --out results/speed`.

Makes the texts, runs the commands on them as a user would, and writes what each took to full-size.json and full-size.md
in the folder `--out`. Exit code 1 where memory exceeds a bound. Needs 7 GB of memory, 10 GB of disk and, on two CPUs,
half an hour. `--only` measures some rows and keeps the others.

Memory is the largest resident set of a command's process. It starts at that of this process, which imports no PyTorch
and makes texts in small blocks for that reason.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lm.base.names import flag
from lm.base.rundir import RunDir
from lm.base.threads import usable_cpus
from lm.config.flags import parse_train_args
from lm.config.values import make_config
from lm.study.executors import read_metrics
from tests.forks import environment
from tests.full_size_page import exceeded, page
from tests.made_text import character_table, word_table, write_size, write_tokens

# Command lines of awd-lstm-lm for larger corpora, and its cutoffs for vocabularies above 75,000 words.
WIKITEXT_103 = (
    "--epochs 14 --nlayers 4 --emsize 400 --nhid 2500 --alpha 0 --beta 0 --dropoute 0 --dropouth 0.1 --dropouti 0.1 "
    "--dropout 0.1 --wdrop 0 --wdecay 0 --bptt 140 --batch_size 60 --optimizer adam --lr 1e-3 "
    "--data data/wikitext-103 --save WT103.12hr.QRNN.pt --when 12 --model QRNN"
)
ENWIK8 = (
    "--epochs 50 --nlayers 3 --emsize 400 --nhid 1840 --alpha 0 --beta 0 --dropoute 0 --dropouth 0.1 --dropouti 0.1 "
    "--dropout 0.4 --wdrop 0.2 --wdecay 1.2e-6 --bptt 200 --batch_size 128 --optimizer adam --lr 1e-3 "
    "--data data/enwik8 --save ENWIK8.pt --when 25 35"
)
CUTOFFS = (2800, 20_000, 76_000)
# Of WikiText-103; train, valid and test, in tokens, and of enwik8, in bytes.
TYPES = 267_735
TOKENS = {"words": (103_227_021, 217_646, 245_569), "bytes": (90_000_000, 5_000_000, 5_000_000)}
# Tokens of valid and test where training is measured, so that scoring them takes little of it.
HELD_OUT = 20_000
_POLL_S = 0.2
_MACHINE = """
import json, torch
from lm.base.provenance import cpu_name, git_state
print(json.dumps({"cpu": cpu_name(), "torch": torch.__version__, **git_state()}))
"""


@dataclass(frozen=True)
class Size:
    """A part of the full size, for a trial: texts, vocabularies and cutoffs shrink with it, models with its root."""

    scale: float = 1.0

    def count(self, full: int, least: int = 1) -> int:
        """So many tokens, bytes or types."""
        return max(least, round(full * self.scale))

    def width(self, full: int) -> int:
        """So many units or columns."""
        return max(2, round(full * self.scale**0.5))

    def cutoffs(self) -> list[str]:
        """The flag."""
        return ["--cutoffs", *(str(self.count(cutoff)) for cutoff in CUTOFFS)]


@dataclass
class Done:
    """A command that ended well: what it printed as JSON, and what it took."""

    report: dict[str, Any]
    seconds: float
    cpu_seconds: float
    peak_mb: float

    def cost(self) -> dict[str, float]:
        """For a row."""
        seconds, cpu_seconds = round(self.seconds, 1), round(self.cpu_seconds, 1)
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": round(self.peak_mb)}


@dataclass(frozen=True)
class Site:
    """Where the texts, caches and runs lie, and how the commands are run."""

    folder: Path
    size: Size
    threads: int

    def run(self, module: str, *arguments: object, watch: Callable[[int], None] = lambda process: None) -> Done:
        """Run `python -m MODULE ARGUMENTS` in the folder; `watch` is called with its process now and then.

        Raises CalledProcessError where it fails; what it says goes to stderr.
        """
        command = [sys.executable, "-m", module, *map(str, arguments)]
        print(f"$ python -m {' '.join(command[2:])}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        with tempfile.TemporaryFile("w+") as out:
            variables = environment() | {"OMP_NUM_THREADS": str(self.threads)}
            process = subprocess.Popen(command, cwd=self.folder, env=variables, stdout=out)
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                watch(process.pid)
                time.sleep(_POLL_S)
            _, status, used = ended
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            printed = out.read()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, printed)
        seconds, unit = time.perf_counter() - started, 1 if sys.platform == "darwin" else 1024
        return Done(json.loads(printed), seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e6)


def make_texts(folder: Path, size: Size) -> None:
    """Texts that are not there yet; those for training have a short valid and test."""

    def made(name: str, write: Callable[..., None], *arguments: Any) -> None:
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path.with_suffix(".part"), *arguments)
            path.with_suffix(".part").rename(path)

    held_out = size.count(HELD_OUT, least=400)
    tables = {"words": (write_tokens, word_table(size.count(TYPES))), "bytes": (write_size, character_table())}
    for kind, (write, table) in tables.items():
        for seed, split in enumerate(("train", "valid", "test")):
            made(f"{kind}/{split}.txt", write, table, size.count(TOKENS[kind][seed], least=400), seed)
            if split != "train":
                made(f"train-{kind}/{split}.txt", write, table, held_out, seed)
        if not (train := folder / f"train-{kind}/train.txt").exists():
            os.link(folder / f"{kind}/train.txt", train)
    table = word_table(size.count(500_000), ending="bacdef")
    made("large/train.txt", write_size, table, size.count(2_000_000_000), 4)
    made("large/valid.txt", write_tokens, table, held_out, 5)


def encode(site: Site, data: str, *flags: str) -> dict[str, Any]:
    """`lm.corpus` on a text that no cache has."""
    for cache in (site.folder / "data" / "cache").glob(f"{data}-*"):
        shutil.rmtree(cache)
    done = site.run("lm.corpus", "--data", data, *flags, "--json")
    sizes = {
        name: round(sum(path.stat().st_size for path in Path(site.folder, place).iterdir()) / 1e6)
        for name, place in (("text_mb", data), ("cache_mb", done.report["path"]))
    }
    return {"tokens": done.report["tokens"], "types": done.report["vocab_size"], **sizes, **done.cost()}


def cpu_rate(tokens: int, cpu_after: dict[int, float]) -> int:
    """Tokens a CPU second, of updates of `tokens`, between the first and the last after which CPU seconds were seen.

    0 where fewer than two were seen, as in a trial whose updates take less than looking.
    """
    seen = [(update, seconds) for update, seconds in sorted(cpu_after.items()) if update]
    if len(seen) < 2:
        return 0
    (first, before), (last, after) = seen[0], seen[-1]
    return round(tokens * (last - first) / max(after - before, 1e-2))


def train(site: Site, kind: str, line: str, updates: int) -> dict[str, Any]:
    """`lm.train` for some updates, then `lm.evaluate`; rates are those of all updates but the first."""
    size = site.size
    out = RunDir(site.folder / "run")
    cpu_after: dict[int, float] = {}
    config = make_config(**parse_train_args(line.split()).values)
    widths = [f"{flag(name)}={size.width(getattr(config, name))}" for name in ("emsize", "nhid", "batch_size")]
    limits = ["--max-steps", updates, "--log-interval", 1, "--eval-train-tokens", HELD_OUT, "--no-eval-test"]
    limits += ["--no-variable-bptt", "--no-tensorboard", "--save", "", "--threads", site.threads]
    shutil.rmtree(out.path, ignore_errors=True)

    def updates_made() -> list[dict[str, Any]]:
        return [record for record in read_metrics(out) if record["kind"] == "step"]

    def watch(process: int) -> None:
        used = psutil.Process(process).cpu_times()
        cpu_after.setdefault(len(updates_made()), used.user + used.system)

    flags = [*line.split(), *widths, "--data", f"train-{kind}", *limits]
    done = site.run("lm.train", *flags, "--out-dir", out, "--json", watch=watch)
    scored = site.run("lm.evaluate", out, "--split", "valid", "--json")
    (valid,), steps = scored.report["splits"], updates_made()
    config, tokens = done.report["config"], TOKENS[kind][0]
    return {
        "line": line, "parameters": done.report["params"], "batch_size": config["batch_size"], "bptt": config["bptt"],
        "precision": done.report["versions"]["precision"], "timed_updates": updates - 1,
        "tokens_per_s": round((updates - 1) / sum(1 / step["tokens_per_s"] for step in steps[1:])),
        "tokens_per_cpu_s": cpu_rate(config["batch_size"] * config["bptt"], cpu_after),
        "train_tokens": size.count(tokens), "checkpoint_mb": round(out.last.stat().st_size / 1e6), **done.cost(),
        "evaluation": {"tokens_per_s": round(valid["targets"] / valid["seconds"]), **scored.cost()},
    }  # fmt: skip


def decoder(site: Site, steps: int, cutoffs: bool) -> dict[str, Any]:
    """Loss and gradients of a decoder for as many words as WikiText-103 has, by `tests.decoder_cost`."""
    flags = ["--types", site.size.count(TYPES), "--steps", steps, *(site.size.cutoffs() if cutoffs else [])]
    return site.run("tests.decoder_cost", *flags).report


def plan(size: Size) -> dict[str, Callable[[Site], dict[str, Any]]]:
    """Rows by name."""
    cutoffs = " ".join(size.cutoffs())
    return {
        "encode words": functools.partial(encode, data="words"),
        "encode bytes": lambda site: encode(site, "bytes", "--tokenizer", "byte"),
        "encode large": functools.partial(encode, data="large"),
        "train QRNN": functools.partial(train, kind="words", line=f"{WIKITEXT_103} {cutoffs}", updates=3),
        "train LSTM": functools.partial(train, kind="words", line=f"--batch-size 60 {cutoffs}", updates=4),
        "train bytes": functools.partial(train, kind="bytes", line=f"{ENWIK8} --tokenizer byte", updates=2),
        "decoder with cutoffs": functools.partial(decoder, steps=4, cutoffs=True),
        "decoder": functools.partial(decoder, steps=1, cutoffs=False),
    }


def measure(site: Site, names: list[str], out: Path) -> dict[str, dict[str, Any]]:
    """Measure the named rows, each written down at once beside the others that `out` holds."""
    figures = out / "full-size.json"
    rows = json.loads(figures.read_text()) if figures.exists() else {}
    machine = json.loads(subprocess.run([sys.executable, "-c", _MACHINE], env=environment(), capture_output=True,
                                        check=True, text=True).stdout)  # fmt: skip
    every = plan(site.size)
    for name in names or every:
        load = os.getloadavg()[0]
        row = every[name](site)
        scale, threads = site.size.scale, site.threads
        command = f"python -m tests.full_size --scale {scale:g} --threads {threads} --only '{name}' --out {out}"
        about = {"command": command, "date": time.strftime("%Y-%m-%d"), "scale": scale, "threads": threads, **machine}
        rows[name] = row | about | {"load": [round(load, 1), round(os.getloadavg()[0], 1)]}
        rows = {name: rows[name] for name in every if name in rows}
        out.mkdir(parents=True, exist_ok=True)
        figures.write_text(json.dumps(rows, indent=1) + "\n")
        (out / "full-size.md").write_text(page(rows))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m tests.full_size", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for full-size.json and full-size.md")
    parser.add_argument("--keep", type=Path, help="keep texts, caches and the last run here, and use texts that are")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full size, for a trial (default: 1)")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of each command (default: all CPUs)")
    parser.add_argument("--only", nargs="+", choices=plan(Size()), default=[], metavar="ROW", help="rows to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, size = (arguments.keep or Path(scratch)).resolve(), Size(arguments.scale)
        make_texts(folder, size)
        rows = measure(Site(folder, size, arguments.threads), arguments.only, arguments.out)
    for text in exceeded(rows):
        print(f"a bound is not kept: {text}", file=sys.stderr)
    sys.exit(bool(exceeded(rows)))


if __name__ == "__main__":
    main()
