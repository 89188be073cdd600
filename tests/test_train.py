"""lm.train: what a run writes, repeats to the bit, continues from, and refuses."""

import json
import os
import shutil
import signal

import pytest
import torch

import lm.train
from lm.base.errors import ConfigError, DivergedError
from lm.base.locks import take_lock
from lm.base.numbers import LARGEST_LOSS
from lm.base.rundir import RunDir
from lm.training.checkpoint import load_checkpoint, save_checkpoint
from lm.training.writer import RunWriter
from tests.conftest import TINY
from tests.rundir import records, same, weights


def test_a_run_directory_holds_what_the_design_promises(tiny_run):
    names = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    assert {
        "config.json", "env.json", "tokenizer.json", "metrics.jsonl", "train.log", "result.json",
        "ckpt/last.pt", "ckpt/best.pt",
    } <= names  # fmt: skip
    result = json.loads((tiny_run / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["epochs"] == 2
    assert {
        "config", "seed", "dataset", "best_epoch", "valid_loss", "valid_ppl", "test_loss", "test_ppl", "train_ppl",
        "activation", "params", "tokens", "seconds", "tokens_per_s", "peak_rss_mb", "versions", "git", "corpus_sha256",
    } <= result.keys()  # fmt: skip
    assert result["valid_ppl"] < 40  # fewer than the types: something was learned
    assert "epoch   2/2" in (tiny_run / "train.log").read_text()


def test_metrics_have_every_loss_term_apart(tiny_run):
    steps = [record for record in records(tiny_run) if record["kind"] == "step"]
    assert {"loss", "ar", "tar", "grad_norm", "clipped", "lr", "ppl"} <= steps[0].keys()
    assert all(0 < record["ar"] and 0 < record["tar"] and 0 <= record["clipped"] <= 1 for record in steps)


def test_tensorboard_shows_scalars_histograms_and_hyperparameters(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run / "tb")).Reload()
    assert {"step/loss", "step/ar", "step/tar", "step/grad_norm", "step/clipped", "step/lr", "step/tokens_per_s",
            "step/peak_rss_mb", "epoch/valid_ppl", "epoch/activation/rms", "final/test_ppl"} <= set(
        events.Tags()["scalars"]
    )  # fmt: skip
    assert events.Tags()["histograms"] == ["activation"]
    assert any("hparams" in name for name in events.summary_metadata)


def first_update(cli, corpus_dir, run_dir, *flags):
    done = cli("train", "--data", corpus_dir, *TINY, "--max-steps=1", "--log-interval=1", "--epochs=1",
               "--no-tensorboard", "--no-eval-test", "--out-dir", run_dir, *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return records(run_dir)[0], weights(run_dir)


def test_train_tokens_trains_on_the_start_of_the_text_with_the_vocabulary_of_all_of_it(cli, corpus_dir, tmp_path):
    flags = ("--data", corpus_dir, *TINY, "--no-tensorboard", "--no-eval-test", "--epochs=1", "--train-tokens=60")
    run = tmp_path / "run"
    done = cli("train", *flags, "--out-dir", run, "--batch-size=2", "--no-variable-bptt", "--bptt=10")
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["tokens"]) == (3, 58)
    known = weights(run)["encoder.weight"].shape[0]
    assert known == len(set((corpus_dir / "train.txt").read_text().split()) | {"<eos>", "<unk>"})
    short = cli("train", *flags, "--out-dir", tmp_path / "short", "--batch-size=40")
    assert short.returncode == 2
    assert "--train-tokens: 60 are less than two a column, 80" in short.stderr
    long = cli("train", *flags, "--train-tokens=99999", "--out-dir", tmp_path / "long", "--dry-run")
    assert (long.returncode, "--train-tokens: train has no more than" in long.stderr) == (0, True)


def test_each_coefficient_changes_the_first_gradient_through_the_command_line(cli, corpus_dir, tmp_path):
    plain, plain_weights = first_update(cli, corpus_dir, tmp_path / "0", "--alpha=0", "--beta=0")
    ar, ar_weights = first_update(cli, corpus_dir, tmp_path / "a", "--alpha=2", "--beta=0")
    tar, tar_weights = first_update(cli, corpus_dir, tmp_path / "b", "--alpha=0", "--beta=2")
    assert plain["loss"] == ar["loss"] == tar["loss"]  # the reported loss is without penalties
    assert (plain["ar"], plain["tar"], ar["tar"], tar["ar"]) == (0, 0, 0, 0)
    assert len({plain["grad_norm"], ar["grad_norm"], tar["grad_norm"]}) == 3
    for changed in (ar_weights, tar_weights):
        assert not torch.equal(changed["rnns.1.weight_hh_l0"], plain_weights["rnns.1.weight_hh_l0"])


def test_zero_coefficients_train_bit_for_bit_as_a_program_without_the_terms(small_dir, tmp_path, monkeypatch):
    from lm.config.schema import RunOptions
    from lm.config.values import make_config

    monkeypatch.chdir(tmp_path)

    def run(name: str, **coefficients) -> dict[str, torch.Tensor]:
        config = make_config(
            dataset="tiny", data=str(small_dir), emsize=8, nhid=12, nlayers=2, batch_size=4, bptt=7,
            eval_batch_size=2, epochs=1, max_steps=20, **coefficients,
        )  # fmt: skip
        lm.train.train(config, RunOptions(out_dir=name, tensorboard=False, eval_test=False))
        return weights(tmp_path / name)

    zero, regularized = run("zero", alpha=0.0, beta=0.0), run("on", alpha=2.0, beta=1.0)
    monkeypatch.setattr(lm.train, "regularization_terms", lambda *arguments: {})
    without = run("without", alpha=2.0, beta=1.0)
    assert same(zero, without)
    assert not same(regularized, without)


@pytest.mark.parametrize(
    "flags",
    [
        ("--nonmono=0", "--alpha=2", "--beta=1"),
        ("--optimizer=adam", "--lr=0.01"),
        ("--optimizer=adamw", "--lr=0.01", "--schedule=onecycle", "--dropout-kind=standard"),
    ],
    ids=["sgd", "adam", "adamw-onecycle"],
)
def test_a_run_killed_and_resumed_ends_in_the_same_bits(flags, faults, small_dir, tmp_path):
    """NT-ASGD is killed in tests/test_reliability.py."""
    common = ["--data", small_dir, *TINY, "--epochs=3", "--save-every=5", "--log-interval=1", "--no-eval-test",
              "--no-tensorboard", *flags]  # fmt: skip
    assert faults.run("corpus", "--data", small_dir, folder=tmp_path).returncode == 0  # so that both find it encoded
    done = faults.train(tmp_path, *common, "--out-dir=straight")
    assert done.returncode == 0, done.stderr
    straight = records(tmp_path / "straight")
    windows = [number for number, call in enumerate(done.calls, 1) if call.startswith("training")]
    moment = windows[17]  # mid-epoch, past a checkpoint
    killed = faults.train(tmp_path, *common, "--out-dir=killed", action="kill", at=moment)
    assert killed.returncode == -signal.SIGKILL
    done = faults.train(tmp_path, *common, "--out-dir=killed", "--resume=auto")
    assert done.returncode == 0, done.stderr
    assert "resuming in epoch" in done.stderr
    assert records(tmp_path / "killed") == straight  # no update missing, none twice
    for name in ("last", "best"):
        assert same(weights(tmp_path / "killed", name), weights(tmp_path / "straight", name))


def test_a_finished_run_is_not_repeated_and_not_overwritten(cli, tiny_run, corpus_dir):
    common = ("train", "--data", corpus_dir, *TINY, "--epochs=2", "--log-interval=10", "--out-dir", tiny_run)
    before = (tiny_run / "result.json").read_bytes()
    assert "nothing to do" in cli(*common, "--resume=auto").stderr
    refused = cli(*common)
    assert refused.returncode == 2
    assert "--resume auto" in refused.stderr
    assert (tiny_run / "result.json").read_bytes() == before


def test_a_run_that_is_lengthened_ends_as_one_that_was_long_from_the_start(cli, small_dir, tmp_path):
    common = ("train", "--data", small_dir, *TINY, "--no-tensorboard", "--no-eval-test")
    for name, epochs, resume in (("long", 3, ()), ("short", 1, ()), ("short", 3, ("--resume=auto",))):
        done = cli(*common, f"--epochs={epochs}", "--out-dir", tmp_path / name, *resume)
        assert done.returncode == 0, done.stderr
    assert same(weights(tmp_path / "short"), weights(tmp_path / "long"))
    assert records(tmp_path / "short") == records(tmp_path / "long")
    shortened = cli(*common, "--epochs=2", "--out-dir", tmp_path / "long", "--resume=auto")
    assert shortened.returncode == 2
    assert "--epochs" in shortened.stderr


def test_what_an_optimizer_on_a_gpu_keeps_besides_is_not_in_the_way_on_a_cpu(train_here, small_dir, tmp_path):
    def flags(name, epochs):
        common = ("--data", small_dir, *TINY, "--optimizer=adamw", "--lr=0.01", "--no-tensorboard", "--no-eval-test")
        return (*common, f"--epochs={epochs}", "--out-dir", tmp_path / name, "--resume=auto")

    train_here(*flags("straight", 2))
    train_here(*flags("moved", 1))
    state = load_checkpoint(tmp_path / "moved/ckpt/last.pt")
    state["optimizer"]["param_groups"][0] |= {"lr": torch.tensor(0.01), "capturable": True}
    save_checkpoint(tmp_path / "moved/ckpt/last.pt", {k: v for k, v in state.items() if k != "format"})
    train_here(*flags("moved", 2))
    assert same(weights(tmp_path / "moved"), weights(tmp_path / "straight"))


def test_resuming_from_a_checkpoint_continues_the_run_it_lies_in_and_no_other(cli, small_dir, tmp_path):
    common = ("train", "--data", small_dir, *TINY, "--no-tensorboard", "--no-eval-test", "--epochs=2")
    assert cli(*common, "--max-steps=10", "--out-dir", tmp_path / "a").returncode == 0
    last = tmp_path / "a" / "ckpt" / "last.pt"
    refused = cli(*common, "--max-steps=10", "--resume", last, "--out-dir", tmp_path / "b")
    assert refused.returncode == 2
    assert "--out-dir" in refused.stderr
    done = cli(*common, "--max-steps=10", "--resume", last, "--json")
    assert json.loads(done.stdout)["steps"] == 10


def test_a_run_resumed_with_fewer_epochs_ends_where_they_end_and_not_an_epoch_later(train_here, small_dir, tmp_path):
    def flags(name, epochs):
        common = ("--data", small_dir, *TINY, "--no-tensorboard", "--no-eval-test", "--save-every=5")
        return (*common, f"--epochs={epochs}", "--out-dir", tmp_path / name, "--resume=auto")

    train_here(*flags("a", 2))
    state = load_checkpoint(tmp_path / "a/ckpt/last.pt")
    state["config"]["epochs"], state["progress"]["finished"] = 5, False  # as if stopped on its way to five
    save_checkpoint(tmp_path / "a/ckpt/last.pt", {k: v for k, v in state.items() if k != "format"})
    (tmp_path / "a/result.json").unlink()
    assert train_here(*flags("a", 2))["epochs"] == 2
    with pytest.raises(ConfigError, match="in epoch 2 already"):
        train_here(*flags("a", 1))


def test_a_lost_or_damaged_best_checkpoint_is_told_before_training_goes_on(cli, small_dir, tmp_path):
    flags = ("train", "--data", small_dir, *TINY, "--no-tensorboard", "--out-dir", tmp_path, "--resume=auto")
    assert cli(*flags, "--epochs=1").returncode == 0
    best, before = tmp_path / "ckpt/best.pt", (tmp_path / "metrics.jsonl").read_bytes()
    best.write_bytes(best.read_bytes()[:-99])
    done = cli(*flags, "--epochs=2")
    assert (done.returncode, str(best) in done.stderr) == (5, True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_resuming_from_a_file_that_lies_in_no_run_writes_nothing(cli, tiny_run, corpus_dir, tmp_path):
    (tmp_path / "home/docs").mkdir(parents=True)
    shutil.copy(tiny_run / "ckpt/last.pt", stray := tmp_path / "home/docs/last.pt")
    for place, code, text in ((stray, 5, "a run directory"), (tiny_run, 2, "--resume auto")):
        done = cli("train", "--data", corpus_dir, *TINY, "--epochs=2", "--resume", place)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["docs"]


def test_a_finished_run_is_tested_and_copied_when_that_is_asked_for_later(train_here, small_dir, tmp_path):
    flags = ("--data", small_dir, *TINY, "--epochs=1", "--no-tensorboard", "--out-dir", tmp_path / "run")
    assert train_here(*flags, "--no-eval-test")["test_loss"] is None
    later = train_here(*flags, "--resume=auto")
    assert later["test_loss"] > 0
    (tmp_path / "run/ckpt/last.pt").unlink()  # nothing is computed again
    assert train_here(*flags, "--resume=auto", "--save", tmp_path / "new/copy.pt") == later
    assert (tmp_path / "new/copy.pt").read_bytes() == (tmp_path / "run/ckpt/best.pt").read_bytes()


def test_a_run_that_another_process_trained_meanwhile_is_left_alone(tiny_run):
    stale = RunWriter(RunDir(tiny_run))
    os.utime(tiny_run / "ckpt/last.pt")
    with pytest.raises(ConfigError, match="start again"), stale.locked():
        pass
    with RunWriter(RunDir(tiny_run)).locked():
        pass


def test_resuming_with_another_architecture_says_what_differs(cli, tiny_run, corpus_dir):
    done = cli("train", "--data", corpus_dir, *TINY, "--epochs=2", "--nhid=13", "--out-dir", tiny_run, "--resume=auto")
    assert done.returncode == 2
    assert "--nhid 12 (now 13)" in done.stderr


def test_a_divergence_exits_with_4_before_the_update_and_keeps_the_last_good_checkpoint(cli, small_dir, tmp_path):
    flags = ("--model=RNN_RELU", "--clip=0", "--lr=1e30", "--epochs=2", "--nonmono=0", "--save-every=1")
    done = cli("train", "--data", small_dir, *TINY, *flags, "--no-tensorboard", "--out-dir", tmp_path / "run")
    assert done.returncode == 4
    assert "not finite" in done.stderr
    assert "--lr" in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"
    assert all(w.isfinite().all() for w in weights(tmp_path / "run").values())


@pytest.mark.parametrize("nats", [10 * LARGEST_LOSS, LARGEST_LOSS / 2])
def test_a_loss_whose_perplexity_is_no_number_is_a_divergence(nats, train_here, corpus_dir, tmp_path, monkeypatch):
    real = lm.train.update

    def overshoot(run, window):
        real(run, window)
        run.model.decoder.bias.data[0] += nats  # the price of every word but the first

    monkeypatch.setattr(lm.train, "update", overshoot)
    flags = ("--data", corpus_dir, *TINY, "--max-steps=1", "--no-tensorboard", "--no-eval-test", "--out-dir", tmp_path)
    if nats > LARGEST_LOSS:
        with pytest.raises(DivergedError, match="valid after epoch 1: loss 3.*: diverged"):
            train_here(*flags)
    else:
        assert train_here(*flags)["valid_loss"] == pytest.approx(nats, rel=0.1)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--dropout=2",), 2, "--dropout"),
        (("--resume=nowhere.pt",), 5, "nowhere.pt"),
        (("--batch-size=5000",), 3, "--batch-size"),
        (("--data=nowhere",), 3, "nowhere"),
        (("--test-batch-size=500",), 3, "--test-batch-size"),
        (("--kernel=fused", "--model=GRU"), 2, "--kernel"),
        (("--zoneout=0.1",), 2, "--zoneout"),
    ],
)
def test_a_users_mistake_is_one_message_and_the_documented_exit_code(flags, code, message, cli, corpus_dir, tmp_path):
    done = cli("train", "--data", corpus_dir, *TINY, "--out-dir", tmp_path / "run", *flags)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_out_dir_that_is_a_file_is_one_message(cli, corpus_dir, tmp_path):
    (tmp_path / "file").touch()
    done = cli("train", "--data", corpus_dir, *TINY, "--out-dir", tmp_path / "file")
    assert done.returncode == 1
    assert "file" in done.stderr
    assert "Traceback" not in done.stderr


