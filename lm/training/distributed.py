"""One run on several processes: how they find each other, and the silent writer and log of all but the first.

Each process holds the whole model and computes its columns of the batch (`lm.base.ranks`). PyTorch's
DistributedDataParallel adds their gradients up during the backward pass, so that every process makes the same update.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from lm.base.errors import DivergedError, Interrupted, LMError
from lm.base.process import leave
from lm.base.ranks import RankLost, Ranks, this_rank
from lm.base.rundir import RunDir
from lm.training.log import RunLog, log_to
from lm.training.run import Run
from lm.training.writer import RunWriter


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started with this one, until the end of the program; only the first one speaks.

    What all of them raise, the first one tells. What another raises alone, as out of memory, that one tells itself.
    """
    ranks = this_rank()
    if ranks.size == 1:
        yield ranks
        return
    import torch.distributed as dist

    if not ranks.first:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
    # Between CPUs by gloo beside NCCL, since what decides the next step must not wait for a GPU's queue.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield ranks
    except LMError as error:
        if isinstance(error, DivergedError | Interrupted):  # torchrun ends those that are left when one has ended
            with suppress(RankLost):
                ranks.highest(0)
        if ranks.first:
            raise
        leave(error.exit_code)
    dist.destroy_process_group()


@contextmanager
def run_log(run_dir: RunDir, run: Run, position: int, *, tensorboard: bool) -> Iterator[RunLog]:
    """The records and messages of a run, which the first process writes; `position` as in `RunLog`."""
    if not run.ranks.first:
        yield SilentLog()
        return
    records = RunLog(run_dir, position=position, step=run.progress.step, tensorboard=tensorboard)
    with log_to(run_dir.log), records as log:
        yield log


class SilentLog(RunLog):
    """Of a process that is not the first: no record, no progress line."""

    def __init__(self) -> None:
        self._writer = None
        self._bar = tqdm(disable=True)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def sync(self) -> int:
        """Nothing."""
        return 0

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Nothing."""


class SilentWriter(RunWriter):
    """Of a process that is not the first: takes part where the first one's writing needs all, and writes nothing."""

    def __init__(self) -> None:
        super().__init__(RunDir(os.devnull))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The first process has the lock."""
        yield

    def _nothing(self, *arguments: Any, **keywords: Any) -> None:
        """Of what the first process alone does."""

    prepare = keep_best = save_kept = copy_best = _nothing

    def save_last(self, run: Run, log_position: int) -> None:
        """Give the first process the hidden state of this one's columns."""
        run.state_dict(log_position)

    def save_first(self, run: Run, log: RunLog) -> None:
        """As the first process decides."""
        if run.ranks.any(False):
            self.save_last(run, 0)

    def write_result(self, run: Run, status: str, scores: dict[str, Any]) -> dict[str, Any]:
        """Its content as this process knows it."""
        return self.result(run, status, scores)
