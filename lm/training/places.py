"""Checks that a run replaces no file of others in its directory, no earlier run, and by `--save` only a checkpoint."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from lm.base.errors import CheckpointError, ConfigError
from lm.base.files import read_file
from lm.base.rundir import RunDir
from lm.config.values import config_from_dict


def check_new(run_dir: RunDir, *, resume: bool) -> None:
    """Call where a run is to begin, with `resume` for `--resume auto`, which found nothing to continue.

    Raises:
        ConfigError: the directory holds a run, or files of something else that a run would replace.
        CheckpointError: `resume`, and only the checkpoint to continue from is missing of an earlier run.
    """
    found = next((path for path in run_dir.own_files if os.path.lexists(path)), None)
    if found is None:
        return
    if not _holds_a_run(run_dir):
        raise ConfigError(f"--out-dir: {found} is there and of no run of this program; choose another directory")
    if not resume:
        raise ConfigError(
            f"--out-dir: {run_dir} holds a run already: continue it with --resume auto, or choose another"
        )
    for path, kept in ((run_dir.best, run_dir.best.exists()), (run_dir.result, _is_completed(run_dir.result))):
        if kept:
            raise CheckpointError(
                f"{run_dir.last}: not there, so the run cannot be continued, and begun anew it would replace {path}: "
                "put last.pt back, choose another --out-dir, or delete what is left of the run"
            )


def _holds_a_run(run_dir: RunDir) -> bool:
    """Whether the files there are those of a run, perhaps of one killed before it had written its configuration."""
    if any(path.exists() for path in (run_dir.lock, run_dir.last, run_dir.best)):
        return True
    try:
        config_from_dict(json.loads(read_file(run_dir.config)))
    except (OSError, ValueError, RecursionError, ConfigError):
        return False
    return True


def _is_completed(result: Path) -> bool:
    """Whether the result is of a complete run, of whatever configuration: `finished_result` asks for a certain one."""
    try:
        return json.loads(read_file(result))["status"] == "completed"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def check_copy(copy: Path, run_dir: RunDir) -> None:
    """Raise ConfigError, naming `--save`, unless its file can be written and holds nothing but an earlier copy.

    Told before training, since an epoch would be lost to it.
    """
    try:
        if copy.is_dir():
            raise ConfigError(f"--save: {copy} is a folder; name a file")
        _check_free(copy, run_dir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=copy.parent).close()
    except OSError as error:
        raise ConfigError(f"--save: {copy} cannot be written: {error.strerror}") from None


def _check_free(copy: Path, run_dir: RunDir) -> None:
    target = copy.resolve()
    home = run_dir.path.resolve()
    locks = (run_dir.lock, run_dir.run_lock, run_dir.sweep_lock)
    named = {path.name for path in (*run_dir.own_files, *locks, run_dir.log, run_dir.output)}
    if (target.parent == home and target.name in named) or home / "ckpt" in target.parents:
        raise ConfigError(f"--save: {copy} is a file of the run itself; name another")
    if target.parent.name == "ckpt" and RunDir(target.parent.parent).is_run:
        raise ConfigError(f"--save: {copy} is a checkpoint of another run; name another file")
    try:
        size = copy.stat().st_size
    except FileNotFoundError:
        return
    if not copy.is_file():
        raise ConfigError(f"--save: {copy} is no regular file; name another")
    if size:
        from lm.training.checkpoint import load_checkpoint  # a sweep imports this module, and no PyTorch

        try:
            load_checkpoint(copy)
        except CheckpointError:
            raise ConfigError(f"--save: {copy} is there and no checkpoint; name another file, or delete it") from None
