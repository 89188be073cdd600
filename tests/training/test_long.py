"""Long training: validation within an epoch, patience, and what may change when a run is continued."""

import dataclasses
import json

import pytest

import lm.train
from lm.base.errors import CheckpointError, ConfigError, Interrupted
from lm.config.schema import TrainConfig
from lm.config.values import config_id, is_open_ended
from tests.conftest import TINY
from tests.rundir import checkpoint, records, same, weights

FLAGS = [*TINY, "--no-tensorboard", "--no-eval-test", "--eval-train-tokens=20", "--log-interval=1", "--save-every=5"]


@pytest.fixture
def run_with(train_here, small_dir, tmp_path):
    """Train a run of this name under tmp_path, resumed if it is there."""

    def run(name, *flags):
        return train_here("--data", small_dir, *FLAGS, *flags, "--out-dir", tmp_path / name, "--resume=auto")

    return run


@pytest.fixture
def losses(monkeypatch):
    """Replace the losses that training sees on valid by others."""

    real = lm.train.validate

    def script(*values):
        coming = iter(values)

        def scripted(*arguments):
            loss = next(coming)
            return {k: dataclasses.replace(v, nats=loss * v.targets) for k, v in real(*arguments).items()}

        monkeypatch.setattr(lm.train, "validate", scripted)

    return script


def validations(run):
    """Kind and update of every validation."""
    return [(record["kind"], record["step"]) for record in records(run) if record["kind"] != "step"]


def test_valid_is_scored_every_n_updates_and_at_each_end_of_an_epoch_without_a_change_of_the_training(
    run_with, tmp_path
):
    run_with("often", "--epochs=2", "--validate-every=4", "--nonmono=0")
    run_with("seldom", "--epochs=2", "--nonmono=0")
    end, last = (step for kind, step in validations(tmp_path / "seldom"))
    expected = [("valid", step) for step in range(4, last, 4) if step != end] + [("epoch", end), ("epoch", last)]
    assert validations(tmp_path / "often") == sorted(expected, key=lambda pair: pair[1])
    assert same(weights(tmp_path / "often"), weights(tmp_path / "seldom"))


def test_valid_is_scored_after_each_nth_epoch_and_the_last_without_a_change_of_the_training(run_with, tmp_path):
    run_with("all", "--epochs=5", "--nonmono=0")
    run_with("some", "--epochs=5", "--validate-epochs=2", "--nonmono=0")
    ends = validations(tmp_path / "all")
    assert validations(tmp_path / "some") == [ends[1], ends[3], ends[4]]
    assert same(weights(tmp_path / "all"), weights(tmp_path / "some"))
    run_with("steps", "--epochs=5", f"--max-steps={ends[2][1]}", "--validate-epochs=2", "--nonmono=0")
    assert validations(tmp_path / "steps") == ends[1:3]


@pytest.mark.parametrize("flags", [(), ("--nonmono=0", "--patience=3"), ("--nonmono=0", "--schedule=plateau")])
def test_where_valid_steers_the_run_it_is_scored_after_every_epoch(flags):
    with pytest.raises(ConfigError, match="--validate-epochs"):
        lm.train.configure(["--preset=awd-lstm", "--dataset=ptb", "--validate-epochs=2", *flags])


def test_a_run_with_fewer_validations_cannot_be_made_longer_since_its_last_epoch_has_one():
    config = TrainConfig(nonmono=0)
    assert is_open_ended(config) and not is_open_ended(dataclasses.replace(config, validate_epochs=2))


def test_tokens_per_second_leave_out_validations_within_an_epoch(run_with, monkeypatch, tmp_path):
    real = lm.train.validate

    def slow(run, *arguments):
        run.progress.seconds += 1e6
        return real(run, *arguments)

    monkeypatch.setattr(lm.train, "validate", slow)
    run_with("run", "--epochs=1", "--max-steps=6", "--validate-every=2", "--nonmono=0")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(line["tokens_per_s"] > 0 for line in lines if line["kind"] == "step")


def test_nonmono_and_plateau_count_validations_within_an_epoch_too(run_with, losses, tmp_path):
    losses(3.0, 3.1, 3.2, 3.3, 3.4)
    run_with("sgd", "--epochs=1", "--max-steps=9", "--validate-every=2", "--nonmono=1")
    text = (tmp_path / "sgd/train.log").read_text()
    assert text.index("step       6") < text.index("NT-ASGD: averaging from here on") < text.index("step       7")
    losses(3.0, 3.1, 3.0, 2.9)
    run_with("plateau", "--epochs=1", "--max-steps=7", "--validate-every=2", "--nonmono=0", "--schedule=plateau")
    rates = {record["step"]: record["lr"] for record in records(tmp_path / "plateau") if record["kind"] == "step"}
    ratios = [rates[step] / rates[1] for step in (4, 5, 7)]  # but for what the windows' lengths make of it
    assert ratios == [1, 1 / 4, 1 / 16]


def test_patience_ends_training_within_an_epoch_and_a_longer_one_continues_it(run_with, losses, tmp_path):
    flags = ("--epochs=1", "--validate-every=2", "--nonmono=0")
    losses(3.0, 3.1, 3.2, 2.0)
    ended = run_with("run", *flags, "--patience=2")
    assert (ended["steps"], ended["epochs"], ended["valid_loss"]) == (6, 1, pytest.approx(3.0))
    losses(*[2.5, 2.6] * 5)
    went_on = run_with("run", *flags, "--patience=4")
    assert went_on["steps"] > 8
    assert went_on["valid_loss"] == pytest.approx(2.5)


