"""One run on several processes: real ones, which meet through gloo, two of them and mostly with all dropouts on."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from lm.base.errors import ConfigError
from lm.base.ranks import ALONE, Columns, Ranks, this_rank
from lm.base.signals import StopSignals
from lm.nn.dropout import LockedDropout, StandardDropout
from lm.nn.qrnn import WeightDropQRNN
from tests.conftest import TINY
from tests.forks import environment
from tests.rundir import records, weights

# Five columns are split unevenly, and the ten, two and one of the splits too.
FLAGS = [
    *TINY, "--batch-size=5", "--eval-batch-size=3", "--nonmono=1", "--no-tensorboard", "--log-interval=1",
    "--precision=fp32",  # to compare roundings of fp32 where the CPU has bf16
]  # fmt: skip
FIGURES = ("loss", "ar", "tar", "grad_norm", "clipped", "valid_loss")


@pytest.fixture(scope="module")
def alone(cli, small_dir, tmp_path_factory):
    """A run of three epochs in one process; averaging starts after the last but one."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = cli("train", "--data", small_dir, *FLAGS, "--epochs=3", "--out-dir", run)
    assert done.returncode == 0, done.stderr
    return run


def assert_equal_runs(run, other, tolerance):
    """Up to rounding: every record, the final figures and the weights."""
    for ours, theirs in zip(records(run), records(other), strict=True):
        for name in ours.keys() & set(FIGURES):
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance, abs=1e-9), (ours["step"], name)
    results = [json.loads((path / "result.json").read_text()) for path in (run, other)]
    for name in ("tokens", "steps", "best_epoch", "averaged"):
        assert results[0][name] == results[1][name]
    for name in ("train_loss", "valid_loss", "test_loss"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-6)
    histograms = [result["activation"].pop("histogram") for result in results]
    assert histograms[0] == pytest.approx(histograms[1], abs=1e-3)
    assert results[0]["activation"] == pytest.approx(results[1]["activation"], rel=1e-4)
    for name, tensor in weights(other).items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=1e-4, atol=1e-6)


def test_two_processes_of_torchrun_train_what_one_trains_and_write_once(alone, small_dir, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lm.train"]
    flags = ["--data", str(small_dir), *FLAGS, "--epochs=3", f"--out-dir={tmp_path / 'run'}"]
    done = subprocess.run([*command, *flags], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("perplexity"), done.stderr.count("epoch   3/3")) == (1, 1)
    assert_equal_runs(tmp_path / "run", alone, 2e-4)
    assert json.loads((tmp_path / "run/result.json").read_text())["versions"]["processes"] == 2


def test_the_first_gradient_is_that_of_one_process_with_dropout_off(cli, small_dir, tmp_path):
    flags = [*FLAGS, *(f"--{name}=0" for name in ("dropout", "dropouth", "dropouti", "dropoute", "wdrop"))]
    command = ("train", "--data", small_dir, *flags, "--max-steps=1", "--clip=0", "--no-eval-test")
    for processes in (1, 3):
        done = cli(*command, "--out-dir", tmp_path / str(processes), processes=processes)
        assert done.returncode == 0, done.stderr
    ours, theirs = (weights(tmp_path / str(processes)) for processes in (3, 1))
    for name, tensor in theirs.items():  # after one step of SGD at rate 5 or so
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-6)
    first, other = (records(tmp_path / str(processes))[0] for processes in (3, 1))
    assert {name: first[name] for name in FIGURES[:4]} == pytest.approx({name: other[name] for name in FIGURES[:4]})


def test_a_run_is_continued_by_another_number_of_processes(alone, cli, small_dir, tmp_path):
    command = ("train", "--data", small_dir, *FLAGS, "--out-dir", tmp_path / "run", "--resume=auto")
    for epochs, processes in ((1, 2), (2, 1), (3, 2)):
        done = cli(*command, f"--epochs={epochs}", processes=processes)
        assert done.returncode == 0, done.stderr
        assert f"processes={processes} (was {3 - processes})" in done.stderr or epochs == 1
    assert_equal_runs(tmp_path / "run", alone, 2e-4)


