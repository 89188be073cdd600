"""The runs of a study: which are missing, computing them side by side, and their way into the ledger."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import math
import os
import shlex
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from lm.base.errors import CheckpointError, ConfigError, DivergedError, Interrupted, LMError
from lm.base.locks import take_lock
from lm.base.rundir import RunDir
from lm.base.signals import StopSignals
from lm.config.schema import TrainConfig
from lm.config.values import as_plain, config_id, with_vectors_digest
from lm.study.cluster import make_executor
from lm.study.executors import (
    Executor,
    Job,
    Outcome,
    outcome_of,
    train_arguments,
)
from lm.study.extend import begin_with_shorter
from lm.study.ledger import append_ledger
from lm.study.progress import LiveView
from lm.study.records import configuration_name, curve_of, loss_of, word_ppl
from lm.study.settled import Settled
from lm.study.specification import Study
from lm.study.together import torchrun
from lm.text.finding import configured_corpus, corpus_place, known_text
from lm.text.tokenization import tokenization_of
from lm.training.results import finished_result, is_of_text, read_result

logger = logging.getLogger(__name__)
# What a ledger line can say of a run that is not run again.
_SETTLED = ("completed", "diverged")


class SweepFailed(LMError):
    """Runs ended without a result; the message lists them with their last words."""


def finished(job: Job) -> dict[str, Any] | None:
    """The result in the run's directory, if it has all that is asked for: one that a run by hand left may lack test."""
    return finished_result(job.run_dir, job.config, tested=not job.rung)