def test_a_run_that_ends_within_its_first_epoch_has_its_best_in_epoch_1_of_1(cli, small_dir, tmp_path):
    # Nothing is learned, so no validation is better than the first.
    flags = ("--lr=1e-30", "--wdecay=0", "--epochs=9", "--validate-every=3", "--patience=2")
    done = cli("train", "--data", small_dir, *FLAGS, *flags, "--out-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "(best epoch 1 of 1," in done.stdout
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["steps"], result["epochs"]) == (9, 1)
    done = cli("evaluate", tmp_path / "run", "--export", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert "9 updates, weights of epoch 1 of 1\n" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize("steering", [["--nonmono=1"], ["--nonmono=0", "--schedule=linear"]])
def test_a_run_stopped_before_a_validation_within_an_epoch_ends_in_the_same_bits(
    steering, run_with, monkeypatch, tmp_path
):
    flags = ("--epochs=2", "--validate-every=4", *steering)
    run_with("straight", *flags)
    real = lm.train.validate

    def stopped(run, where, stop):
        monkeypatch.setattr(lm.train, "validate", real)
        raise Interrupted("stopped", 143)

    monkeypatch.setattr(lm.train, "validate", stopped)
    with pytest.raises(Interrupted):
        run_with("stopped", *flags)
    run_with("stopped", *flags)
    assert records(tmp_path / "stopped") == records(tmp_path / "straight")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "straight"))


def test_another_learning_rate_is_taken_from_where_the_run_is_and_told(run_with, tmp_path):
    flags = ("--nonmono=0", "--no-variable-bptt", "--when", "1")
    run_with("run", *flags, "--epochs=1")
    result = run_with("run", *flags, "--epochs=2", "--lr=3")
    rates = {r["epoch"]: r["lr"] for r in records(tmp_path / "run") if r["kind"] == "step"}
    assert rates == pytest.approx({1: 5, 2: 0.3})  # what --when made of it stays
    assert result["changes"] == [f"from update {result['steps'] // 2} on with --lr 3 (was 5)"]
    assert result["changes"][0] in (tmp_path / "run/train.log").read_text()
    assert json.loads((tmp_path / "run/config.json").read_text())["lr"] == 3


def best_loss(run):
    """The valid loss of what best.pt holds."""
    return checkpoint(run, "best")["progress"]["best_loss"]


def test_the_best_checkpoint_is_that_of_the_last_best_validation_within_an_epoch_or_at_its_end(
    run_with, losses, tmp_path
):
    losses(5.0, 4.0, 3.0)  # the second one after the last save within the epoch
    result = run_with("run", "--epochs=1", "--validate-every=5", "--save-every=7", "--nonmono=0")
    assert [kind for kind, _ in validations(tmp_path / "run")] == ["valid", "valid", "epoch"]
    assert best_loss(tmp_path / "run") == result["valid_loss"] == pytest.approx(3.0)
    assert same(weights(tmp_path / "run", "best"), weights(tmp_path / "run"))  # of the end of the epoch


def test_a_best_checkpoint_of_other_weights_is_not_scored_as_the_runs_best(run_with, losses, tmp_path):
    losses(5.0, 4.0)
    run_with("run", "--epochs=1", "--nonmono=0")
    other = tmp_path / "run/ckpt/best.pt"
    kept = other.read_bytes()
    run_with("run", "--epochs=2", "--nonmono=0")
    other.write_bytes(kept)
    (tmp_path / "run/result.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"best\.pt: its valid loss is 5\.0000, but the best of this run is 4\.0000"
    ):
        run_with("run", "--epochs=2", "--nonmono=0")


def test_with_another_learning_rate_the_best_so_far_is_what_best_pt_holds(run_with, losses, tmp_path):
    losses(5.0, 3.0, 4.0)
    run_with("run", "--epochs=1", "--nonmono=0")
    early = (tmp_path / "run/ckpt/last.pt").read_bytes()
    run_with("run", "--epochs=2", "--nonmono=0")
    (tmp_path / "run/ckpt/last.pt").write_bytes(early)  # as a user would who goes back
    result = run_with("run", "--epochs=2", "--nonmono=0", "--lr=3")
    assert result["valid_loss"] == best_loss(tmp_path / "run") == pytest.approx(3.0)
    assert result["best_epoch"] == 2


def test_more_updates_than_ended_a_run_within_an_epoch_are_told(run_with):
    run_with("run", "--epochs=3", "--max-steps=5", "--nonmono=0")
    result = run_with("run", "--epochs=3", "--max-steps=9", "--nonmono=0")
    assert result["changes"] == ["from update 5 on with --max-steps 9 (was 5), in the next epoch"]
    assert "changes" not in run_with("whole", "--epochs=3", "--max-steps=9", "--nonmono=0")


def test_more_updates_may_be_asked_for_but_not_fewer_nor_under_a_schedule_that_they_scale(run_with):
    run_with("run", "--epochs=3", "--max-steps=5", "--nonmono=0")
    assert run_with("run", "--epochs=3", "--max-steps=9", "--nonmono=0")["steps"] == 9
    with pytest.raises(ConfigError, match="--max-steps: this run has made 9 updates"):
        run_with("run", "--epochs=3", "--max-steps=6", "--nonmono=0")
    run_with("linear", "--max-steps=5", "--nonmono=0", "--schedule=linear")
    with pytest.raises(ConfigError, match=r"--max-steps 5 \(now 9\)"):
        run_with("linear", "--max-steps=9", "--nonmono=0", "--schedule=linear")


def test_the_new_fields_change_no_identity_at_their_defaults():
    assert config_id(TrainConfig()) == config_id(TrainConfig(patience=0, validate_every=0))
    assert config_id(TrainConfig()) != config_id(TrainConfig(patience=1))
