"""Training runs that meet one fault at one system call: a process that forks them, and its client `Faults`.

    python -m tests.faults      # a request a line on stdin, an answer a line on stdout

The child of a fork is `python -m lm.train` from the first line of its `main` on, in a process of its own with a hook at
every call that changes a file of the run directory or the token cache, and at every window of training and evaluation.
Forking spares each run the seconds that importing PyTorch takes.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# The most that a run may print, which stays in a pipe until it has ended.
_PIPE_BYTES = 1 << 20
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


def _child(request: dict[str, Any], pipes: list[int]) -> None:
    """Become the training run that was asked for, with pipes for stdout, stderr and calls; does not return."""
    from lm.base.errors import run_cli
    from lm.train import main

    os.chdir(request["folder"])
    for stream in (1, 2):
        os.dup2(pipes[stream - 1], stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], request["file_limit"]))
    hook = Hook(request["folder"], pipes[2], request["action"], request["at"])
    _hook_system_calls(hook)
    _hook_windows(hook)
    sys.argv = ["lm.train", *request["arguments"]]
    try:
        run_cli(main)
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code)


def _serve() -> None:
    import torch
    import torch._dynamo  # what follows is imported here once instead of in every child
    import torch.utils.tensorboard

    import lm.train  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        pipes = [os.pipe() for _ in range(3)]  # limits on files do not hold for them
        for _, end in pipes:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        child = os.fork()
        if not child:
            _child(request, [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        deadline = time.monotonic() + (request["kill_after"] or 120)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.001)
        answer = [os.waitstatus_to_exitcode(ended[1])]
        for end, _ in pipes:
            with open(end) as stream:
                answer.append(stream.read())
        print(json.dumps(answer), flush=True)


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    returncode: int
    stdout: str
    stderr: str
    calls: list[str]
    """the watched calls, each before it was made"""


class Faults:
    """A context manager: training runs with faults."""

    def __enter__(self) -> Faults:
        command, pipe = [sys.executable, "-m", "tests.faults"], subprocess.PIPE
        self._server = subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stdin.close()
        self._server.wait()

    def train(
        self,
        folder: Path,
        *arguments: object,
        action: str | list[int] = "",
        at: int = 0,
        kill_after: float = 0,
        file_limit: int = 0,
    ) -> Ended:
        """Run `lm.train` in working directory `folder`, in which every call that changes a file is watched.

        `action` is done at call number `at`; `kill_after` seconds comes SIGKILL; no file grows beyond `file_limit`.
        """
        request = {
            "arguments": [str(argument) for argument in arguments], "folder": str(folder.resolve()),
            "action": action, "at": at, "kill_after": kill_after, "file_limit": file_limit,
        }  # fmt: skip
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code, stdout, stderr, calls = json.loads(self._server.stdout.readline())
        return Ended(code, stdout, stderr, calls.splitlines())


if __name__ == "__main__":
    _serve()
