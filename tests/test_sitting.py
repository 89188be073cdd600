"""What a sitting on a borrowed GPU decides and carries; all of it in tiny sizes: `python -m tests.sitting --tiny`."""

import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.base.files import ROOT
from lm.base.rundir import RunDir
from lm.base.signals import StopSignals
from lm.scoring.export import export_run
from lm.scoring.loading import load_trained
from lm.study.executors import Job
from lm.study.specification import load_study
from tests.mps import mps
from tests.parcel import join, pack, split, unpack
from tests.sitting import Sitting
from tests.sitting_home import Home
from tests.sitting_plan import (
    MARGIN,
    MODES,
    PLAN,
    PTB,
    WT2,
    Task,
    choose_epochs,
    epoch_seconds,
    scoring_seconds,
    tiny_study,
    validation_seconds,
    with_epochs,
)


@given(st.floats(-100, 1e4), st.floats(0.1, 1e3), st.integers(1, 100))
def test_as_many_epochs_are_chosen_as_fit_with_a_margin(seconds, epoch, most):
    epochs = choose_epochs(seconds, epoch, most)
    assert 1 <= epochs <= most
    assert epochs == 1 or epochs * epoch * MARGIN <= seconds
    assert epochs == most or (epochs + 1) * epoch * MARGIN > seconds


def test_an_epoch_is_measured_without_the_first_and_estimated_from_the_speeds_where_no_second_has_ended():
    steps = [{"kind": "step", "tokens_per_s": speed} for speed in (10, 50, 40)]
    ends = [{"kind": "epoch", "epoch": epoch, "seconds": 5.0 + 4.0 * epoch} for epoch in (1, 2, 5)]
    assert epoch_seconds([*steps, *ends], 90, 1000) == 4.0
    assert epoch_seconds([*steps, ends[0]], 90, 1000) == 2.0 + validation_seconds(1000)
    with pytest.raises(ValueError, match="too short"):
        epoch_seconds([], 90, 1000)


def test_scoring_takes_a_minute_on_ptb_and_two_on_wikitext_2():
    assert scoring_seconds(929_589, 73_760, 82_430) == pytest.approx(58, abs=1)
    assert scoring_seconds(2_088_628, 217_646, 245_569) == pytest.approx(131, abs=1)


@pytest.mark.parametrize("study", [PTB, WT2])
def test_the_plan_is_every_run_of_the_studies_once_the_recipe_first_then_none(study):
    asked = [(study, c["alpha"], c["beta"], seed) for c, seed in load_study(ROOT / "results" / study).runs()]
    planned = [run for run in PLAN if run[0] == study]
    assert sorted(planned) == sorted(asked)
    assert [run[1:3] for run in planned[:2]] == [(3, 1.5), (0, 0)]


def test_a_study_gets_another_number_of_epochs_and_tiny_sizes_and_stays_one(tmp_path):
    text = (ROOT / "results" / PTB / "study.toml").read_text()
    (tmp_path / "study.toml").write_text(with_epochs(text, 81))
    changed, before = load_study(tmp_path), load_study(ROOT / "results" / PTB)
    assert changed.config(alpha=3, beta=1.5, seed=141) == replace(before.config(alpha=3, beta=1.5, seed=141), epochs=81)
    (tmp_path / "study.toml").write_text(with_epochs(tiny_study(text), 2))
    config = load_study(tmp_path).config(alpha=3, beta=1.5, seed=141)
    assert (config.dataset, config.epochs, config.nhid, config.kernel) == ("tiny", 2, 12, "auto")
    with pytest.raises(ValueError, match="epochs"):
        with_epochs("seeds = [1]", 3)


def test_what_adapt_txt_holds_is_not_scored_again(tmp_path):
    plain, dynamic = (Task(PTB, Job("1", "1", None, (), RunDir(tmp_path)), modes) for modes in MODES)
    assert not plain.scored
    (tmp_path / "adapt.txt").write_text(f"$ {' '.join(plain.scoring)}\nfigures\n")
    assert plain.scored
    assert not dynamic.scored