class Sweep:
    """The runs of one study: which are missing, where they are computed, and their way into the ledger."""

    def __init__(self, study: Study, args: argparse.Namespace) -> None:
        self.study = study
        self.args = args
        self.folder = Path(args.runs_dir, study.name)
        self.results = Settled(study.ledger)
        self.failures: dict[str, str] = {}
        self.started = 0
        self._executor: Executor | None = None
        self._places: dict[str, tuple[str, str]] = {}
        self._texts: dict[Any, Mapping[str, str] | None] = {}
        self._locks: dict[str, int] = {}

    def config(self, configuration: dict[str, Any], seed: int) -> TrainConfig:
        """Configuration of one run, with the checksum of its vectors.

        Errors as `Study.config`, and ConfigError where the vectors cannot be read, or the corpus has another name than
        study.toml says: presets and reports go by that.
        """
        config = with_vectors_digest(self.study.config(**configuration, seed=seed))
        if config.data not in self._places:
            self._places[config.data] = corpus_place(config.dataset, config.data)
        name, place = self._places[config.data]
        if name != config.dataset:
            wanted = f'dataset = "{name}"' + ("" if config.data else f', and data = "{place}" under [flags]')
            raise ConfigError(f"{self.study.source}: dataset: the text of {config.dataset} is {name}: write {wanted}")
        return config

    def job(self, configuration: dict[str, Any], seed: int, epochs: int | None = None) -> Job:
        """One run to compute; with `epochs`, its first part."""
        config = self.config(configuration, seed)
        run_dir = RunDir((self.folder / config_id(config)).absolute())
        rung = False
        if epochs is not None and epochs < config.epochs:
            rung = True
            config = dataclasses.replace(config, epochs=epochs)
        arguments = [*train_arguments(config), f"--threads={self.args.threads}"]
        if self.args.device != "auto":
            arguments.append(f"--device={self.args.device}")
        if rung:
            arguments.append("--no-eval-test")
        name = (
            f"{configuration_name(configuration, self.study.baseline)}, seed {seed}"
            if configuration
            else f"seed {seed}"
        )
        run = (f"--out-dir={run_dir}", "--resume=auto")
        return Job(config_id(config), name, config, (*arguments, *run), run_dir, rung, self.args.processes_per_run)

    def _of_this_text(self, record: Mapping[str, Any], config: TrainConfig) -> bool:
        """Whether a result is of the text that the run would read now."""
        name = (config.dataset, config.data)
        if name not in self._texts:
            self._texts[name] = known_text(config)
        return is_of_text(record, self._texts[name])

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Those without a line in the ledger that says how they ended, and not failed before in this sweep.

        Raises CheckpointError if a line is of another text than the run would read now: the two cannot be compared.
        """
        for job in jobs:
            if not self._of_this_text(self.results.get(job.id) or {}, job.config):
                raise CheckpointError(
                    f"{self.study.ledger}: {job.name}: trained on another text than {job.config.data or 'the corpus'} "
                    "has now: put that text back, or begin another study"
                )
        return [
            job
            for job in {job.id: job for job in jobs}.values()
            if self.status(job) not in _SETTLED and job.id not in self.failures
        ]

    def status(self, job: Job) -> str:
        """What the ledger says of a run; empty: nothing."""
        return self.results.status(job.id)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run what is missing of `jobs`; failures are collected in `failures`.

        Raises:
            CorpusError: the corpus cannot be had; nothing was started.
            Interrupted: a stop signal; the runs have saved their checkpoints.
        """
        # What is complete comes first: it is only to be entered.
        todo = deque(sorted(self.missing(jobs), key=lambda job: finished(job) is None))
        if not todo:
            return
        texts = {(c.dataset, c.data, tokenization_of(c)): c for c in (job.config for job in todo)}
        for config in texts.values():
            configured_corpus(config)  # encoded once, instead of by all the first runs at a time
        if self._executor is None:
            self._executor = make_executor(self.args)
        with StopSignals() as stop, LiveView(len(todo)) as view:
            try:
                self._work(todo, self._executor, view, stop)
            except Interrupted as interruption:
                self._executor.stop()
                raise Interrupted(
                    f"{interruption}; what was running is saved, the same command continues", interruption.exit_code
                ) from None

    def _work(self, todo: deque[Job], executor: Executor, view: LiveView, stop: StopSignals) -> None:
        """Keep the executor busy; a run that another sweep has taken is looked at again every second."""
        running: dict[str, Job] = {}
        waiting: deque[Job] = deque()
        told = False
        look_again = 0.0
        while todo or waiting or running:
            if not todo and waiting and time.monotonic() >= look_again:
                if not told:
                    logger.info("%d runs are computed by another sweep: waiting for them", len(waiting))
                told = True
                look_again = time.monotonic() + 1
                todo = waiting
                waiting = deque()
            while todo and executor.room():
                job = todo.popleft()
                try:
                    claimed = self._claim(job)
                except OSError as error:  # a file where its folder should be: the others go on
                    self.failures[job.id] = f"{job.name}: {error.filename or job.run_dir}: {error.strerror or error}"
                    view.end(job, "FAILED, its folder cannot be used")
                    continue
                if not claimed:
                    waiting.append(job)
                elif text := self._known(job):
                    self._release(job)
                    view.end(job, text)
                else:
                    running[job.id] = job
                    begin_with_shorter(job)
                    view.start(job)
                    executor.start(job)
                    self.started += 1
            for outcome in executor.finished():
                text = self.settle(outcome)
                self._release(running.pop(outcome.job.id))
                view.end(outcome.job, text)
            view.show(len(waiting))
            stop.check()
            time.sleep(0.1)

    def _claim(self, job: Job) -> bool:
        """Make the run this sweep's own, unless it is another's; the kernel gives it back if this process is killed."""
        lock = take_lock(job.run_dir.sweep_lock, wait=False)
        if lock is not None:
            self._locks[job.id] = lock
        return lock is not None

    def _release(self, job: Job) -> None:
        os.close(self._locks.pop(job.id))

    def _known(self, job: Job) -> str:
        """How the run ended, if another sweep has entered it by now or its directory holds its result; else empty."""
        self.results.refresh()
        if self.status(job) in _SETTLED:
            return f"{self.status(job)}, by another sweep"
        result = finished(job)
        if result is None or not self._of_this_text(result, job.config):  # the run itself says that it is of another
            return ""
        return self._enter(outcome_of(job, 0), result)

    def settle(self, outcome: Outcome) -> str:
        """Enter how a run ended into the ledger, or among the failures; returns it in words."""
        result = outcome.result
        job = outcome.job
        if result and (outcome.code, result["status"]) in ((0, "completed"), (DivergedError.exit_code, "diverged")):
            return self._enter(outcome, result)
        self.failures[job.id] = (
            f"{job.name}: exit code {outcome.code}, {job.run_dir.output}\n{indent(outcome.tail, '    ')}"
        )
        return f"FAILED, exit code {outcome.code}"

    def _enter(self, outcome: Outcome, result: dict[str, Any]) -> str:
        job = outcome.job
        record = result | {"curve": outcome.curve, "command": self.command(job)}
        if result["status"] == "diverged":
            record["error"] = (outcome.tail.splitlines() or [""])[-1].removeprefix("error: ")
        self.results.enter(job.id, record)
        if not job.rung:
            append_ledger(self.study.ledger, record)
        if result["status"] == "diverged":
            return f"diverged: {record['error']}"
        ppl = {split: word_ppl(result, split) for split in ("valid", "test")}
        return f"valid ppl {ppl['valid']:.2f}" + (f", test {ppl['test']:.2f}" if ppl["test"] else "")

    def command(self, job: Job, folder: Path | None = None) -> str:
        """The command that repeats a run, from the repository's root; in `folder`, else where runs lie by default."""
        arguments = [a for a in job.arguments if not a.startswith(("--out-dir=", "--resume="))]
        place = (folder or Path("runs", self.study.name)) / job.run_dir.path.name
        start = torchrun(job.processes) if job.processes > 1 else ["python"]
        return shlex.join([*start, "-m", "lm.train", *arguments, f"--out-dir={place}"])

    def measure(self, configurations: Sequence[dict[str, Any]], epochs: int | None = None) -> list[float]:
        """Mean valid loss over the seeds of each configuration, in nats per word; infinite where a run diverged.

        Raises SweepFailed if a run failed, for the next step would depend on it.
        """
        jobs = [
            [self.job(configuration, seed, epochs) for seed in self.study.seeds] for configuration in configurations
        ]
        for job in itertools.chain.from_iterable(jobs):
            if part := self._part(job):
                self.results.enter(job.id, part)
        self.run([job for row in jobs for job in row])
        if self.failures:
            raise SweepFailed("the search stops here")
        found = [[self.results[job.id] for job in row] for row in jobs]
        return [
            math.fsum(loss_of(r, "valid") for r in row) / len(row)
            if all(r["status"] == "completed" for r in row)
            else math.inf
            for row in found
        ]

    def _part(self, rung: Job) -> dict[str, Any] | None:
        """What the ledger's line of a longer run says of its first part, which that run's directory cannot repeat."""
        whole = self.results.get(rung.run_dir.path.name)
        if not rung.rung or not whole:
            return None
        early = [ppl for epoch, ppl in curve_of(whole) if epoch <= rung.config.epochs]
        if whole["status"] == "completed" or len(early) == rung.config.epochs:
            return {"status": "completed", "valid_ppl": min(early, default=word_ppl(whole, "valid"))}
        return whole if whole["status"] == "diverged" else None

    def prune(self, configuration: dict[str, Any], epochs: int) -> None:
        """Enter a configuration that a search gave up after `epochs` into the ledger, as no result."""
        for seed in self.study.seeds:
            job = self.job(configuration, seed)
            rung_job = self.job(configuration, seed, epochs)
            if self.status(job) in _SETTLED:
                continue
            rung = self.results.get(rung_job.id) or read_result(rung_job.run_dir, rung_job.config) or {}
            record = rung | {"id": job.id, "config": as_plain(job.config), "seed": seed, "command": self.command(job)}
            if rung.get("status") != "diverged":
                ppl = f", valid perplexity {word_ppl(rung, 'valid'):.2f}" if rung else ""
                record |= {"status": "pruned", "error": f"after {epochs} of {job.config.epochs} epochs{ppl}"}
            append_ledger(self.study.ledger, record)

    def close(self) -> None:
        """Free what the executor holds."""
        if self._executor is not None:
            self._executor.close()
