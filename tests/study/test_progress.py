"""The time that a sweep says is left."""

import json
import logging
from pathlib import Path

import pytest

from lm.base.rundir import RunDir
from lm.config.values import make_config
from lm.study import progress as live
from lm.study.executors import Job
from lm.study.progress import LiveView, duration

EPOCHS = 10


@pytest.fixture
def job(tmp_path):
    """A run of ten epochs that has finished some of them."""

    def build(name: str, epochs: int) -> Job:
        folder = Path(tmp_path, name)
        folder.mkdir()
        finish_epochs(folder, epochs)
        return Job(name, name, make_config(epochs=EPOCHS), (), RunDir(folder), False)

    return build


def finish_epochs(folder: Path, epochs: int) -> None:
    records = [{"kind": "epoch", "epoch": n, "step": 100 * n, "valid_ppl": 90.0} for n in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_time_left_counts_what_continued_and_running_runs_have_done_in_this_sweep(job, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "lm.sweep")
    with LiveView(4) as view:
        view._tty = False
        continued, other = job("continued", 8), job("other", 5)
        view.start(continued)
        view.start(other)
        now[0] = 1000.0
        finish_epochs(other.run_dir, 7)
        view.end(continued, "done")  # 2 + 2 epochs in 1000 s; 3 of `other` and 20 of two more are left
    assert f"about {duration(1000 / 4 * 23)} left" in caplog.text


def test_durations_read_as_a_person_says_them():
    assert [duration(s) for s in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]
