"""Metric records: `metrics.jsonl` first, TensorBoard and the progress line from the same values."""

from __future__ import annotations

import json
import logging
import sys
import threading
import typing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lm.base.device import peak_memory
from lm.base.files import LineFile, naming
from lm.base.rundir import RunDir

if typing.TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from lm.training.run import Run

logger = logging.getLogger(__name__)


class RunLog:
    """Writes the records of one run; a context manager.

    A resumed run passes the checkpoint's `position` (bytes of metrics.jsonl) and `step`: what a killed process wrote
    after that checkpoint is cut off, so that no update is recorded twice.
    """

    def __init__(self, run_dir: RunDir, *, position: int = 0, step: int = 0, tensorboard: bool = True) -> None:
        self._writer: SummaryWriter | None = None
        self._events = run_dir.events
        with ExitStack() as opened:
            self._file = LineFile(run_dir.metrics)
            opened.callback(self._file.close)
            self._file.truncate(position)
            self._file.cut_partial_line()
            if self._file.size < position:
                logger.warning("%s: damaged: records before update %d are missing", run_dir.metrics, step)
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
        """Write one record; `kind` is `step`, `valid` or `epoch`.

        Nested values appear in TensorBoard as `kind/name/inner`, lists not at all.
        """
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._writer:
            with naming(self._events):
                for name, value in values.items():
                    rows = value.items() if isinstance(value, dict) else [("", value)]
                    for inner, number in rows:
                        if isinstance(number, list):
                            continue
                        self._writer.add_scalar("/".join(filter(None, (kind, name, inner))), number, step)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """A distribution, for TensorBoard alone."""
        if self._writer:
            with naming(self._events):
                self._writer.add_histogram(name, values.float().cpu(), step)

    def hparams(self, config: dict[str, Any], metrics: dict[str, float | None]) -> None:
        """The configuration with the final metrics, for TensorBoard's HPARAMS tab; None: this run has no such figure.

        The tab has the columns of the run that it reads first, so every run names all of them.
        """
        if self._writer:
            plain = {
                name: value if isinstance(value, int | float | str) else str(value) for name, value in config.items()
            }
            from torch.utils.tensorboard.summary import hparams

            with naming(self._events):
                for summary in hparams(plain, metrics):
                    self._writer._get_file_writer().add_summary(summary)
                for name, value in metrics.items():
                    if value is not None:
                        self._writer.add_scalar(name, value)

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


def record_step(run: Run, log: RunLog, tokens_per_s: float) -> None:
    """Record the means over the updates since the last record."""
    means = run.means.take()
    epoch = run.progress.epoch
    step = run.progress.step
    rate = run.rate
    values = {"epoch": epoch, "lr": rate, **means, "tokens_per_s": round(tokens_per_s)}
    log.record("step", step, values | peak_memory(run.device))
    log.message(
        f"epoch {epoch:3}  step {step:7}  lr {rate:<8.4g} loss {means['loss']:.4f}  ppl {means['ppl']:8.6g}  "
        f"ar {means['ar']:.4f}  tar {means['tar']:.4f}  grad {means['grad_norm']:.3f}  {tokens_per_s:7.0f} tokens/s",
        logging.DEBUG,
    )
    log.progress(0, f"ppl {means['ppl']:.4g}")


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
    package = logging.getLogger("lm")
    handler = _LineHandler(file)
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        file.close()
