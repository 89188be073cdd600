"""Stop signals as a flag, so that what runs can save before it ends."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from lm.base.errors import Interrupted


class StopSignals:
    """Context manager that turns SIGINT and SIGTERM into a flag, so that a run can save before it ends.

    The first signal decides the exit code. A SIGINT after it ends the process at once, as it would without this class;
    a SIGTERM after it changes nothing, since batch systems repeat theirs. Handlers are restored on exit.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.received is not None:
            raise Interrupted(self.received, f"stopped by {signal.Signals(self.received).name}")
