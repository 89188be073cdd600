"""Metric records: `metrics.jsonl` first, TensorBoard and the progress line from the same values."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lm.files import LineFile, naming

logger = logging.getLogger(__name__)

# Nats whose exponential is a float still.
LARGEST_LOSS = 709.0


class IntervalMeans:
    """Means of per-update values over the updates since the last record, summed on the device without a transfer."""

    names = ("loss", "ar", "tar", "grad_norm", "clipped")

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self._updates = self._targets = 0

    def add(self, loss: Tensor, terms: dict[str, Tensor], norm: Tensor, max_norm: float, targets: int) -> None:
        """Add the values of one update, its loss weighted with its number of targets; `count` it as well."""
        clipped = norm > max_norm if max_norm else torch.zeros_like(norm)
        zero = torch.zeros_like(loss)
        row = [loss * targets, terms.get("ar", zero), terms.get("tar", zero), norm, clipped]
        self._sums += torch.stack([value.detach().to(torch.float64) for value in row])

    def count(self, targets: int) -> None:
        """Count one update of so many targets; apart from `add`, which may be replayed on the device without Python."""
        self._updates += 1
        self._targets += targets

    def take(self) -> dict[str, float]:
        """Means since the last call (loss in nats per target, clipped as a fraction); perplexity of the loss."""
        nats, *others = self._sums.tolist()
        means = [nats / self._targets, *(value / self._updates for value in others)]
        self._sums.zero_()
        self._updates = self._targets = 0
        return dict(zip(self.names, means, strict=True)) | {"ppl": perplexity(means[0])}

    def finite(self) -> bool:
        """Whether every value since the last record is finite; waits for the device."""
        return bool(self._sums.isfinite().all())

    @property
    def updates(self) -> int:
        """Updates since the last record."""
        return self._updates

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts so far."""
        return {"sums": self._sums.clone(), "updates": self._updates, "targets": self._targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums.copy_(state["sums"])
        self._updates, self._targets = state["updates"], state["targets"]


def perplexity(loss: float) -> float:
    """exp(nats per target), kept below the largest float so that every record is valid JSON."""
    return math.exp(min(loss, LARGEST_LOSS))


class RunLog:
    """Writes the records of one run; a context manager.

    A resumed run passes the checkpoint's `position` (bytes of metrics.jsonl) and `step`: what a killed process wrote
    after that checkpoint is cut off, so that no update is recorded twice.
    """

    def __init__(self, run_dir: Path, *, position: int = 0, step: int = 0, tensorboard: bool = True) -> None:
        self._writer, self._events = None, run_dir / "tb"
        with ExitStack() as opened:
            self._file = LineFile(run_dir / "metrics.jsonl")
            opened.callback(self._file.close)
            self._file.truncate(position)
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter  # half a second to import

                opened.callback(setattr, threading, "excepthook", threading.excepthook)
                threading.excepthook = _hide_failed_writes
                with naming(self._events):
                    self._writer = SummaryWriter(str(self._events), purge_step=step + 1)
            self._opened = opened.pop_all()
        self._bar = tqdm(total=0, unit="tok", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        # After an error its message is the one to show: a full disk would fail again here.
        with self._opened, suppress(OSError) if error else naming(self._events):
            if self._writer:
                self._writer.close()

    def sync(self) -> int:
        """Put every record on the disk; returns how many bytes of metrics.jsonl that is, for a checkpoint."""
        self._file.sync()
        if self._writer:
            with naming(self._events):
                self._writer.flush()
        return self._file.size

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one record; `kind` is `step` or `epoch`. Nested values appear in TensorBoard as `kind/name/inner`."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._writer:
            with naming(self._events):
                for name, value in values.items():
                    rows = value.items() if isinstance(value, dict) else [("", value)]
                    for inner, number in rows:
                        self._writer.add_scalar("/".join(filter(None, (kind, name, inner))), number, step)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """A distribution, for TensorBoard alone."""
        if self._writer:
            with naming(self._events):
                self._writer.add_histogram(name, values.float().cpu(), step)

    def hparams(self, config: dict[str, Any], metrics: dict[str, float]) -> None:
        """The configuration with the final metrics, for TensorBoard's HPARAMS tab."""
        if self._writer:
            plain = {
                name: value if isinstance(value, int | float | str) else str(value) for name, value in config.items()
            }
            with naming(self._events):
                self._writer.add_hparams(plain, metrics, run_name=".")

    def start_epoch(self, epoch: int, epochs: int, targets: int, done: int) -> None:
        """Begin the progress line of an epoch of `targets` tokens, of which `done` are already behind."""
        self._bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
        self._bar.reset(total=targets)
        self._bar.update(done)

    def progress(self, tokens: int, text: str = "") -> None:
        """Advance the progress line."""
        if text:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(tokens)

    def message(self, text: str, level: int = logging.INFO) -> None:
        """A line for people, above the progress line and in train.log; DEBUG: in train.log alone."""
        with tqdm.external_write_mode():
            logger.log(level, text)


def _hide_failed_writes(failure: threading.ExceptHookArgs) -> None:
    """For `threading.excepthook`: TensorBoard's thread passes a failed write on to the caller's next call."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


class _LineHandler(logging.StreamHandler):
    """Raises what `logging` would print the traceback of: a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: D102, N802 - logging's
        raise


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append every message of this package to `path` as well, details included; OSError on a full disk."""
    file = LineFile(path)
    package, handler = logging.getLogger("lm"), _LineHandler(file)
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        file.close()
