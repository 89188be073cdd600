"""A run on several processes of one machine: torchrun, but with the exit code and the last words of the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from lm.base.process import leave


def torchrun(processes: int) -> list[str]:
    """The command that starts so many processes of what follows it."""
    return ["torchrun", "--standalone", f"--nproc-per-node={processes}"]


def train_together(processes: int, arguments: Sequence[str]) -> None:
    """Train as `torchrun ... -m lm.train ARGUMENTS...` does, and end this process as the run has ended.

    A stop signal is passed on; the processes have saved when this one ends.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.disable(logging.CRITICAL)  # here, where nothing is told but what torchrun thinks of failures
    os.environ["PYTHONSAFEPATH"] = "1"  # this package, even where the working directory holds another one of its name
    try:
        main([*torchrun(processes)[1:], "-m", "lm.train", *arguments])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        leave(code if code >= 0 else 128 - code)
    except SignalException as error:
        leave(128 + error.sigval)
