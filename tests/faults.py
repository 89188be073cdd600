"""Faults of the machine at one system call of a training run, which tests/forks.py starts: see `install`."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import math
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.forks import Ended, Forks

# Calls that need room on the disk; the others work on a full one.
_NEED_ROOM = ("open", "write", "fsync", "mkdir")


class Hook:
    """Counts the watched calls, logs each as `name path`, and does what it is told at one of them.

    `action`: `kill` (SIGKILL; in the middle of a write), `full` (from there on there is no room: a write stops in the
    middle), or a list of signals that arrive at that moment.
    """

    def __init__(self, folder: str, log: int, action: str | list[int], at: int) -> None:
        self._folder, self._action, self._at, self._count = folder, action, at, 0
        self._log, self._write = log, os.write

    def sees(self, path: Any) -> bool:
        """Whether calls on `path` are counted. TensorBoard's are not: they come from a thread, at any moment."""
        path = os.path.abspath(os.fsdecode(path))
        return path.startswith(self._folder + os.sep) and "/tb/events" not in path

    def __call__(self, name: str, path: Any = "", half: Callable[[], Any] | None = None) -> None:
        """Before a call: `half` does the first half of it."""
        self._count += 1
        self._write(self._log, f"{name} {path}\n".encode())
        if self._count < self._at or not self._at:
            return
        if self._action == "full":
            if name in _NEED_ROOM:
                if half:
                    half()
                named = () if name in ("write", "fsync") else (path,)  # as the kernel's own
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)
        elif self._count == self._at:
            if self._action == "kill":
                if half:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)
            for number in self._action:
                os.kill(os.getpid(), number)


def _hook_system_calls(hook: Hook) -> None:
    """Put the hook before every call that changes a file."""

    def before(name: str) -> None:
        real = getattr(os, name)

        def call(target: Any, *arguments: Any, **keywords: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            if hook.sees(path) and not (name == "open" and not arguments[0] & (os.O_WRONLY | os.O_RDWR)):
                half = (lambda: real(target, arguments[0][: len(arguments[0]) // 2])) if name == "write" else None
                hook(name, path, half)
            return real(target, *arguments, **keywords)

        setattr(os, name, call)

    for name in ("open", "write", "fsync", "replace", "rename", "unlink", "truncate", "ftruncate", "mkdir", "rmdir"):
        before(name)

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            hook("write", self.name, lambda: super(Raw, self).write(memoryview(data)[: len(data) // 2]))
            return super().write(data)

    real_open = io.open

    def open_hooked(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if isinstance(file, int) or mode[0] == "r" or not hook.sees(file):
            return real_open(file, mode, *arguments, **keywords)
        hook("open", file)
        buffered = io.BufferedWriter(Raw(os.fspath(file), mode[0]))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    builtins.open = io.open = open_hooked


def _hook_windows(hook: Hook) -> None:
    """Put the hook before every window's computation."""
    import torch

    from lm.text.batching import BPTTWindows

    real = BPTTWindows.__next__

    def following(self: BPTTWindows) -> Any:
        window = real(self)
        hook("training" if torch.is_grad_enabled() else "evaluation")
        return window

    BPTTWindows.__next__ = following


def _switch_after(epoch: int) -> None:
    """Make NT-ASGD with --nonmono 1 switch after this epoch: it is told of made-up losses, the last one worse."""
    from lm.training.averaging import NTASGD

    real = NTASGD.after_validation
    NTASGD.after_validation = lambda self, valid_loss: real(self, 2.0 if len(self.history) == epoch - 1 else 1.0)


def _not_a_number_in(update: int) -> None:
    """Make the activation penalties of this update no numbers."""
    import lm.train

    real = lm.train.regularization_terms
    calls = itertools.count(1)

    def terms(*arguments: Any) -> dict[str, Any]:
        factor = math.nan if next(calls) == update else 1.0
        return {name: term * factor for name, term in real(*arguments).items()}

    lm.train.regularization_terms = terms


def install(
    folder: str, log: int, action: str | list[int] = "", at: int = 0, file_limit: int = 0, switch: int = 0, nan: int = 0
) -> None:
    """Watch every call of this process that changes a file in `folder`, and every window; log them to a descriptor.

    `action` is done at call number `at`; no file grows beyond `file_limit`; NT-ASGD switches after epoch `switch`.
    The penalties of update `nan` are not numbers.
    """
    if nan:
        _not_a_number_in(nan)
    if switch:
        _switch_after(switch)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    hook = Hook(folder, log, action, at)
    _hook_system_calls(hook)
    _hook_windows(hook)


class Faults(Forks):
    """Training runs with faults."""

    def train(self, folder: Path, *arguments: object, action: str | list[int] = "", at: int = 0, **how: int) -> Ended:
        """Run `lm.train` in working directory `folder`, watched as `install` says."""
        return self.run("train", *arguments, folder=folder, action=action, at=at, **how)
