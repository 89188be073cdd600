"""The directory of a training run: which one, what a run finds there, and the files that it writes."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm.checkpoint import save_checkpoint
from lm.config import RunOptions, TrainConfig, as_plain, config_id, run_name, with_defaults
from lm.errors import CheckpointError, ConfigError
from lm.export import is_export
from lm.files import naming, remove_temporaries, take_lock, write_atomic, write_json
from lm.metrics import perplexity
from lm.model import AWDLSTM, count_parameters
from lm.run import Run
from lm.runtime import git_state, peak_rss_mb, versions
from lm.units import summary


def choose_run_dir(config: TrainConfig, options: RunOptions) -> Path:
    """The run directory.

    Raises ConfigError or CheckpointError when it is that of the run to fine-tune, or an export, and when --resume names
    a checkpoint of another run or none.
    """
    usual, automatic = Path(options.out_dir or Path("runs") / run_name(config)), options.resume in ("", "auto")
    named = [usual] if automatic else [Path(options.resume), Path(options.resume).parent]
    if export := next(filter(is_export, named), None):
        if not options.resume:
            raise ConfigError(f"--out-dir: {export} holds an export, which stays as it is; choose another")
        raise CheckpointError(
            f"--resume: {export} is an export, without the state that training continues from; "
            f"to train its model further: --finetune {export} --out-dir DIR"
        )
    if automatic:
        if config.finetune and usual.absolute() == Path(config.finetune).absolute():
            raise ConfigError(f"--out-dir: {usual} is the run to fine-tune, which stays as it is; choose another")
        return usual
    if (Path(options.resume) / "config.json").exists():
        raise ConfigError(
            f"--resume: {options.resume} is a run directory; give --out-dir {options.resume} --resume auto"
        )
    if not Path(options.resume).exists():
        raise CheckpointError(f"{options.resume}: no such checkpoint")
    home = Path(options.resume).absolute().parent.parent
    if not (home / "config.json").exists():
        raise CheckpointError(f"--resume: {options.resume} does not lie in the ckpt folder of a run directory")
    if options.out_dir and usual.absolute() != home:
        raise ConfigError(f"--resume: {options.resume} belongs to the run in {home}, not to --out-dir {usual}")
    return home


def finished_result(config: TrainConfig, path: Path, options: RunOptions) -> dict[str, Any] | None:
    """The result in `path` if all that is asked for is there. Raises ConfigError if a run is there and not resumed."""
    if (path / "config.json").exists() and not options.resume:
        raise ConfigError(f"--out-dir: {path} holds a run already: continue it with --resume auto, or choose another")
    try:
        result = json.loads((path / "result.json").read_bytes())
        complete = result["status"] == "completed" and with_defaults(result["config"]) == as_plain(config)
        tested = result["test_loss"] is not None or not options.eval_test
        return result if complete and tested and summary(result) else None
    except (OSError, ValueError, LookupError, TypeError):  # damaged: it is computed again
        return None


def _check_writable(copy: Path) -> None:
    """Raise ConfigError unless the file that `--save` names can be written; else an epoch would be lost to it."""
    if copy.is_dir():
        raise ConfigError(f"--save: {copy} is a folder; name a file")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=copy.parent).close()
    except OSError as error:
        raise ConfigError(f"--save: {copy} cannot be written: {error.strerror}") from None


class RunDir:
    """The files of one run's directory; each appears complete or not at all."""

    def __init__(self, path: Path, copy_best_to: str = "") -> None:
        self.path, self._copy = path, copy_best_to
        self.last, self.best = path / "ckpt" / "last.pt", path / "ckpt" / "best.pt"
        self._found = self._stamp()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here. The kernel drops the lock of a process that ends, however it ends.

        Raises ConfigError, naming the process that trains here already, or if one has since this object was made.
        """
        path = self.path / "train.lock"
        lock = take_lock(path, wait=False)
        if lock is None:
            raise ConfigError(
                f"--out-dir: process {path.read_text() or 'unknown'} is training in {self.path}: "
                "wait for it, end it, or choose another directory"
            )
        try:
            if self._stamp() != self._found:
                raise ConfigError(f"--out-dir: another process has just trained in {self.path}; start again")
            os.ftruncate(lock, 0)
            with naming(path):
                os.write(lock, str(os.getpid()).encode())
            for folder in (self.path, self.last.parent):
                remove_temporaries(folder)
            yield
        finally:
            os.close(lock)

    def prepare(self, run: Run) -> None:
        """Create the directory and write what describes the run. Raises ConfigError if `--save` cannot be written."""
        if self._copy:
            _check_writable(Path(self._copy))
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "result.json").unlink(missing_ok=True)
        environment = versions(run.device, run.model.precision) | {"git": git_state(), "argv": sys.argv}
        write_json(self.path / "env.json", environment)
        run.corpus.tokenizer.save(self.path / "tokenizer.json")
        write_json(self.path / "config.json", as_plain(run.config))

    def save_last(self, run: Run, log_position: int) -> None:
        """Write last.pt, from which the run continues bit for bit; the one before stays as last.prev.pt."""
        save_checkpoint(self.last, run.state_dict(log_position), keep_previous=True)

    def save_best(self, run: Run, model: AWDLSTM) -> None:
        """Write best.pt, and the copy that `--save` asks for."""
        save_checkpoint(self.best, run.best_state(model))
        self.copy_best()

    def copy_best(self) -> None:
        """Write the copy of best.pt that `--save` asks for, if it does."""
        if self._copy:
            write_atomic(Path(self._copy), lambda file: file.write(self.best.read_bytes()))

    def _stamp(self) -> tuple[int, ...]:
        """Another value after a process has written the checkpoint or the result of this run."""
        files = [path for path in (self.last, self.path / "result.json") if path.exists()]
        return tuple(path.stat().st_mtime_ns for path in files)

    def write_result(self, run: Run, status: str, scores: dict[str, Any]) -> dict[str, Any]:
        """Write result.json, the last file of a run, and return its content."""
        progress, known = run.progress, math.isfinite(run.progress.best_loss)
        result = {
            "status": status, "id": config_id(run.config), "config": as_plain(run.config), "seed": run.config.seed,
            "dataset": run.corpus.name, "best_epoch": progress.best_epoch,
            "valid_loss": progress.best_loss if known else None,
            "valid_ppl": perplexity(progress.best_loss) if known else None,
            "train_loss": None, "train_ppl": None, "test_loss": None, "test_ppl": None, **scores,
            "activation": progress.best_activation, "params": count_parameters(run.model),
            "epochs": progress.epoch - 1, "steps": progress.step, "tokens": progress.tokens,
            "averaged": progress.best_averaged, "seconds": round(progress.seconds, 2),
            "tokens_per_s": round(progress.tokens / max(progress.seconds, 1e-9)), "peak_rss_mb": round(peak_rss_mb()),
            "versions": versions(run.device, run.model.precision), "git": git_state(),
            "corpus_sha256": run.corpus.sha256,
        }  # fmt: skip
        write_json(self.path / "result.json", result)
        return result
