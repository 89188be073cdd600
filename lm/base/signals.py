"""Stop signals as a flag, so that what runs can save before it ends."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType, TracebackType

from lm.base.errors import Interrupted
from lm.base.process import STOP_SIGNALS


class StopSignals:
    """Context manager that turns SIGINT, SIGTERM, SIGHUP and a time limit into a flag, so that a run can save first.

    The first signal decides the exit code. A SIGINT after it ends the process at once, as it would without this class;
    others after it change nothing, since batch systems repeat theirs. Handlers are restored on exit. Under `nohup`,
    which has SIGHUP ignored, it stays so.
    """

    def __init__(self, max_minutes: float = 0.0) -> None:
        """`max_minutes`: ask to stop after this time as well; 0: never."""
        self.received: int | None = None
        self._minutes = max_minutes
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf

    def __enter__(self) -> StopSignals:
        hang_up = getattr(signal, "SIGHUP", None)
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in STOP_SIGNALS
            if not (number == hang_up and signal.getsignal(number) == signal.SIG_IGN)
        }
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    @property
    def asked(self) -> bool:
        """Whether a signal has arrived or the time is up."""
        return self.received is not None or time.monotonic() >= self._deadline

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived or the time is up."""
        if self.received is not None:
            raise Interrupted(f"stopped by {signal.Signals(self.received).name}", 128 + self.received)
        if self.asked:
            raise Interrupted(f"stopped after {self._minutes:g} minutes (--max-minutes)", 0)
