"""Times of a step's phases: by the clock, and by events whose times a graph's replays renew."""

import time
from types import SimpleNamespace

import pytest
import torch

import lm.nn.lstm
from lm.bench import random_run
from lm.config.values import make_config
from lm.train import update
from lm.training.phases import GPUPhases, Phases, timed_phases

CONFIG = make_config(emsize=8, nhid=12, nlayers=2, batch_size=3, bptt=5, variable_bptt=False)


class FakeEvent:
    """An event of a GPU on which each record lasts a millisecond."""

    now = 0

    def __init__(self, *, enable_timing, external):
        assert enable_timing and external

    def record(self):
        FakeEvent.now += 1
        self.at = FakeEvent.now

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.fixture
def owner():
    return SimpleNamespace(work=lambda seconds=0.0: time.sleep(seconds))


def test_calls_of_a_phase_add_up_within_a_step_and_results_pass_through(owner):
    phases = Phases()
    owner.answer = lambda: 42
    phases.watch("work", owner, "work")
    phases.watch("answer", owner, "answer")
    phases.begin()
    owner.work(0.02)
    owner.work(seconds=0.03)
    assert owner.answer() == 42
    phases.begin()
    first, second = phases.seconds["work"]
    assert first >= 0.05 and second == 0
    phases.forget()
    assert phases.seconds == {"work": [], "answer": []}


def test_events_of_a_gpu_are_those_of_the_latest_step_one_pair_a_call(owner, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    phases = GPUPhases()
    phases.watch("work", owner, "work")
    phases.watch("none", SimpleNamespace(none=None), "none")
    for _ in range(3):
        phases.begin()
        owner.work()
        owner.work()
    assert len(phases._pairs["work"]) == 2
    phases.end()
    assert phases.seconds == {"work": [0.002], "none": [0]}


def test_medians_tell_the_masks_from_the_forward_pass():
    phases = Phases()
    phases.seconds = {"masks": [1.0, 2.0, 3.0], "forward": [10.0, 10.0, 11.0], "loss": [4.0, 5.0, 6.0]}
    assert phases.medians() == {"masks": 2.0, "forward": 8.0, "loss": 5.0}
    assert Phases().medians() == {}


def test_a_watched_step_computes_what_an_unwatched_one_does(monkeypatch):
    monkeypatch.setattr(lm.nn.lstm, "keep_mask", lm.nn.lstm.keep_mask)  # so that it is put back
    weights, phases = [], Phases()
    for watch in (False, True):
        run = random_run(CONFIG, 50)  # seeds the generators
        if watch:
            phases = timed_phases(run)
        for _ in range(2):
            phases.begin()
            update(run, next(run.windows))
        weights.append([parameter.detach().clone() for parameter in run.model.parameters()])
    assert all(map(torch.equal, *weights))
    assert all(len(spent) == 2 and min(spent) > 0 for spent in phases.seconds.values())


@pytest.mark.gpu
def test_phases_on_a_gpu_are_those_of_replays():
    config = make_config("awd-lstm", "ptb", variable_bptt=False)
    run = random_run(config, 10_000, torch.device("cuda"))
    phases = timed_phases(run)
    for _ in range(5):
        phases.begin()
        update(run, next(run.windows))
    torch.cuda.synchronize()
    started = time.perf_counter()
    phases.begin()
    update(run, next(run.windows))
    torch.cuda.synchronize()
    spent = time.perf_counter() - started
    phases.end()
    found = phases.medians()
    assert min(found.values()) > 0
    assert 0.5 * spent < sum(found.values()) < 1.05 * spent
