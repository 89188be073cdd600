"""The time that a sweep says is left."""

import io
import json
import logging
from pathlib import Path

import pytest

from lm.base.rundir import RunDir
from lm.config.values import make_config
from lm.study.executors import Job
from lm.study.progress import LiveView, duration

EPOCHS = 10


@pytest.fixture
def job(tmp_path):
    """A run of ten epochs that has finished some of them."""

    def build(name: str, epochs: int) -> Job:
        folder = Path(tmp_path, name)
        folder.mkdir()
        finish_epochs(run_dir := RunDir(folder), epochs)
        return Job(name, name, make_config(epochs=EPOCHS), (), run_dir, False)

    return build


def finish_epochs(run_dir: RunDir, epochs: int) -> None:
    records = [{"kind": "epoch", "epoch": n, "step": 100 * n, "valid_ppl": 90.0} for n in range(1, epochs + 1)]
    run_dir.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def now(monkeypatch, caplog):
    """A clock to set, the log that is looked at being no terminal."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stderr", io.StringIO())
    caplog.set_level(logging.INFO, "lm")
    return clock


def test_time_left_counts_what_continued_and_running_runs_have_done_in_this_sweep(job, now, caplog):
    with LiveView(4) as view:
        continued, other = job("continued", 8), job("other", 5)
        view.start(continued)
        view.start(other)
        now[0] = 360.0
        finish_epochs(other.run_dir, 7)
        view.end(continued, "done")  # 2 + 2 epochs in 6 minutes; 3 of `other` and 20 of two more are left
    assert "; about 34 min left" in caplog.text


def test_a_log_gets_a_line_a_minute_of_each_run_that_is_on(job, now, caplog):
    with LiveView(2) as view:
        view.start(run := job("alpha 1", 0))
        for second in range(1, 130):
            now[0] = second
            if second == 100:
                finish_epochs(run.run_dir, 5)
            view.show(0)
    _, first, second = (record.getMessage() for record in caplog.records)
    assert first == "0 of 2 runs done, 1 running\n    0 %  alpha 1: starting"
    assert second.splitlines() == [
        "0 of 2 runs done, 1 running; about 6 min left",
        "   50 %  alpha 1: epoch 5/10, step 500, valid ppl 90.00",
    ]


def test_durations_read_as_a_person_says_them():
    assert [duration(s) for s in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]
