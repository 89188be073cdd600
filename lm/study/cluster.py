"""The runs of a sweep as tasks of a Ray cluster; Ray itself is optional (`pip install ray`)."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time
from typing import Any

from lm.base.errors import ConfigError
from lm.base.files import import_path
from lm.base.process import STOP_SIGNALS
from lm.study.executors import Executor, Job, LocalExecutor, Outcome, launch, outcome_of, visible_gpus

# Exit codes of a run that was ended from outside.
_KILLED = getattr(signal, "SIGKILL", signal.SIGTERM)  # which Windows lacks
_STOPPED = {code for number in (_KILLED, *STOP_SIGNALS) for code in (-number, 128 + number)}
# Settings that a process on another machine needs as well.
_PASSED_ON = ("LM_", "HF_", "OMP_", "GOMP_")


class RunStopped(Exception):
    """The process of a run was ended from outside; Ray tries the task again."""


def run_task(job: Job, directory: str) -> Outcome:
    """The Ray task of one run: its process on this node, from its start to its end."""
    os.chdir(directory)
    process = launch(job, {})
    try:
        while (code := process.poll()) is None:
            time.sleep(0.2)  # a cancelled task is interrupted between two steps of Python, not inside a system call
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code in _STOPPED:
        raise RunStopped(f"{job.name}: exit code {code}")
    return outcome_of(job, code)


def _environment(threads: int) -> dict[str, str]:
    """Environment of the tasks: this program, its settings, and no more threads than the tasks ask the cluster for."""
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    return passed_on | {"PYTHONPATH": import_path(), "OMP_NUM_THREADS": str(threads)}


def _check_address(address: str) -> None:
    """Raise ConfigError if nothing listens at HOST:PORT, which Ray would take minutes to say."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(f"--ray-address {address}: no cluster answers there: {error}") from None


class RayExecutor:
    """Tasks of a Ray cluster, as many at a time as its CPUs (or GPUs, where it has some) carry, or `jobs`.

    Every node finds program, working directory and corpora at the paths they have here. Run directories are shared
    between the nodes or each node's own; then a run that moves to another node begins anew.
    """

    def __init__(self, address: str, jobs: int, threads: int, device: str, processes: int = 1) -> None:
        """Connect. Raises ConfigError if Ray is not installed, the cluster does not answer, or no node is enough."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise ConfigError("--executor ray: Ray is not installed; pip install ray") from None
        _check_address(address)
        try:
            ray.init(
                address=address or None,
                log_to_driver=False,
                logging_level="error",
                runtime_env={"env_vars": _environment(threads)},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = f"--ray-address {address}: no cluster answers there" if address else "--executor ray: no cluster"
            raise ConfigError(f"{where}: {error}") from None
        self._ray = ray
        self._jobs = jobs
        self._running: dict[Any, Job] = {}
        self._gpu = device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
        self._kind = "GPU" if self._gpu else "CPU"
        self._need = processes if self._gpu else threads * processes
        largest = max((node["Resources"].get(self._kind, 0) for node in ray.nodes() if node["Alive"]), default=0)
        if 0 < largest < self._need:  # a cluster may begin with nodes without any
            ray.shutdown()
            flag = "--processes-per-run" if processes > 1 else "--threads"
            need = f"{self._need} {self._kind}s"
            raise ConfigError(f"{flag}: a run needs {need} of one node; none has more than {largest:g}")
        self._task = ray.remote(run_task).options(
            num_cpus=threads * processes, num_gpus=processes * self._gpu, max_retries=5, retry_exceptions=[RunStopped]
        )

    def room(self) -> bool:
        """Whether the cluster, as large as it is at this moment, carries another run."""
        capacity = self._ray.cluster_resources().get(self._kind, 0) // self._need
        return len(self._running) < min(self._jobs or capacity, capacity)

    def start(self, job: Job) -> None:
        """Submit the task of a run."""
        self._running[self._task.remote(job, os.getcwd())] = job

    def finished(self) -> list[Outcome]:
        """Runs whose tasks have ended, those that Ray gave up on included."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        outcomes = []
        for reference in ready:
            job = self._running.pop(reference)
            try:
                outcomes.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                outcomes.append(Outcome(job, 1, None, [], f"{type(error).__name__}: {str(error).splitlines()[-1]}"))
        return outcomes

    def stop(self) -> None:
        """Cancel every task, which lets its process save, and wait for them."""
        for reference in self._running:
            self._ray.cancel(reference)
        self._ray.wait(list(self._running), num_returns=len(self._running), timeout=60)

    def close(self) -> None:
        """Leave the cluster, which ends this sweep's tasks."""
        self._ray.shutdown()


def make_executor(args: argparse.Namespace) -> Executor:
    """The place to compute that the flags name."""
    if args.executor == "ray":
        return RayExecutor(args.ray_address, args.jobs, args.threads, args.device, args.processes_per_run)
    return LocalExecutor(args.jobs, args.threads, visible_gpus(args.device), args.processes_per_run)
