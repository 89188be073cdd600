"""How a command begins and ends: standard streams that are there, Ctrl-C while it imports, its output and exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lm.base.files import naming
from lm.base.memory import use_huge_pages
from lm.base.threads import wait_passively

# What asks a process to end: Ctrl-C, a batch system, a terminal that was closed. Windows has no SIGHUP.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def begin() -> None:
    """Call before PyTorch is imported, which takes seconds: until `run_cli` an interrupt ends the process in one line.

    Standard streams that the caller has closed are opened on the null device: else the next file would take their
    number, and whatever writes there would write into that file. Those that are open write UTF-8. Threads that wait
    sleep, see `lm.base.threads`, and large tensors lie in large pages, see `lm.base.memory`.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
    # Whatever the locale says: text of a corpus cannot be had in less. A name of a file that is no UTF-8 comes out on
    # stdout in its own bytes, on stderr escaped.
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # of its position, where a pipe has taken the place of the file that it was
                stream.reconfigure(encoding="utf-8", errors=errors)
    wait_passively()
    use_huge_pages()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def imported() -> None:
    """Let an interrupt be a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def show(text: str) -> None:
    """Write to standard output, at once. Raises OSError, which names it; BrokenPipeError where its reader has left."""
    with naming(Path("standard output")):
        sys.stdout.write(text)
        sys.stdout.flush()


def leave(code: int, message: str = "") -> NoReturn:
    """End the process with an exit code and, on stderr, a message.

    Signals change nothing from here on: batch systems repeat theirs, and Python takes its time to shut down. Neither
    does a stream that takes no more, whose rest Python would try to write again.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{message}\n" if message else "")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
