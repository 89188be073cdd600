"""The failures a user can meet, each with the exit code of the command line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

from lm.base.process import begin, imported, leave, show


class LMError(Exception):
    """Base of every failure that is reported as one message instead of a traceback."""

    exit_code = 1


class ConfigError(LMError):
    """A flag or a combination of flags makes no sense; the message names the flag."""

    exit_code = 2


class CorpusError(LMError):
    """A corpus is missing, damaged or unusable; the message names the file and the remedy."""

    exit_code = 3


class DivergedError(LMError):
    """A non-finite loss or gradient was met; raised before the update that would spread it."""

    exit_code = 4


class CheckpointError(LMError):
    """A checkpoint is missing, damaged, or belongs to another model or corpus."""

    exit_code = 5


class Interrupted(LMError):
    """A run stopped with a checkpoint saved: by a signal (exit code 128 + its number) or its time limit (0)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory is what failed: PyTorch has an error of its own for GPUs, and only the words for CPUs."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error)


def run_cli(main: Callable[[], None], smaller: str = "") -> NoReturn:
    """Run a command-line entry point and exit with its code, turning `LMError` into one message.

    What the program logs is shown on stderr, details excluded. Out of memory, `smaller` says what to make smaller.
    """
    begin()
    imported()
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.getLogger("lm").setLevel(logging.INFO)  # ours alone: the hub's client logs every request
    try:
        main()
        show("")
    except LMError as error:
        leave(error.exit_code, f"error: {error}" if error.exit_code else str(error))
    except BrokenPipeError:  # `python -m lm.corpus ... | head`: the reader left, which is not our failure
        leave(0)
    except OSError as error:  # a full disk, a folder that cannot be made, a file where a folder should be
        leave(1, f"error: {error.filename or 'file'}: {error.strerror or error}")
    except UnicodeEncodeError as error:  # the name of a folder that is no UTF-8, and no flag, which would be refused
        leave(ConfigError.exit_code, f"error: not UTF-8: {error.object!r}; rename it")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = f": use a smaller {smaller}" if smaller else ""
        leave(ConfigError.exit_code, f"error: out of memory{advice} ({' '.join(str(error).split())[:200]})")
    except KeyboardInterrupt:
        leave(130, "interrupted")
    leave(0)
