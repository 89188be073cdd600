"""A sweep goes on past what is damaged in one run's directory, and takes no figures of another text."""

import json
import math
import os
import shutil

import pytest

from lm.base.errors import CheckpointError
from lm.config.values import as_plain, config_from_dict, config_id
from lm.study.executors import outcome_of, read_metrics
from lm.study.ledger import append_ledger, read_ledger
from lm.study.progress import run_state
from lm.study.scheduler import Sweep, finished
from lm.study.specification import load_study
from lm.sweep import parse_args, plan
from lm.tables.page import report
from tests.conftest import write_corpus
from tests.test_sweep import write_study

GRID = "[[grid]]\nalpha = [0, 1]\n"
DAMAGED_LINES = [
    "{}",
    "1",
    "null",
    '{"kind":"epoch","epoch":9}',
    '{"kind":"epoch","step":1,"epoch":9}',
    '{"step":"x"}',
    "{",
]


def open_sweep(study):
    args = parse_args("", [str(study), "--device=cpu", f"--runs-dir={study.parent / 'runs'}"])
    sweep = Sweep(load_study(study), args)
    return sweep, plan(sweep)


@pytest.fixture(scope="module")
def made(tmp_path_factory, cli):
    """A study of two runs, both complete, that no ledger knows of."""
    place = tmp_path_factory.mktemp("made")
    study = write_study(place / "s", write_corpus(place / "tiny", train=60), grid=GRID, seeds=(1,), epochs=1)
    for job in open_sweep(study)[1]:
        done = cli("train", *job.arguments, "--no-tensorboard")
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def study(made, tmp_path, monkeypatch):
    """A copy of it; the corpus stays where it is, for its path is part of a run's identity."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "s"


@pytest.mark.parametrize("line", DAMAGED_LINES)
def test_a_damaged_line_of_metrics_is_left_out(line, study):
    sweep, jobs = open_sweep(study)
    whole = read_metrics(jobs[0].run_dir)
    with jobs[0].run_dir.metrics.open("a") as file:
        file.write(f"{line}\n")
    assert read_metrics(jobs[0].run_dir) == whole
    assert run_state(jobs[0])[0] == 1
    assert len(outcome_of(jobs[0], 0).curve) == 1
    sweep.run(jobs)
    assert len(read_ledger(study / "runs.jsonl")) == 2
    report(str(study))


@pytest.mark.parametrize("damage", [{"seed": "x"}, {"id": None}, {"valid_ppl": None}, {"valid_ppl": 10**400}], ids=str)
def test_a_damaged_result_is_no_result(damage, study):
    _, jobs = open_sweep(study)
    assert finished(jobs[0])
    file = jobs[0].run_dir.result
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    assert finished(jobs[0]) is None


def test_a_run_whose_folder_cannot_be_used_fails_alone(study):
    sweep, jobs = open_sweep(study)
    shutil.rmtree(jobs[0].run_dir.path)
    jobs[0].run_dir.path.write_text("in the way")
    sweep.run(jobs)
    assert list(sweep.failures) == [jobs[0].id]
    assert str(jobs[0].run_dir) in sweep.failures[jobs[0].id]
    assert [record["id"] for record in read_ledger(study / "runs.jsonl")] == [jobs[1].id]


def test_a_ledger_of_another_text_is_refused(study):
    sweep, jobs = open_sweep(study)
    sweep.run(jobs)
    (record, _) = read_ledger(study / "runs.jsonl")
    assert not open_sweep(study)[0].missing(jobs)
    append_ledger(study / "runs.jsonl", record | {"corpus_sha256": record["corpus_sha256"] | {"valid": "0" * 64}})
    with pytest.raises(CheckpointError, match=r"runs\.jsonl: alpha 0, seed 1: trained on another text"):
        open_sweep(study)[0].missing(jobs)


def test_a_result_of_another_text_is_not_entered(study, monkeypatch):
    sweep, jobs = open_sweep(study)
    file = jobs[0].run_dir.result
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"corpus_sha256": result["corpus_sha256"] | {"valid": "0" * 64}}))
    assert sweep._known(jobs[0]) == ""
    assert sweep._known(jobs[1])


def test_a_complete_run_without_a_curve_stands_for_its_first_part(study):
    sweep, (job, _) = open_sweep(study)
    config = as_plain(job.config) | {"epochs": 3}
    sweep.study.flags["epochs"] = 3
    line = {"id": config_id(config_from_dict(config)), "config": config, "status": "completed", "seed": 1}
    append_ledger(sweep.study.ledger, line | {"valid_ppl": 5.0, "curve": []})
    sweep.results.refresh()
    assert sweep.measure([{"alpha": 0}], 1) == [pytest.approx(math.log(5))]


def test_a_ledger_on_a_full_disk_is_named_and_as_it_was(tmp_path, fill_disk):
    append_ledger(tmp_path / "runs.jsonl", {"id": "a"})
    before = (tmp_path / "runs.jsonl").read_bytes()
    fill_disk()
    with pytest.raises(OSError, match="No space left") as caught:
        append_ledger(tmp_path / "runs.jsonl", {"id": "b"})
    assert caught.value.filename == str(tmp_path / "runs.jsonl")
    assert (tmp_path / "runs.jsonl").read_bytes() == before


def test_a_report_on_a_full_disk_names_the_file(study, monkeypatch):
    sweep, jobs = open_sweep(study)
    sweep.run(jobs)

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        report(str(study))
    assert os.path.dirname(caught.value.filename) == str(study)
