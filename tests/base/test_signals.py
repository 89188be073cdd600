"""Stop signals become a flag, and the handlers that were there come back."""

import os
import signal

import pytest

from lm.base.errors import Interrupted
from lm.base.ranks import Ranks
from lm.base.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_reported_when_checked_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_another_signal_ends_at_once(first):
    with StopSignals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_termination_after_another_signal_changes_nothing(first):
    with StopSignals() as stop:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == first


def test_a_signal_that_comes_while_the_processes_agree_is_not_lost():
    class Waiting(Ranks):
        def highest(self, *values):
            os.kill(os.getpid(), signal.SIGTERM)  # the others were told before it came
            return list(values)

    with StopSignals(ranks=Waiting()) as stop:
        assert not stop.asked
        assert stop.received == signal.SIGTERM
        assert stop.asked


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
