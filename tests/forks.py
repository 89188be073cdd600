"""Commands of this project as processes of their own, forked from one that has imported PyTorch already.

    python -m tests.forks      # a request a line on stdin, an answer a line on stdout

The child of a fork is `python -m lm.MODULE ARGUMENTS` from the first line of its `main` on: its own process, working
directory, environment, output and exit code. It spares each command the four CPU seconds that importing PyTorch takes.
"""

from __future__ import annotations

import fcntl
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
# Of every process that a test starts; one thread unless the variable says otherwise: tiny tensors gain nothing by more.
THREADS = os.environ.get("OMP_NUM_THREADS", "1")
# The most that a command may print, which stays in a pipe until it has ended.
_PIPE_BYTES = 1 << 20
# What most commands import; a module of this project that is missing here is imported by each child that needs it.
_PRELOADED = ("torch._dynamo", "torch.utils.tensorboard", "lm.train", "lm.evaluate", "lm.generate", "lm.sweep")


def environment() -> dict[str, str]:
    """Environment of the processes: the program on the path, few threads, no hub."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str
    calls: list[str]
    """the calls that were watched (tests/faults.py), each before it was made"""


class Forks:
    """A context manager: the process that forks, started with the first command."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        if self._server:
            self._server.stdin.close()
            self._server.wait()

    def run(
        self,
        module: str,
        *arguments: object,
        folder: Path,
        variables: dict[str, str] | None = None,
        processes: int = 1,
        faulty: int = 0,
        **faults: Any,
    ) -> Ended:
        """Run `python -m lm.MODULE ARGUMENTS` in a working directory, with `variables` in its environment.

        `processes`: as torchrun would start so many; the exit code is that of the first, what all print is one text.
        `faults` are those of `tests.faults.install`, in process number `faulty`.
        """
        if not self._server:
            command, pipe = [sys.executable, "-m", "tests.forks"], subprocess.PIPE
            self._server = subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, text=True)
        request = {
            "module": module, "arguments": [str(argument) for argument in arguments], "folder": str(folder.resolve()),
            "environment": environment() | (variables or {}), "faults": faults,
            "processes": processes, "faulty": faulty,
        }  # fmt: skip
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code, stdout, stderr, calls = json.loads(self._server.stdout.readline())
        return Ended(code, stdout, stderr, calls.splitlines())


class _Run:
    """The process of a sweep's run, with what `subprocess.Popen` offers."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def _fork_run(job: Any, environment: dict[str, str]) -> _Run:  # noqa: RET503
    """`lm.study.executors.launch` by a fork: the same process, but for the start of Python."""
    from lm.study import executors

    job.run_dir.path.mkdir(parents=True, exist_ok=True)
    parent = str(os.getpid())
    if pid := os.fork():
        return _Run(pid)
    log = os.open(job.run_dir.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.environ.update(environment)
    sys.argv = ["lm.study.executors", parent, str(job.run_dir), str(job.processes), *job.arguments]
    _become(executors.main, log, log)


def _become(main: Callable[[], None], stdout: int, stderr: int) -> NoReturn:
    """Run the `main` of a command as the rest of this process."""
    from lm.base.errors import run_cli

    code: object = 1
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # As at the start of Python, instead of those through which this process was asked.
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
        out, err = (io.BufferedWriter(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
        sys.stdout = io.TextIOWrapper(out)
        sys.stderr = io.TextIOWrapper(err, errors="backslashreplace", line_buffering=True)
        run_cli(main)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _fork_ranks(processes: int) -> int:
    """Become so many processes that know each other by the variables of torchrun; returns the number of this one."""
    if processes == 1:
        return 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    rank = next((rank for rank in range(1, processes) if not os.fork()), 0)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return rank


def _child(request: dict[str, Any], pipes: list[int]) -> NoReturn:
    """Become the command that was asked for, with pipes for stdout, stderr and calls."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    rank = _fork_ranks(request["processes"])
    module = importlib.import_module(f"lm.{request['module']}")
    if request["module"] == "sweep":
        from lm.study import executors

        executors.launch = _fork_run
    if request["faults"] and rank == request["faulty"]:
        from tests import faults

        faults.install(request["folder"], pipes[2], **request["faults"])
    sys.argv = [module.__name__, *request["arguments"]]
    _become(module.main, *pipes[:2])


def _serve() -> None:
    import torch

    for name in _PRELOADED:
        importlib.import_module(name)
    torch.set_num_threads(int(THREADS))
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
        deadline = time.monotonic() + 600
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.002)
        answer: list[object] = [os.waitstatus_to_exitcode(ended[1])]
        for end, _ in pipes:
            with open(end, encoding="utf-8", errors="replace") as stream:
                answer.append(stream.read())
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
