"""Runs of a sweep on several processes each."""

import json
import shlex

import pytest

from lm.base.errors import ConfigError
from lm.study.executors import LocalExecutor
from lm.study.ledger import read_ledger
from tests.conftest import TINY

FLAGS = [*TINY[:-1], "--epochs=1", "--device=cpu", "--processes-per-run=2"]


def test_a_run_of_two_processes_ends_with_its_own_exit_code_and_last_words(cli, small_dir, tmp_path):
    diverging = ("--model=RNN_RELU", "--clip=0", "--lr=1e30", "--nonmono=0")
    study = ("sweep", "--data", small_dir, *FLAGS, *diverging, "--seed", 1, "--out=results/s", "--no-report", "--json")
    done = cli(*study, folder=tmp_path)
    assert done.returncode == 4, done.stderr
    (text,) = json.loads(done.stdout)["diverged"]
    assert "not finite" in text
    (record,) = read_ledger(tmp_path / "results/s/runs.jsonl")
    assert record["versions"]["processes"] == 2
    assert shlex.split(record["command"])[:5] == ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "lm.train"]


def test_gpus_are_dealt_out_in_groups():
    assert LocalExecutor(0, 1, list("01234"), 2)._gpus == ["0,1", "2,3"]
    assert LocalExecutor(0, 1, list("01234"))._gpus == list("01234")
    with pytest.raises(ConfigError, match="need as many GPUs; there are 1"):
        LocalExecutor(0, 1, ["0"], 2)
