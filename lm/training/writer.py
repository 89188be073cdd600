"""The files that a training run writes into its directory; each appears complete or not at all."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm.base.errors import CheckpointError, ConfigError, LMError
from lm.base.files import naming, remove_temporaries, write_atomic, write_json
from lm.base.locks import holds, take_lock
from lm.base.memory import peak_rss_mb
from lm.base.numbers import perplexity
from lm.base.provenance import git_state
from lm.base.ranks import ALONE, Ranks
from lm.base.rundir import RunDir
from lm.config.schema import RunOptions
from lm.config.values import as_plain, config_id
from lm.nn.model import AWDLSTM, count_parameters
from lm.training.checkpoint import save_checkpoint
from lm.training.log import RunLog
from lm.training.run import Run


class SaveTimes:
    """When the next checkpoint is due: by the clock (--save-minutes), which goes on over epochs, else by updates."""

    def __init__(self, options: RunOptions, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._every = options.save_every
        self._seconds = 60 * options.save_minutes
        self.start()

    def start(self) -> None:
        """Count from now."""
        self._next = time.monotonic() + self._seconds

    def due(self, step: int) -> bool:
        """Whether to save after update `step`."""
        return self._ranks.any(time.monotonic() >= self._next) if self._seconds else step % self._every == 0

    @property
    def at_epochs(self) -> bool:
        """Whether every end of an epoch is one; by the clock it is not, for an epoch may take seconds."""
        return not self._seconds


class RunWriter:
    """Writes one run's directory, and the copy of its best checkpoint that `--save` asks for."""

    def __init__(self, directory: RunDir, copy_best_to: str = "") -> None:
        self._directory = directory
        self._copy = Path(copy_best_to) if copy_best_to else None
        self._lock: int | None = None
        self._found = self._stamp()
        self._kept: dict[str, Any] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here. The kernel drops the lock of a process that ends, however it ends.

        Raises ConfigError, naming the process that trains here already, or if one has since this object was made.
        """
        directory = self._directory
        path = directory.lock
        lock = take_lock(path, wait=False)
        if lock is None:
            holder = path.read_text(encoding="utf-8", errors="replace")
            raise ConfigError(
                f"--out-dir: process {holder or 'unknown'} is training in {directory}: "
                "wait for it, end it, or choose another directory"
            )
        try:
            if self._stamp() != self._found:
                raise ConfigError(f"--out-dir: another process has just trained in {directory}; start again")
            os.ftruncate(lock, 0)
            with naming(path):
                os.write(lock, str(os.getpid()).encode())
            self._lock = lock
            for folder in (directory.path, directory.last.parent):
                remove_temporaries(folder)
            yield
        finally:
            self._lock = None
            os.close(lock)

    def _check_owner(self) -> None:
        """Raise LMError if the directory was deleted: another process may train there by now, under a new lock."""
        if self._lock is not None and not holds(self._directory.lock, self._lock):
            raise LMError(
                f"{self._directory} was deleted or replaced while this process trained in it: ended, not saved"
            )

    def prepare(self, run: Run) -> None:
        """Create the directory and write what describes the run."""
        self._directory.path.mkdir(parents=True, exist_ok=True)
        self._directory.result.unlink(missing_ok=True)
        environment = run.versions() | {"git": git_state(), "argv": sys.argv}
        write_json(self._directory.environment, environment)
        run.corpus.tokenizer.save(self._directory.tokenizer)
        write_json(self._directory.config, as_plain(run.config))

    def save_last(self, run: Run, log_position: int) -> None:
        """Write last.pt, from which the run continues bit for bit; the one before stays as last.prev.pt."""
        state = run.state_dict(log_position)
        self._check_owner()
        self.save_kept()
        save_checkpoint(self._directory.last, state, keep_previous=True)

    def save_first(self, run: Run, log: RunLog) -> None:
        """Write last.pt if there is none: a best.pt without one is that of a run that has lost it (`check_new`)."""
        if run.ranks.any(not self._directory.last.exists()):
            self.save_last(run, log.sync())

    def keep_best(self, run: Run, model: AWDLSTM) -> None:
        """Take the best weights down, for best.pt to be written beside the next last.pt, which knows of them."""
        self._kept = copy.deepcopy(run.best_state(model))

    def save_kept(self) -> None:
        """Write what `keep_best` took down last, if anything, and the copy that `--save` asks for."""
        if self._kept:
            self._check_owner()
            save_checkpoint(self._directory.best, self._kept)
            self._kept = {}
            self.copy_best()

    def copy_best(self) -> None:
        """Write the copy of best.pt that `--save` asks for, if it does."""
        if self._copy:
            try:
                content = self._directory.best.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{self._directory.best}: cannot be read: {error.strerror}") from error
            write_atomic(self._copy.resolve(), lambda file: file.write(content))

    def write_result(self, run: Run, status: str, scores: dict[str, Any]) -> dict[str, Any]:
        """Write result.json, the last file of a run, and return its content."""
        self._check_owner()
        result = self.result(run, status, scores)
        write_json(self._directory.result, result)
        return result

    def result(self, run: Run, status: str, scores: dict[str, Any]) -> dict[str, Any]:
        """Content of result.json."""
        progress = run.progress
        known = math.isfinite(run.progress.best_loss)
        return {
            "status": status, "id": config_id(run.config), "config": as_plain(run.config), "seed": run.config.seed,
            "dataset": run.corpus.name, "best_epoch": progress.best_epoch,
            "valid_loss": progress.best_loss if known else None,
            "valid_ppl": perplexity(progress.best_loss) if known else None,
            "train_loss": None, "train_ppl": None, "test_loss": None, "test_ppl": None, **scores,
            "activation": progress.best_activation, "params": count_parameters(run.model),
            "epochs": run.epochs_begun, "steps": progress.step, "tokens": progress.tokens,
            "averaged": progress.best_averaged, "seconds": round(progress.seconds, 2),
            "tokens_per_s": round(progress.tokens / max(progress.seconds, 1e-9)), "peak_rss_mb": round(peak_rss_mb()),
            "versions": run.versions(), "git": git_state(),
            "corpus_sha256": run.corpus.sha256,
            **({"init_vectors": progress.from_vectors} if progress.from_vectors else {}),
            **({"finetune": progress.from_run} if progress.from_run else {}),
            **({"changes": progress.changes} if progress.changes else {}),
        }  # fmt: skip

    def _stamp(self) -> tuple[int, ...]:
        """Another value after a process has written the checkpoint or the result of this run."""
        files = [path for path in (self._directory.last, self._directory.result) if path.exists()]
        return tuple(path.stat().st_mtime_ns for path in files)
