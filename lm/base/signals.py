"""Stop signals as a flag, so that what runs can save before it ends."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType, TracebackType

from lm.base.errors import Interrupted
from lm.base.process import STOP_SIGNALS
from lm.base.ranks import ALONE, Ranks


class StopSignals:
    """Context manager that turns SIGINT, SIGTERM, SIGHUP and a time limit into a flag, so that a run can save first.

    The first signal decides the exit code. A SIGINT after it ends the process at once, as it would without this class;
    others after it change nothing, since batch systems repeat theirs. Handlers are restored on exit. Under `nohup`,
    which has SIGHUP ignored, it stays so.
    """

    def __init__(self, max_minutes: float = 0.0, ranks: Ranks = ALONE) -> None:
        """`max_minutes`: ask to stop after this time as well; 0: never. `ranks`: stop where any process has to."""
        self.received: int | None = None
        self._ranks = ranks
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
        """Whether a signal has arrived or the time is up, here or in another process of the run."""
        number, late = self._ranks.highest(self.received or 0, time.monotonic() >= self._deadline)
        if number:  # else one may have come here since the others were told, which the next look tells them
            self.received = number
        return bool(number or late)

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived or the time is up, here or in another process of the run."""
        if not self.asked:
            return
        if self.received is not None:
            raise Interrupted(f"stopped by {signal.Signals(self.received).name}", 128 + self.received)
        raise Interrupted(f"stopped after {self._minutes:g} minutes (--max-minutes)", 0)
