"""The failures a user can meet, each with the exit code of the command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn


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


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory is what failed: PyTorch has an error of its own for GPUs, and only the words for CPUs."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error)


def run_cli(main: Callable[[], None]) -> NoReturn:
    """Run a command-line entry point and exit with its code, turning `LMError` into one message.

    What the program logs is shown on stderr, details excluded.
    """
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.getLogger("lm").setLevel(logging.INFO)  # ours alone: the hub's client logs every request
    try:
        main()
        sys.stdout.flush()
    except LMError as error:
        print(f"error: {error}" if error.exit_code else error, file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `python -m lm.corpus ... | head`: the reader left, which is not our failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that cannot be made, a file where a folder should be
        print(f"error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        sizes = "--batch-size, --bptt, --emsize, --nhid or --nlayers"
        print(f"error: out of memory: use a smaller {sizes} ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
