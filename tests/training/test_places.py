"""A run replaces nothing that it did not write: other programs' files, what is left of a run, what `--save` names."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from lm.base.errors import CheckpointError, ConfigError, LMError
from lm.base.locks import take_lock
from lm.base.rundir import RunDir
from lm.training.checkpoint import save_checkpoint
from lm.training.writer import RunWriter
from tests.conftest import TINY


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the finished run of two epochs."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def lengthen(train_here, corpus_dir):
    def train(run, *flags):
        return train_here("--data", corpus_dir, *TINY, "--epochs=3", "--no-tensorboard", "--out-dir", run, *flags)

    return train


def drop_last(run):
    for path in run.glob("ckpt/last*"):
        path.unlink()


@pytest.mark.parametrize("also_best", [False, True], ids=["best.pt is there", "no checkpoint is there"])
def test_a_run_whose_last_checkpoint_is_lost_is_not_begun_anew_over_what_is_left(also_best, run, lengthen):
    drop_last(run)
    if also_best:
        (run / "ckpt/best.pt").unlink()
    before = contents(run)
    with pytest.raises(CheckpointError, match=r"last\.pt: not there"):
        lengthen(run, "--resume=auto")
    assert contents(run) == before


def test_a_checkpoint_to_continue_from_is_there_before_the_first_best_one(run, lengthen, monkeypatch):
    seen = []
    real = RunWriter.save_kept

    def note(self):
        if self._kept:
            seen.append(self._directory.last.exists())
        real(self)

    monkeypatch.setattr(RunWriter, "save_kept", note)
    lengthen(run.parent / "new", "--save-every=100000")
    lengthen(run.parent / "tuned", "--finetune", run)
    assert len(seen) > 3
    assert all(seen)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "metrics.jsonl", "result.json", "env.json"])
@pytest.mark.parametrize("resume", [[], ["--resume=auto"]], ids=["new", "resumed"])
def test_a_folder_of_another_program_is_left_alone(name, resume, lengthen, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_text('{"architectures": ["GPT2LMHeadModel"]}')
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="of no run of this program"):
        lengthen(tmp_path / "theirs", *resume)
    assert contents(tmp_path) == before


def test_checkpoints_without_a_configuration_are_a_run_too(run, lengthen):
    shutil.copytree(run / "ckpt", run.parent / "copy" / "ckpt")
    before = contents(run.parent / "copy")
    with pytest.raises(ConfigError, match="holds a run already"):
        lengthen(run.parent / "copy")
    assert contents(run.parent / "copy") == before


def test_a_killed_start_without_a_configuration_is_begun_again(lengthen, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("train.lock", "metrics.jsonl", "env.json", "tokenizer.json"):
        (tmp_path / "run" / name).touch()
    assert lengthen(tmp_path / "run", "--resume=auto")["status"] == "completed"


@pytest.mark.parametrize(
    "place",
    [
        "fifo",
        "corpus.txt",
        "new/ckpt/last.pt",
        "new/ckpt/mine.pt",
        "new/config.json",
        "new/run.lock",
        "new/sweep.lock",
        "run/ckpt/best.pt",
        "x" * 256,
    ],
    ids=lambda place: place[:20],
)
def test_a_copy_replaces_nothing_but_a_copy(place, run, lengthen, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "corpus.txt").write_text("a text\n")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="--save: "):
        lengthen(tmp_path / "new", "--save", tmp_path / place)
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["x" * 250, "copy.pt", "empty", "link.pt"])
def test_a_copy_may_replace_an_earlier_one_and_have_any_name(name, run, lengthen, tmp_path):
    save_checkpoint(tmp_path / "copy.pt", {"model": torch.zeros(1)})
    (tmp_path / "empty").touch()
    (tmp_path / "link.pt").symlink_to("elsewhere.pt")
    lengthen(run, "--resume=auto", "--save", tmp_path / name)
    assert (tmp_path / name).read_bytes() == (run / "ckpt/best.pt").read_bytes()
    assert (tmp_path / "link.pt").is_symlink()


def test_a_dry_run_of_a_complete_run_copies_nothing(run, lengthen, tmp_path):
    lengthen(run, "--resume=auto")
    assert lengthen(run, "--resume=auto", "--dry-run", "--save", tmp_path / "copy.pt")["status"] == "completed"
    assert not (tmp_path / "copy.pt").exists()


def test_a_copy_of_a_best_checkpoint_that_is_lost_names_it(run, train_here, corpus_dir):
    (run / "ckpt/best.pt").unlink()
    flags = ("--data", corpus_dir, *TINY, "--epochs=2", "--log-interval=10", "--out-dir", run, "--resume=auto")
    with pytest.raises(CheckpointError, match=r"best\.pt: cannot be read"):
        train_here(*flags, "--save", run.parent / "copy.pt")


def test_a_process_whose_directory_was_deleted_and_begun_anew_by_another_writes_no_more(run):
    writer = RunWriter(RunDir(run))
    with writer.locked():
        shutil.rmtree(run)
        for _ in range(2):  # deleted, and then begun anew
            with pytest.raises(LMError, match="was deleted or replaced") as caught:
                writer.save_last(SimpleNamespace(state_dict=lambda position: {}), 0)
            assert caught.value.exit_code == 1
            writer.keep_best(SimpleNamespace(best_state=lambda model: {"model": {}}), None)
            with pytest.raises(LMError):
                writer.save_kept()
            with pytest.raises(LMError):
                writer.write_result(None, "completed", {})
            other = take_lock(run / "train.lock", wait=False)
            assert other is not None
            os.close(other)
    assert os.listdir(run) == ["train.lock"]


def test_a_complete_run_on_another_text_is_not_taken_for_this_one(run, train_here, corpus_dir, tmp_path):
    result = json.loads((run / "result.json").read_text())
    flags = ("--data", corpus_dir, *TINY, "--epochs=2", "--log-interval=10", "--out-dir", run, "--resume=auto")
    assert train_here(*flags) == result
    result["corpus_sha256"]["test"] = "0" * 64
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(CheckpointError, match="is complete, but that run was trained on another text"):
        train_here(*flags)


@pytest.mark.parametrize(
    "damage",
    [
        {"seed": "x"}, {"id": None}, {"valid_ppl": None}, {"valid_ppl": 10**400}, {"test_loss": "x"}, {"versions": 3},
        {"dataset": None}, {"seconds": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_result_is_computed_again(damage, run, train_here, corpus_dir):
    whole = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(whole | damage))
    flags = ("--data", corpus_dir, *TINY, "--epochs=2", "--log-interval=10", "--out-dir", run, "--resume=auto")
    repaired = train_here(*flags, "--no-tensorboard")
    assert {key: repaired[key] for key in damage if key != "seconds"} == {
        key: whole[key] for key in damage if key != "seconds"
    }