def test_a_signal_to_one_process_stops_all_in_mid_epoch_with_everything_saved(
    alone, faults, small_dir, work_dir, tmp_path
):
    command = ("--data", small_dir, *FLAGS, "--epochs=3", "--out-dir", tmp_path / "run", "--resume=auto")
    done = faults.train(work_dir, *command, processes=2, faulty=1, action=[signal.SIGTERM], at=18)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.count("stopped by SIGTERM; saved") == 1
    assert records(tmp_path / "run")[-1]["kind"] == "step"
    assert faults.train(work_dir, *command, processes=2).returncode == 0
    assert_equal_runs(tmp_path / "run", alone, 2e-4)


def test_a_killed_process_ends_the_others_and_the_last_checkpoint_is_continued(
    alone, faults, small_dir, work_dir, tmp_path
):
    run = tmp_path / "run"
    command = ("--data", small_dir, *FLAGS, "--epochs=3", "--save-every=5", "--out-dir", run, "--resume=auto")
    done = faults.train(work_dir, *command, processes=2, faulty=1, action="kill", at=18)
    assert done.returncode == 1
    assert "another process of this run has ended" in done.stderr
    assert f"--resume auto continues {run}" in done.stderr
    assert "Traceback" not in done.stderr
    assert faults.train(work_dir, *command).returncode == 0  # one process goes on
    assert_equal_runs(run, alone, 2e-4)


def test_a_divergence_in_one_process_ends_all_before_the_update(faults, small_dir, work_dir, tmp_path):
    command = ("--data", small_dir, *FLAGS, "--epochs=3", "--out-dir", tmp_path / "run")
    done = faults.train(work_dir, *command, processes=2, faulty=1, nan=7)
    assert done.returncode == 4
    assert (done.stderr.count("update 7: loss nan"), "Traceback" in done.stderr) == (1, False)
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "diverged"


def test_a_users_mistake_is_told_once(cli, small_dir, tmp_path):
    done = cli("train", "--data", small_dir, *FLAGS, "--batch-size=1", "--out-dir", tmp_path / "run", processes=2)
    assert (done.returncode, done.stderr.count("--batch-size")) == (2, 1), done.stderr


def test_every_column_is_one_process_s_and_those_without_read_along():
    for total, size in ((80, 3), (5, 2), (3, 3), (1, 4)):
        shares = [Ranks(rank, size).columns(total) for rank in range(size)]
        places = [np.arange(total)[share.place] for share in shares]
        assert [*np.concatenate([p for p, s in zip(places, shares, strict=True) if s.count])] == [*range(total)]
        assert all(len(place) == max(1, share.count) for place, share in zip(places, shares, strict=True))
        assert sum(share.weight for share in shares) == pytest.approx(1)


@pytest.mark.parametrize("dropout", [LockedDropout(0.3), StandardDropout(0.5)])
def test_processes_draw_the_masks_of_one_and_take_their_columns(dropout):
    x = torch.ones(4, 5, 6)
    torch.manual_seed(1)
    whole = dropout(x)
    after = torch.get_rng_state()
    for columns in (Columns(0, 3, 5), Columns(3, 2, 5)):
        dropout.columns = columns
        torch.manual_seed(1)
        assert torch.equal(dropout(x[:, columns.place]), whole[:, columns.place])
        assert torch.equal(torch.get_rng_state(), after)


def test_outside_of_torchrun_a_process_is_alone():
    assert this_rank({}) is ALONE
    assert this_rank({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here"}) is ALONE
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "here"}
    assert this_rank(variables) == Ranks(5, 8, 1)
    with StopSignals() as stop:
        assert not stop.asked
    with pytest.raises(ConfigError, match="one"), ALONE.agreed():
        raise ConfigError("one")


def test_a_qrnn_draws_its_zones_for_the_whole_batch():
    layer = WeightDropQRNN(3, 6, 1, zoneout=0.5, kernel="native")
    x = torch.randn(4, 5, 3)
    state = layer.initial_state(5)
    torch.manual_seed(1)
    whole, _ = layer(x, state)
    for layer.columns in (Columns(0, 3, 5), Columns(3, 2, 5)):
        torch.manual_seed(1)
        part, _ = layer(x[:, layer.columns.place], [each[layer.columns.place] for each in state])
        torch.testing.assert_close(part, whole[:, layer.columns.place])