def test_print_config_and_dry_run_write_nothing(cli, corpus_dir, tmp_path):
    common = ("train", "--data", corpus_dir, *TINY, "--out-dir", tmp_path / "run")
    assert json.loads(cli(*common, "--print-config").stdout)["nhid"] == 12
    done = cli(*common, "--dry-run")
    assert done.returncode == 0
    assert "parameters" in done.stderr
    assert not (tmp_path / "run").exists()


def test_json_prints_one_object_and_save_copies_the_best_checkpoint(cli, small_dir, tmp_path):
    done = cli("train", "--data", small_dir, *TINY, "--epochs=1", "--max-steps=3", "--json", "--no-tensorboard",
               "--out-dir", tmp_path / "run", "--save", tmp_path / "copy.pt")  # fmt: skip
    assert json.loads(done.stdout)["steps"] == 3
    copied = torch.load(tmp_path / "copy.pt", weights_only=True)["model"]
    assert same(copied, weights(tmp_path / "run", "best"))


def test_plateau_stops_at_the_smallest_learning_rate_and_goes_on_when_that_is_lowered(train_here, small_dir, tmp_path):
    flags = ("--data", small_dir, *TINY, "--schedule=plateau", "--nonmono=0", "--lr=1e-30", "--wdecay=0", "--epochs=9",
             "--no-tensorboard", "--no-eval-test")  # fmt: skip
    # Nothing is learned, so the rate falls from the second epoch on.
    stopped = train_here(*flags, "--min-lr=9e-31", "--out-dir", tmp_path / "stopped")
    assert stopped["epochs"] == 2
    continued = train_here(*flags, "--min-lr=0", "--out-dir", tmp_path / "stopped", "--resume=auto")
    assert continued["epochs"] == train_here(*flags, "--out-dir", tmp_path / "long")["epochs"] == 9
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "long"))
    assert records(tmp_path / "stopped") == records(tmp_path / "long")
    with pytest.raises(ConfigError, match="--min-lr"):
        train_here(*flags, "--min-lr=9e-31", "--out-dir", tmp_path / "long", "--resume=auto")


