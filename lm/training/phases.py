"""Where the time of a training step goes: by the clock on a CPU, by events on a GPU, whose work runs later than it is
asked for.

    phases = timed_phases(run)
    phases.begin()         # before each step
    phases.end()           # after a turn of steps, once the GPU has done its work
    phases.medians()       # of all steps on a CPU, of the last steps of the turns on a GPU

Events are part of the CUDA graph that a step is recorded into, and hold the times of its latest replay.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import lm.nn.lstm
from lm.training.run import Run


class Phases:
    """Times of a step's phases, by the clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def begin(self) -> None:
        """A step begins."""
        for spent in self.seconds.values():
            spent.append(0.0)

    def end(self) -> None:
        """A turn of steps has ended, and the device has done its work."""

    def medians(self) -> dict[str, float]:
        """Seconds of each phase, `forward` without the masks, which it draws."""
        found = {phase: statistics.median(spent) for phase, spent in self.seconds.items()}
        return found | ({"forward": found["forward"] - found["masks"]} if found else {})

    def forget(self) -> None:
        """Forget the times so far."""
        for spent in self.seconds.values():
            spent.clear()

    def watch(self, phase: str, owner: Any, name: str) -> None:
        """Let the calls of `owner.name` be a phase. They add up, within a step."""
        self.seconds[phase] = []
        setattr(owner, name, functools.wraps(getattr(owner, name))(self._timed(phase, getattr(owner, name))))

    def _timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments, **keywords)
            self.seconds[phase][-1] += time.perf_counter() - started
            return result

        return wrapper


class GPUPhases(Phases):
    """The same by pairs of events, one for each call of a phase within a step."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}
        self._calls: dict[str, int] = {}

    def begin(self) -> None:  # noqa: D102 - as the base class
        self._calls = dict.fromkeys(self.seconds, 0)

    def end(self) -> None:  # noqa: D102 - as the base class
        for phase, pairs in self._pairs.items():
            self.seconds[phase].append(sum(start.elapsed_time(end) for start, end in pairs) / 1e3)

    def _timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        pairs = self._pairs[phase] = []

        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            number = self._calls[phase]
            self._calls[phase] += 1
            if number == len(pairs):
                start, end = (torch.cuda.Event(enable_timing=True, external=True) for _ in range(2))
                pairs.append((start, end))
            start, end = pairs[number]
            start.record()
            result = call(*arguments, **keywords)
            end.record()
            return result

        return wrapper


def timed_phases(run: Run) -> Phases:
    """Watch a run's steps: `masks` of weight drop, `forward`, `loss`, `backward` and `update`."""
    phases = GPUPhases() if run.device.type == "cuda" else Phases()
    phases.watch("masks", lm.nn.lstm, "keep_mask")
    phases.watch("forward", run.model, "forward")
    phases.watch("loss", run.model, "loss")
    phases.watch("backward", run, "backward")
    phases.watch("update", run.optimizer, "step")
    return phases
