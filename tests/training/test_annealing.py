"""The recipe for short budgets: the trapezoid, averaging its end, and stopping and saving by time."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lm.train
import lm.training.writer
from lm.base.errors import ConfigError, Interrupted
from lm.base.rundir import RunDir
from lm.bench import random_run
from lm.config.presets import PRESETS
from lm.config.values import make_config
from lm.train import configure
from lm.training.checkpoint import load_checkpoint
from lm.training.schedule import LearningRate, trapezoid_of
from tests.conftest import TINY
from tests.rundir import checkpoint, ending, same

# Two epochs of 113 updates, all dropouts on, a step every epoch's end within a phase of the trapezoid.
FLAGS = [*TINY[:-1], "--lr=0.01", "--optimizer=adam", "--schedule=trapezoid", "--epochs=2", "--no-tensorboard"]
USUAL = make_config(optimizer="adam", schedule="trapezoid", adam_beta1=0.8, lr=5.0)


@pytest.mark.parametrize(
    ("twelfths", "rate", "beta1"),
    [
        (0, 0.5, 0.8), (0.5, 2.75, 0.75), (1, 5.0, 0.7), (3, 5.0, 0.7), (6, 5.0, 0.7), (8.5, 2.75, 0.75),
        (11, 0.5, 0.8), (11.5, 0.25, 0.8), (12, 0.0, 0.8),
    ],
)  # fmt: skip
def test_the_trapezoid_goes_up_from_a_tenth_along_the_top_down_to_a_tenth_and_to_zero(twelfths, rate, beta1):
    shape = trapezoid_of(USUAL)
    learning_rate = LearningRate("trapezoid", USUAL.lr, trapezoid=shape)
    assert learning_rate.at(twelfths / 12) == pytest.approx(rate, abs=1e-12)
    assert shape.beta1(twelfths / 12) == pytest.approx(beta1, abs=1e-12)


def test_a_trapezoid_moves_sgds_rate_which_has_no_beta1():
    run = random_run(make_config(optimizer="sgd", schedule="trapezoid", nlayers=1, nhid=4, emsize=4, batch_size=2), 20)
    lm.train.update(run, next(run.windows))
    assert run.rate == pytest.approx(run.config.lr / 10, rel=0.1)


@given(st.lists(st.floats(0, 0.33), min_size=3, max_size=3), st.floats(0, 1))
def test_no_trapezoid_leaves_its_bounds_or_jumps(parts, fraction):
    rise, flat, fall = parts
    names = {"trapezoid_rise": rise, "trapezoid_flat": flat, "trapezoid_fall": fall}
    shape = trapezoid_of(make_config(optimizer="adam", schedule="trapezoid", **names))
    assert 0 <= shape.rate_factor(fraction) <= 1
    assert 0.7 <= shape.beta1(fraction) <= 0.9
    if min(parts) > 0.01:
        steepest = 0.9 / min(rise, fall)
        near = shape.rate_factor(min(1.0, fraction + 1e-6))
        assert abs(near - shape.rate_factor(fraction)) <= 1e-6 * max(steepest, 0.1 * math.pi / 2 / 0.01) + 1e-9


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"trapezoid_rise": 0.2}, "--trapezoid-rise"),
        ({"schedule": "trapezoid", "trapezoid_flat": 0.9}, "must not exceed 1"),
        ({"schedule": "trapezoid", "trapezoid_rise": 0.33, "trapezoid_flat": 0.56, "trapezoid_fall": 0.1101}, "exceed"),
        ({"average_last": 0.1}, "--nonmono 0"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        make_config(**flags)


def test_parts_that_are_the_whole_run_but_for_rounding_are_taken():
    parts = {"trapezoid_rise": 0.33, "trapezoid_flat": 0.56, "trapezoid_fall": 0.11}
    assert sum(parts.values()) > 1
    config, _ = configure([f"--{name}={value}" for name, value in parts.items()] + ["--schedule=trapezoid"])
    shape = trapezoid_of(config)
    assert [shape.rate_factor(fraction) for fraction in (0, 0.5, 1)] == pytest.approx([0.1, 1, 0.1])


def test_beta1_and_the_rate_reach_adam(train_here, corpus_dir, tmp_path, monkeypatch):
    seen = []
    real = torch.optim.Adam.step

    def step(self, *arguments):
        seen.append((self.param_groups[0]["lr"], self.param_groups[0]["betas"][0]))
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    flags = ["--no-variable-bptt", "--adam-beta1=0.8", "--no-eval-test"]
    result = train_here("--data", corpus_dir, *FLAGS, *flags, "--out-dir", tmp_path / "run")
    assert len(seen) == result["steps"]
    shape = trapezoid_of(make_config(optimizer="adam", schedule="trapezoid", adam_beta1=0.8))
    for at in (0, len(seen) // 24, len(seen) // 3, 3 * len(seen) // 4):
        rate, beta1 = seen[at]
        assert rate == pytest.approx(0.01 * shape.rate_factor(at / len(seen)), rel=0.02)
        assert beta1 == pytest.approx(shape.beta1(at / len(seen)), abs=0.002)


def test_the_mean_of_the_end_is_the_naive_mean_and_valid_chooses(train_here, corpus_dir, tmp_path, monkeypatch):
    iterates = []
    real = lm.train.update

    def update(run, window):
        real(run, window)
        if run.averaging.averaged is not None:
            iterates.append([parameter.detach().clone() for parameter in run.model.parameters()])

    monkeypatch.setattr(lm.train, "update", update)
    run = tmp_path / "run"
    result = train_here("--data", corpus_dir, *FLAGS, "--average-last=0.3", "--out-dir", run)
    assert len(iterates) == pytest.approx(0.3 * result["steps"], abs=3)
    averaged = load_checkpoint(RunDir(run).last)["averaging"]["averaged"]
    names = [name for name in averaged if name != "decoder.weight"]  # tied
    for name, *tensors in zip(names, *iterates, strict=True):
        naive = torch.stack(tensors).double().mean(0)
        assert torch.allclose(averaged[name].double(), naive, atol=1e-6), name
    epochs = [json.loads(line) for line in RunDir(run).metrics.read_text().splitlines() if '"epoch", ' in line]
    last = [record for record in epochs if record["kind"] == "epoch"][-1]
    raw, mean = last["valid_loss_raw"], last["valid_loss_averaged"]
    assert last["valid_loss"] == min(raw, mean)
    assert last["averaged"] == (mean < raw)


def test_stopped_in_the_middle_of_a_trapezoid_it_ends_in_the_same_bits(train_here, corpus_dir, tmp_path, monkeypatch):
    command = ["--data", corpus_dir, *FLAGS, "--average-last=0.6"]
    train_here(*command, "--out-dir", tmp_path / "straight")
    real, steps = lm.train.update, []

    class TimeUp(lm.train.StopSignals):
        @property
        def asked(self):
            return len(steps) in (70, 150)  # on the way up to the mean, and after it began

    def update(run, window):
        real(run, window)
        steps.append(run.progress.step)

    monkeypatch.setattr(lm.train, "update", update)
    monkeypatch.setattr(lm.train, "StopSignals", TimeUp)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train_here(*command, "--out-dir", tmp_path / "cut", "--resume=auto")
        assert json.loads((tmp_path / "cut" / "result.json").read_text())["status"] == "interrupted"
        steps.append(0)  # past the moment
    train_here(*command, "--out-dir", tmp_path / "cut", "--resume=auto")
    assert same(ending(tmp_path / "straight"), ending(tmp_path / "cut"))


def test_a_run_whose_time_is_up_is_saved_exits_with_0_and_goes_on(cli, corpus_dir, tmp_path):
    command = ["train", "--data", corpus_dir, *FLAGS, "--out-dir", tmp_path / "run", "--resume=auto"]
    done = cli(*command, "--max-minutes=0.001")
    assert (done.returncode, "stopped after 0.001 minutes" in done.stderr) == (0, True), done.stderr
    assert "error" not in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
    assert cli(*command, "--max-minutes=60").returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"


def test_checkpoints_by_time_replace_those_by_updates_and_by_epochs(train_here, corpus_dir, tmp_path, monkeypatch):
    saved = {"last": [], "best": []}
    real = lm.training.writer.save_checkpoint

    def save(path, state, **options):
        saved[path.stem].append(state["progress"]["step"])
        real(path, state, **options)

    monkeypatch.setattr(lm.training.writer, "save_checkpoint", save)
    command = ["--data", corpus_dir, *FLAGS, "--no-eval-test", "--save-every=1", "--epochs=3"]
    straight = train_here(*command, "--save-minutes=60", "--out-dir", tmp_path / "hours")
    _, *later = saved["last"]  # the first stands before the first validation, so that there is one
    assert (later, saved["best"]) == ([straight["steps"]], [straight["steps"]])
    train_here(*command, "--save-minutes=1e-9", "--out-dir", tmp_path / "always")
    assert len(saved["last"]) > 100
    assert same(*(checkpoint(tmp_path / name, "best") for name in ("hours", "always")))


def test_stopped_by_the_clock_epochs_after_its_last_checkpoint_a_run_loses_nothing(
    train_here, corpus_dir, tmp_path, monkeypatch
):
    command = ["--data", corpus_dir, *FLAGS, "--epochs=3", "--save-minutes=60"]
    train_here(*command, "--out-dir", tmp_path / "straight")
    real = lm.train.train_epoch

    def third_epoch_stopped(run, writer, options, log, stop, saves):
        if run.progress.epoch == 3:
            raise Interrupted("stopped", 0)
        real(run, writer, options, log, stop, saves)

    with monkeypatch.context() as patch:
        patch.setattr(lm.train, "train_epoch", third_epoch_stopped)
        with pytest.raises(Interrupted):
            train_here(*command, "--out-dir", tmp_path / "cut")
    best = checkpoint(tmp_path / "cut", "best")["progress"]
    assert best["best_epoch"] == checkpoint(tmp_path / "cut", "last")["progress"]["best_epoch"] > 0
    train_here(*command, "--out-dir", tmp_path / "cut", "--resume=auto")
    files = {"files"}  # the one that went on kept the checkpoint before
    straight, cut = (ending(tmp_path / name) for name in ("straight", "cut"))
    assert same({k: v for k, v in straight.items() if k not in files}, {k: v for k, v in cut.items() if k not in files})


def test_a_step_outside_of_a_graph_is_the_step_inside():
    values = {"emsize": 6, "nhid": 6, "nlayers": 2, "batch_size": 2, "bptt": 5, "max_seq_len_delta": 3, "lr": 0.01}
    values |= {"optimizer": "adam", "schedule": "trapezoid", "adam_beta1": 0.7}  # beta1 stays, so a graph could hold it
    weights = []
    for inside in (False, True):
        run = random_run(make_config(**values), 20)
        if inside:
            run.momentum = None
            run.step_in_graph = True
        for _ in range(30):
            lm.train.update(run, next(run.windows))
        weights.append(run.model.state_dict())
        places = {parameter.grad.data_ptr() for parameter in run.model.parameters()}
        assert len(places) == len(list(run.model.parameters()))  # the two biases of a layer share none
    assert same(*weights)


@pytest.mark.parametrize("name", PRESETS)
def test_the_raw_dropped_weights_learn_in_every_preset(name):
    run = random_run(make_config(name, "ptb", emsize=6, nhid=6, batch_size=2, bptt=5, max_seq_len_delta=0), 20)
    raw = [rnn.linear.weight if run.config.model == "QRNN" else rnn.weight_hh_l0 for rnn in run.model.rnns]
    before = [weight.detach().clone() for weight in raw]
    lm.train.update(run, next(run.windows))
    for weight, old in zip(raw, before, strict=True):
        assert weight.grad is not None
        assert weight.grad.any()
        assert not torch.equal(weight, old)