def test_schedules_end_with_the_last_update_and_train_perplexity_can_be_taken_over_a_part(cli, corpus_dir, tmp_path):
    flags = ("--schedule=linear", "--max-steps=10", "--eval-train-tokens=100", "--no-variable-bptt")
    options = ("--log-interval=1", "--json", "--no-tensorboard", "--out-dir", tmp_path / "run")
    done = cli("train", "--data", corpus_dir, *TINY, *flags, *options)
    assert [r["lr"] for r in records(tmp_path / "run") if r["kind"] == "step"] == pytest.approx(
        [5 * (1 - step / 10) for step in range(10)]
    )
    assert [r["lr"] for r in records(tmp_path / "run") if r["kind"] == "epoch"] == [0.0]  # the rate at its end
    whole = cli("evaluate", tmp_path / "run", "--split", "train", "--json")
    assert json.loads(done.stdout)["train_ppl"] != json.loads(whole.stdout)["splits"][0]["ppl"]


@pytest.mark.gpu
def test_a_cuda_run_trains_and_resumes(cli, corpus_dir, tmp_path):
    common = ("train", "--data", corpus_dir, *TINY, "--device=cuda", "--no-tensorboard", "--out-dir", tmp_path / "run")
    assert cli(*common, "--epochs=1").returncode == 0
    done = cli(*common, "--epochs=2", "--resume=auto")
    assert done.returncode == 0, done.stderr


def test_a_second_process_on_a_run_directory_is_refused_and_a_dead_ones_lock_is_not_in_the_way(
    cli, small_dir, tmp_path
):
    command = [
        "train",
        "--data",
        small_dir,
        *TINY,
        "--epochs=1",
        "--no-eval-test",
        "--out-dir",
        tmp_path,
        "--resume=auto",
    ]
    lock = take_lock(tmp_path / "train.lock", wait=False)
    os.write(lock, b"4321")
    refused = cli(*command)
    assert refused.returncode == 2
    assert f"process 4321 is training in {tmp_path}" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.lock"]
    os.close(lock)
    assert cli(*command).returncode == 0
    assert (tmp_path / "train.lock").read_text().isdigit()
