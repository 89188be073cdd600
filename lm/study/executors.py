"""How the runs of a sweep are computed: as processes of this machine here, as tasks of a cluster in `lm.study.cluster`.

Either way a run is a process of its own, `python -m lm.study.executors PARENT RUN_DIR PROCESSES ARGUMENTS...`. It waits
until no other process works in the run directory, trains as `python -m lm.train ARGUMENTS...` does, in as many
processes, and saves and stops when the process that started it is gone, so that a killed sweep leaves nothing behind
but checkpoints.
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lm.base.errors import ConfigError, run_cli
from lm.base.files import check_regular, import_path, read_file
from lm.base.locks import take_lock
from lm.base.names import flag
from lm.base.numbers import is_number
from lm.base.rundir import RunDir
from lm.base.threads import usable_cpus
from lm.config.schema import TrainConfig
from lm.config.values import make_config
from lm.study.records import word_ppl
from lm.study.together import train_together
from lm.training.results import read_result


@dataclass(frozen=True)
class Job:
    """One run to compute. A rung is the first part of a longer run, for a search: its result is no ledger line."""

    id: str
    name: str
    config: TrainConfig
    arguments: tuple[str, ...]
    run_dir: RunDir
    rung: bool = False
    processes: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, result.json if it is of this run, [epoch, valid ppl] pairs, last log lines."""

    job: Job
    code: int
    result: dict[str, Any] | None
    curve: list[list[float]]
    tail: str


class Executor(Protocol):
    """What a sweep needs of a place to compute."""

    def room(self) -> bool:
        """Whether another run can start now."""

    def start(self, job: Job) -> None:
        """Begin a run."""

    def finished(self) -> list[Outcome]:
        """Runs that have ended since the last call."""

    def stop(self) -> None:
        """Let every run save a checkpoint and end; returns when all have."""

    def close(self) -> None:
        """Free what is held; runs that are still on save and end by themselves."""


def train_arguments(config: TrainConfig) -> list[str]:
    """Flags of `lm.train` that make exactly `config`: what differs from the preset, an empty one if there is none.

    Beside a preset `--finetune` takes no values from the run that it names.
    """
    usual = make_config(config.preset, config.dataset)
    found = [f"--preset={config.preset}"] if config.preset or config.finetune else []
    found.append(f"--dataset={config.dataset}")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("preset", "dataset") or value == getattr(usual, field.name):
            continue
        if isinstance(value, bool):
            found.append(flag(field.name) if value else flag(f"no_{field.name}"))
        elif isinstance(value, tuple):
            found += [flag(field.name), *map(str, value)]
        else:
            found.append(f"{flag(field.name)}={value}")
    return found


def read_metrics(run_dir: RunDir, tail: int | None = None) -> list[dict[str, Any]]:
    """Whole records of metrics.jsonl, or those in its last `tail` bytes, without damaged ones; none without a file."""
    try:
        check_regular(run_dir.metrics)
        with open(run_dir.metrics, "rb") as file:
            if tail is not None and (size := os.fstat(file.fileno()).st_size) > tail:
                file.seek(size - tail)
                file.readline()
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    return [record for line in lines if (record := _record(line)) is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, if it has what is read of it."""
    try:
        record = json.loads(line)
        numbers = [record["step"]]
        if record["kind"] == "epoch":
            numbers += [record["epoch"], word_ppl(record, "valid")]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return record if all(map(is_number, numbers)) else None


def outcome_of(job: Job, code: int) -> Outcome:
    """Collect what a run that ended with exit code `code` left in its directory."""
    epochs = [record for record in read_metrics(job.run_dir) if record["kind"] == "epoch"]
    curve = [[record["epoch"], word_ppl(record, "valid")] for record in epochs]
    try:
        text = read_file(job.run_dir.output).decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
    except OSError:
        lines = []
    return Outcome(job, code, read_result(job.run_dir, job.config), curve, "\n".join(lines[-5:]))


def launch(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a run; only its parent hears the terminal's Ctrl-C, and passes it on."""
    job.run_dir.path.mkdir(parents=True, exist_ok=True)
    # -P: this package, even where the working directory holds another one of its name
    words = [str(os.getpid()), str(job.run_dir), str(job.processes), *job.arguments]
    command = [sys.executable, "-P", "-m", "lm.study.executors", *words]
    with open(job.run_dir.output, "ab") as log:
        return subprocess.Popen(
            command,
            env=os.environ | environment | {"PYTHONPATH": import_path()},
            process_group=None if os.name == "nt" else 0,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def visible_gpus(device: str) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that runs may use, with `device` as in `lm.train`."""
    import torch

    count = 0 if device == "cpu" else torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]


class LocalExecutor:
    """Runs on this machine: `jobs` at a time, each of `processes` with `threads` threads and, where there are, a GPU.

    By default as many as the CPUs or the GPUs carry.
    """

    def __init__(self, jobs: int, threads: int, gpus: Sequence[str], processes: int = 1) -> None:
        """`gpus`: their names. Raises ConfigError if they are fewer than `processes`."""
        self._gpus = [",".join(gpus[end - processes : end]) for end in range(processes, len(gpus) + 1, processes)]
        if gpus and not self._gpus:
            raise ConfigError(f"--processes-per-run: {processes} processes need as many GPUs; there are {len(gpus)}")
        self._slots = list(range(jobs or len(self._gpus) or max(1, usable_cpus() // (threads * processes))))
        self._threads = threads
        self._running: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}

    def room(self) -> bool:
        """Whether fewer than `jobs` runs are on."""
        return bool(self._slots)

    def start(self, job: Job) -> None:
        """Start the process of a run."""
        slot = self._slots.pop(0)
        environment = {"OMP_NUM_THREADS": str(self._threads)}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        self._running[launch(job, environment)] = job, slot

    def finished(self) -> list[Outcome]:
        """Runs whose processes have ended."""
        ended = [process for process in self._running if process.poll() is not None]
        outcomes = []
        for process in ended:
            job, slot = self._running.pop(process)
            self._slots.append(slot)
            outcomes.append(outcome_of(job, process.returncode))
        return outcomes

    def stop(self) -> None:
        """Send every run SIGTERM and wait until it has saved."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait()

    def close(self) -> None:
        """Let runs that an error left behind save and end."""
        for process in self._running:
            process.terminate()


def _stop_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """The process of one run."""
    parent, run_dir, processes, *arguments = sys.argv[1:]
    threading.Thread(target=_stop_when_orphaned, args=(int(parent),), daemon=True).start()
    take_lock(RunDir(run_dir).run_lock, wait=True)
    if int(processes) > 1:
        train_together(int(processes), arguments)
        return
    sys.argv = ["lm.train", *arguments]
    runpy.run_module("lm.train", run_name="__main__")


if __name__ == "__main__":
    run_cli(main)
