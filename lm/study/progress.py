"""What a sweep shows while it runs: a live block on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import math
import sys
import time
from types import TracebackType

from tqdm import tqdm

from lm.study.executors import Job, read_metrics
from lm.study.records import word_ppl

logger = logging.getLogger(__name__)
# Bytes at the end of metrics.jsonl that surely hold the last record of an epoch.
_TAIL = 1 << 18
# Lines of the block.
_LINES = 12
# Seconds between two drawings of the block, and between two reports in a log.
_REDRAW, _REPORT = 1, 60


def run_state(job: Job) -> tuple[float, str]:
    """Part of a run that is done (0 to 1), and in words where it is and its valid perplexity."""
    records = read_metrics(job.run_dir, _TAIL)
    if not records:
        return 0.0, "starting"
    ended = next((record for record in reversed(records) if record["kind"] == "epoch"), None)
    config = job.config
    step = records[-1]["step"]
    epoch = records[-1].get("epoch", 1)
    done = (epoch - 1) / config.epochs
    ppl = f", valid ppl {word_ppl(ended, 'valid'):.2f}" if ended else ""
    if ended:
        done = max(done, ended["epoch"] * step / max(ended["step"], 1) / config.epochs)
    if config.max_steps:
        done = max(done, step / config.max_steps)
    if done >= 1:
        return 1.0, f"scoring{ppl}"
    text = f"epoch {epoch}/{config.epochs}, step {step}"
    return done, text + ppl


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class LiveView:
    """Shows `total` runs; a context manager. The time left assumes that what remains goes as fast as what was done."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ended = 0
        self._gained = 0.0
        self._begun: dict[str, tuple[Job, float, float]] = {}
        self._started = time.monotonic()
        self._tty = sys.stderr.isatty()
        self._shown = -math.inf if self._tty else self._started
        self._bars: list[tqdm] = []

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for bar in reversed(self._bars):
            bar.close()

    def start(self, job: Job) -> None:
        """A run starts, perhaps from a checkpoint."""
        done = run_state(job)[0]
        self._begun[job.id] = job, done, time.monotonic()
        if not self._tty:
            logger.info("start  %s%s", job.name, "  (continued)" if done else "")

    def end(self, job: Job, text: str) -> None:
        """A run is settled; `text` says how."""
        self._ended += 1
        if job.id in self._begun:
            _, done, started = self._begun.pop(job.id)
            self._gained += 1 - done
            text += f" ({duration(time.monotonic() - started)})"
        left = "" if self._tty else self._left([run_state(other)[0] for other, *_ in self._begun.values()])
        with tqdm.external_write_mode():
            logger.info("%-5s  %s: %s%s", f"{self._ended}/{self._total}", job.name, text, left)

    def _left(self, running: list[float]) -> str:
        """`; about 5 min left`, if anything can be said; `running` holds the parts done of all runs that are on."""
        gained = self._gained + sum(running) - sum(done for _, done, _ in self._begun.values())
        remaining = self._total - self._ended - sum(running)
        if gained < 0.02 or remaining <= 0:
            return ""
        return f"; about {duration((time.monotonic() - self._started) * remaining / gained)} left"

    def show(self, waiting: int) -> None:
        """A summary and a line for every run that is on: drawn each second on a terminal, each minute in a log."""
        if time.monotonic() - self._shown < (_REDRAW if self._tty else _REPORT):
            return
        self._shown = time.monotonic()
        jobs = [job for job, *_ in self._begun.values()]
        states = [run_state(job) for job in jobs]
        summary = f"{self._ended} of {self._total} runs done, {len(jobs)} running"
        if waiting:
            summary += f", {waiting} run by another sweep"
        lines = [summary + self._left([done for done, _ in states])]
        lines += [f"  {100 * done:3.0f} %  {job.name}: {text}" for job, (done, text) in zip(jobs, states, strict=True)]
        if len(lines) > _LINES:
            lines = [*lines[: _LINES - 1], f"  and {len(lines) - _LINES + 1} more"]
        if self._tty:
            self._draw(lines)
        else:
            logger.info("%s", "\n".join(lines))

    def _draw(self, lines: list[str]) -> None:
        while len(self._bars) < len(lines):
            self._bars.append(tqdm(position=len(self._bars), bar_format="{desc}", leave=False, dynamic_ncols=True))
        for bar, line in zip(self._bars, lines + [""] * (len(self._bars) - len(lines)), strict=True):
            bar.set_description_str(line)
