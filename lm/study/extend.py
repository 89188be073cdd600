"""A study that is given more epochs: its runs go on from where the shorter ones ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from pathlib import Path

from lm.base.files import read_file, scratch_folder
from lm.base.rundir import RunDir
from lm.config.values import as_plain, config_id, resume_conflicts
from lm.study.executors import Job
from lm.training.results import finished_result

logger = logging.getLogger(__name__)


def begin_with_shorter(job: Job) -> None:
    """Copy what the longest finished run of fewer epochs left into the directory of a run that has not begun.

    Run directories of a study are named after their configurations. The shorter run stays as it is. Where what
    a run computes depends on its number of epochs nothing is copied, and the log says so.
    """
    home = job.run_dir
    if job.rung or home.last.exists():
        return
    for epochs in sorted((n for n in _epochs_beside(home) if n < job.config.epochs), reverse=True):
        config = dataclasses.replace(job.config, epochs=epochs)
        shorter = RunDir(home.path.parent / config_id(config))
        if not shorter.last.exists() or finished_result(shorter, config, tested=False) is None:
            continue
        if resume_conflicts(job.config, as_plain(config)):
            logger.info("%s: begins anew, since what it computes depends on --epochs", job.name)
            return
        # The checkpoint, by which a run is known to have begun, comes last.
        beside = (shorter.metrics, shorter.log, shorter.config, shorter.tokenizer, shorter.events)
        for part in (*beside, shorter.last.parent):
            _copy(part, home.path / part.name)
        logger.info("%s: goes on from the end of %s, %d epochs", job.name, shorter, epochs)
        return


def _epochs_beside(home: RunDir) -> set[int]:
    """Numbers of epochs of the runs in the study's folder; a damaged config.json tells none."""
    found = set()
    for path in home.path.parent.glob("*/config.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            epochs = json.loads(read_file(path))["epochs"]
            found |= {epochs} if type(epochs) is int and epochs > 0 else set()
    return found


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder, if it is there: whole or not at all, as the sweep may be killed."""
    if not source.exists() or target.exists():
        return
    with scratch_folder(target.parent) as scratch:
        copy = scratch / source.name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy)
        copy.rename(target)
