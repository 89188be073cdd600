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


def test_time_left_counts_what_continued_and_running_runs_have_done_in_this_sweep(job, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal
    caplog.set_level(logging.INFO, "lm")
    with LiveView(4) as view:
        continued, other = job("continued", 8), job("other", 5)
        view.start(continued)
        view.start(other)
        now[0] = 360.0
        finish_epochs(other.run_dir, 7)
        view.end(continued, "done")  # 2 + 2 epochs in 6 minutes; 3 of `other` and 20 of two more are left
    assert "; about 34 min left" in caplog.text


def test_durations_read_as_a_person_says_them():
    assert [duration(s) for s in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]