@given(st.binary(min_size=1, max_size=400), st.integers(33, 90))
def test_pieces_are_small_and_only_all_of_them_in_order_make_a_whole(data, most):
    pieces = split(data, most)
    assert max(map(len, pieces)) <= most
    assert join(pieces) == data
    damaged = [pieces[0][:-1] + bytes([pieces[0][-1] ^ 1]), *pieces[1:]]
    swapped = pieces[::-1] if pieces != pieces[::-1] else pieces[1:]
    for bad in (pieces[:-1], damaged, swapped):
        with pytest.raises(ValueError, match="no whole"):
            join(bad)


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU and MPS, whose commands take what `answers` says of them: an exit code, or for ever."""

    def run(command, *args, timeout=None, **options):
        name = "probe" if command[0] == sys.executable else "daemon" if "-d" in command else str(command[0])
        answer = answers.get(name, 0)
        if answer is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, answer)

    answers: dict[str, int | None] = {}
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return answers


@pytest.mark.parametrize("broken", ["", "daemon", "probe"])
@pytest.mark.parametrize("answer", [1, None])
def test_mps_is_used_only_where_a_process_has_computed_something_on_it(broken, answer, machine):
    machine[broken] = answer
    with mps() as device:
        assert device == "cuda"
        assert ("CUDA_MPS_PIPE_DIRECTORY" in os.environ) == (not broken)
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


@pytest.fixture
def sitting(tmp_path, monkeypatch):
    """A tiny sitting whose processes are what `commands` says, in their order, in place of trainings and scorings."""

    def start(self, task, command, output):
        task.job.run_dir.path.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen([sys.executable, "-c", commands.pop(0)], stdout=subprocess.PIPE)
        if process.stdout.readline():
            self.running[process] = task

    commands: list[str] = []
    monkeypatch.setattr("tests.sitting.ROOT", tmp_path)
    monkeypatch.setattr(Sitting, "_start", start)
    for study in (PTB, WT2):
        shutil.copytree(ROOT / "results" / study, tmp_path / "results" / study)
    for name in ("LM_CORPORA", "OMP_NUM_THREADS", "PYTHONUNBUFFERED"):  # which it sets
        monkeypatch.setenv(name, "")
    args = Namespace(tiny=True, studies=[PTB], weights=[PTB], out=tmp_path / "out", lanes=1, then=0, runs=None)
    made = Sitting(args, "cpu", time.monotonic() + 60, StopSignals())
    (made.state / "sitting.log").touch()
    made.commands = commands
    return made


def test_a_training_that_dies_is_started_once_more_from_its_checkpoint(sitting):
    sitting.settle_epochs = lambda: None
    sitting.tokens[PTB] = [1, 1, 1]
    folder = sitting.state / PTB
    folder.mkdir()
    (folder / "study.toml").write_text(tiny_study((ROOT / "results" / PTB / "study.toml").read_text()))
    sitting.plan = sitting.plan[:1]
    sitting.commands += ["print('runs', flush=True); exit(1)"] * 3
    sitting.work()
    assert len(sitting.commands) == 1
    assert (sitting.args.out / "home.tar.gz").exists()


def test_a_study_that_cannot_be_measured_is_left_out_and_the_log_comes_home(sitting):
    sitting.commands += ["print('runs', flush=True); exit(1)"]
    sitting.work()
    assert sitting.plan == []
    assert (sitting.args.out / "home.tar.gz").exists()


def test_at_the_end_trainings_save_before_scorings_are_stopped_and_nothing_is_left(sitting, monkeypatch):
    monkeypatch.setattr("tests.sitting.END_S", 1.0)
    told = sitting.state / "told"
    polite = f"""
import signal, sys, time
def end(*_):
    time.sleep(0.3)
    open({str(told)!r}, "a").write("NAME\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("runs", flush=True)
time.sleep(60)"""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('runs', flush=True); time.sleep(60)"
    )
    sitting.commands += [polite.replace("NAME", "scoring"), polite.replace("NAME", "training"), deaf]
    job = Job("1", "1", None, (), RunDir(sitting.state / "run"))
    for task in (Task(PTB, job, MODES[0]), Task(PTB, job), Task(PTB, job)):
        sitting._start(task, [], told)
    processes = list(sitting.running)
    sitting._ended = lambda process: sitting.running.pop(process)
    sitting._end()
    assert told.read_text().splitlines() == ["training"]
    assert all(process.poll() is not None for process in processes)


def test_weights_of_a_run_that_was_not_finished_come_home_until_one_is(sitting, tiny_run):
    folder = sitting.state.parent / "tiny" / PTB
    shutil.copytree(tiny_run, folder / "begun")
    home = Home(sitting.args.out, sitting.state, {PTB: Namespace(folder=folder)}, 4096)
    home.bring()
    home.send_weights([WT2, PTB])
    assert list(sitting.args.out.glob(f"{PTB}.1of*"))


def test_weights_come_home_rounded_to_bf16_and_can_be_used(tiny_run, tmp_path):
    export_run(RunDir(tiny_run), RunDir(tmp_path / "there"))
    unpack(join(split(pack(tmp_path / "there"), 4096)), tmp_path / "here")
    sent, home = (load_trained(RunDir(tmp_path / name)) for name in ("there", "here"))
    for name, weight in sent["model"].items():
        assert torch.equal(home["model"][name], weight.bfloat16().float()), name
    assert {key: value for key, value in home.items() if key != "model"} == {
        key: value for key, value in sent.items() if key != "model"
    }
    assert json.loads((tmp_path / "here" / "config.json").read_text()) == home["config"]
    assert "rounded to bf16" in (tmp_path / "here" / "README.md").read_text()
