"""Fine-tuning through the real command line: where it starts, what it averages, when it ends, what it leaves alone."""

import dataclasses
import json
import shutil
import signal

import pytest
import torch

import lm.train
from lm.base.errors import ConfigError
from lm.base.rundir import RunDir
from lm.config.inherit import read_config
from lm.training.checkpoint import load_checkpoint
from tests.conftest import TINY, write_corpus

TUNE = ["--epochs=2", "--save-every=20", "--no-tensorboard", "--log-interval=10"]


@pytest.fixture(scope="module")
def source(cli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    corpus = write_corpus(folder / "corpus", train=150, held_out=30)  # 30 updates an epoch
    flags = ["--epochs=2", "--no-eval-test", "--no-tensorboard", "--out-dir", folder / "run"]
    done = cli("train", "--data", corpus, *TINY, *flags)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def tuned(cli, source, tmp_path_factory):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    run = tmp_path_factory.mktemp("tuned") / "run"
    done = cli("train", "--finetune", source, *TUNE, "--lr=1", "--out-dir", run)
    assert done.returncode == 0, done.stderr
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    return run


def test_it_takes_the_configuration_of_the_source_but_for_the_flags_given(source, tuned):
    before, after = (json.loads((run / "config.json").read_text()) for run in (source, tuned))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"finetune", "lr"}


def test_it_averages_all_iterates_from_the_first_update_on(source, train_here, tmp_path):
    start = load_checkpoint(source / "ckpt" / "best.pt")["model"]
    iterates = []
    for steps in (1, 2, 3):
        run = tmp_path / str(steps)
        train_here("--finetune", source, *TUNE, f"--max-steps={steps}", "--no-eval-test", "--out-dir", run)
        last = load_checkpoint(run / "ckpt" / "last.pt")
        iterates.append(last["model"])
        assert last["averaging"]["iterates"] == steps
        for name, mean in last["averaging"]["averaged"].items():
            torch.testing.assert_close(mean, torch.stack([weights[name] for weights in iterates]).mean(0))
    assert not torch.equal(iterates[0]["decoder.bias"], start["decoder.bias"])


@pytest.fixture
def valid_losses(monkeypatch):
    """Replace the losses that training sees on valid by others; `None` keeps the true one."""

    def script(losses):
        real, losses = lm.train.validate, iter(losses)

        def scripted(*arguments):
            found, loss = real(*arguments), next(losses)
            if loss is None:
                return found
            return {name: dataclasses.replace(one, nats=loss * one.targets) for name, one in found.items()}

        monkeypatch.setattr(lm.train, "validate", scripted)

    return script


def test_it_never_ends_worse_on_valid_than_it_started(source, train_here, valid_losses, tmp_path):
    valid_losses([None, 99])  # at the start, and after its epoch
    result = train_here("--finetune", source, *TUNE, "--max-steps=2", "--lr=1", "--out-dir", tmp_path / "run")
    before = json.loads((source / "result.json").read_text())
    assert result["best_epoch"] == 0
    assert result["valid_loss"] == pytest.approx(before["valid_loss"], rel=1e-9)
    assert not result["averaged"]  # which is said of the weights that are kept
    best, start = (load_checkpoint(run / "ckpt" / "best.pt")["model"] for run in (tmp_path / "run", source))
    assert all(torch.equal(best[name], start[name]) for name in start)


def test_it_ends_where_nt_asgd_would_start_averaging(source, train_here, valid_losses, tmp_path):
    run = tmp_path / "run"
    flags = ["--finetune", source, "--epochs=9", "--nonmono=1", "--lr=1", "--out-dir", run, *TUNE[1:]]
    losses = [3.5, 3.3, 3.4, 3.45]  # the last is above the best of all but the one before it
    valid_losses([3.0, *losses])  # the loss at the start is no part of the history
    train_here(*flags)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["valid_loss"] for record in records if record["kind"] == "epoch"] == pytest.approx(losses)
    (run / "result.json").unlink()  # killed before it was written, it knows that training is over
    assert train_here(*flags, "--resume=auto")["epochs"] == len(losses)


def test_killed_and_resumed_it_ends_in_the_same_bits(source, tuned, faults, tmp_path):
    run = tmp_path / "run"
    command = ["--finetune", source, *TUNE, "--lr=1", "--out-dir=run", "--resume=auto"]
    calls = faults.train(tmp_path, *command, "--max-steps=30", "--out-dir=shorter", "--no-eval-test").calls
    moment = [number for number, call in enumerate(calls, 1) if call.startswith("training")][25]
    killed = faults.train(tmp_path, *command, action="kill", at=moment)
    assert killed.returncode == -signal.SIGKILL and (run / "ckpt" / "last.pt").exists()
    assert faults.train(tmp_path, *command).returncode == 0
    ours, theirs = (load_checkpoint(path / "ckpt" / "last.pt") for path in (run, tuned))
    for name, tensor in theirs["averaging"]["averaged"].items():
        assert torch.equal(ours["averaging"]["averaged"][name], tensor), name
    results = [json.loads((path / "result.json").read_text()) for path in (run, tuned)]
    assert results[0]["test_loss"] == results[1]["test_loss"]


@pytest.mark.parametrize("resume", [[], ["--resume=auto"]])
def test_a_link_to_the_run_is_the_run_which_stays_as_it_is(source, train_here, resume, tmp_path):
    (tmp_path / "link").symlink_to(source)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is the run to fine-tune"):
        train_here("--finetune", source, *TUNE, "--out-dir", tmp_path / "link", *resume)
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}


def test_it_is_resumed_whatever_its_source_is_called(source, tuned, train_here, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    (tmp_path / "link").symlink_to(source)
    train_here("--finetune", f"{tmp_path}/link/", *TUNE, "--lr=1", "--out-dir", tmp_path / "run", "--resume=auto")


def test_it_is_resumed_although_its_source_is_gone(source, cli, tmp_path):
    moved, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(source, moved)
    command = ["train", "--finetune", moved, "--no-tensorboard", "--no-eval-test", "--lr=1", "--out-dir", run]
    assert cli(*command, "--epochs=1").returncode == 0
    shutil.rmtree(moved)
    assert "neither a run" in cli(*command, "--epochs=2").stderr
    done = cli(*command, "--epochs=2", "--resume=auto")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "result.json").read_text())["epochs"] == 2
    command[command.index("--out-dir") :] = ["--resume", "last.pt"]
    done = cli(*command, "--epochs=3", folder=run / "ckpt")
    assert done.returncode == 0, done.stderr


def test_an_export_for_transformers_is_refused_as_what_it_is(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "awd_lstm"}')
    with pytest.raises(ConfigError, match="nor an export of this program: it is one for transformers"):
        read_config(RunDir(tmp_path))


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--nhid=13"], 2, "--nhid 12 (now 13)"),
        (["--preset=examples-200"], 2, "--emsize 8 (now 200)"),
        (["--finetune=/nowhere"], 2, "neither a run directory"),
        (["--resume=auto", "--out-dir=SOURCE"], 2, "--out-dir"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused(source, cli, tmp_path, flags, code, words):
    flags = [flag.replace("SOURCE", str(source)) for flag in flags]
    done = cli("train", "--finetune", source, "--out-dir", tmp_path / "run", *flags)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
