"""How many threads compute, and how they wait."""

import os
import subprocess
import sys

import psutil
import pytest
import torch

from lm.base import threads
from lm.base.files import ROOT

SHOW = "import os; print(*(os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"


def printed(code: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in threads._WAITING}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True).stdout.strip()


def test_a_command_lets_waiting_threads_sleep_and_a_library_changes_no_environment():
    assert printed(f"import lm, lm.base.errors, lm.config.values, lm.base.threads; {SHOW}") == "None None"
    assert printed(f"from lm.base.process import begin; begin(); {SHOW}") == "PASSIVE 1000"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_says_about_waiting_stands(name):
    kept = printed(f"from lm.base.process import begin; begin(); {SHOW}", **{name: "ACTIVE" if "WAIT" in name else "7"})
    assert kept in ("ACTIVE None", "None 7")


def test_the_policy_is_set_before_pytorch_is_imported():
    """Every command's first statement; the process of a sweep's run is one of them."""
    for path in [*sorted((ROOT / "lm").glob("[!_]*.py")), ROOT / "lm" / "study" / "executors.py"]:
        source = path.read_text(encoding="utf-8")
        before, found, _ = source.partition("    begin()\n")
        assert found, path
        assert [line for line in before.splitlines() if "import" in line and '"' not in line and "`" not in line] == [
            "from __future__ import annotations",
            "    from lm.base.process import begin",
        ], path


@pytest.mark.parametrize(
    ("cpus", "usual", "busy", "expected"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.4, 2),
        (2, 2, 1.0, 1),
        (2, 2, 7.5, 1),
        (16, 16, 5.2, 11),
        (16, 4, 5.2, 4),
        (1, 1, 3.0, 1),
    ],
)
def test_no_more_threads_than_cpus_that_are_free(cpus, usual, busy, expected, monkeypatch):
    chosen = [usual]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(threads, "busy_cpus", lambda: busy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    threads.choose_threads()
    assert chosen[-1] == expected


def test_a_number_of_threads_that_is_given_stands(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("set"))
    threads.choose_threads()


def test_a_load_that_has_ended_or_just_begun_keeps_no_cpu_busy(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: [0.0, 100.0, 100.0])  # the last one not ours
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    assert threads.busy_cpus() == pytest.approx(1.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 0.0, 0.0))
    assert threads.busy_cpus() == 0.0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux's figures")
def test_no_more_cpus_are_busy_than_can_be_used(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert 0 <= threads.busy_cpus() <= len(os.sched_getaffinity(0))


def test_a_run_that_is_continued_keeps_its_threads_where_its_bits_can_stay_the_same(monkeypatch):
    from lm.base.provenance import cpu_name

    here = {"cpu": cpu_name(), "torch": str(torch.__version__), "threads": 5}
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    threads.continue_with(here)
    threads.continue_with(here | {"cpu": "another"})
    threads.continue_with({})
    assert chosen == [5]
