"""A model whose corpus has moved: its checksums find it, in every command that needs it."""

import json
import shutil

import pytest
import torch

import lm.evaluate
import lm.train
from lm.base.errors import CheckpointError, CorpusError
from lm.base.rundir import RunDir
from lm.scoring.export import export_run
from lm.scoring.loading import load_run
from lm.text import pydocs
from lm.text.finding import load_corpus
from lm.text.tokenization import Tokenization
from lm.train import configure, train
from tests.conftest import TINY, write_corpus
from tests.rundir import same, weights

CPU = torch.device("cpu")
FLAGS = [*TINY, "--no-tensorboard"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run and its export, and the corpus that they were made with, which is then renamed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LM_CORPORA", raising=False)
    write_corpus(tmp_path / "mine", train=60)
    train(*configure(["--data=mine", *FLAGS, "--epochs=1", "--out-dir=run"]))
    export_run(RunDir("run"), RunDir("export"))
    (tmp_path / "mine").rename(tmp_path / "moved")
    return tmp_path


def forget(here):
    shutil.rmtree(here / "data" / "cache")


@pytest.mark.parametrize("model", ["run", "export"])
def test_the_token_cache_has_the_text_that_is_gone(here, model):
    _, _, corpus = load_run(RunDir(model), CPU)
    assert corpus.lines["train"] == 60


@pytest.mark.parametrize("model", ["run", "export"])
def test_without_it_the_folder_can_be_named_or_put_where_corpora_lie(here, model, monkeypatch):
    forget(here)
    expected = load_run(RunDir(model), CPU, "moved")[2].sha256
    for place in (here / "data" / "mine", here / "corpora" / "mine"):
        forget(here)
        with pytest.raises(CorpusError, match=r"(?s)mine \(where it was\).*--data DIR, the folder that its files lie"):
            load_run(RunDir(model), CPU)
        shutil.copytree("moved", place)
        monkeypatch.setenv("LM_CORPORA", str(here / "corpora"))
        assert load_run(RunDir(model), CPU)[2].sha256 == expected
        shutil.rmtree(place)


@pytest.fixture
def other_python(tmp_path, monkeypatch):
    """A run on the text of one version of Python, under another; the folder `old` holds its text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LM_CORPORA", raising=False)
    for seed, version in enumerate(("old", "new")):
        folder = write_corpus(tmp_path / version, train=60, seed=seed)
        texts = {split: (folder / f"{split}.txt").read_bytes() for split in ("train", "valid", "test")}
        monkeypatch.setattr(pydocs, "build", lambda texts=texts: texts)
        monkeypatch.setattr(pydocs, "fingerprint", lambda version=version: version)
        if version == "old":
            train(*configure(["--dataset=pydocs", *FLAGS, "--epochs=1", "--out-dir=run"]))
    return tmp_path


def test_a_text_of_another_python_is_in_the_token_cache_or_in_a_folder(other_python):
    expected = load_run(RunDir("run"), CPU)[2]
    assert expected.source.startswith("the token cache")
    forget(other_python)
    with pytest.raises(CheckpointError, match="use the version of Python .*, or name the folder of its own by --data"):
        load_run(RunDir("run"), CPU)
    with pytest.raises(CheckpointError, match="another text than that in new"):
        load_run(RunDir("run"), CPU, "new")
    for data, source in (("old", "old"), ("", "data/pydocs")):
        shutil.copytree("old", "data/pydocs", dirs_exist_ok=True)
        found = load_run(RunDir("run"), CPU, data)[2]
        assert (found.name, found.source, found.sha256) == ("pydocs", source, expected.sha256)


def test_the_cache_of_another_tokenizer_is_not_taken_for_it(here):
    forget(here)
    load_corpus("mine", "moved", tokenization=Tokenization("char"))
    with pytest.raises(CorpusError, match="is not there"):
        load_run(RunDir("run"), CPU)


def test_another_text_there_is_not_taken_for_it(here):
    forget(here)
    write_corpus(here / "mine", seed=3)
    with pytest.raises(CheckpointError, match="another text than that in mine; name the folder of its own by --data"):
        load_run(RunDir("run"), CPU)
    with pytest.raises(CheckpointError, match="another text than that in mine"):
        load_run(RunDir("run"), CPU, "mine")
    shutil.copytree("moved", "data/mine")
    assert load_run(RunDir("run"), CPU)[2].source == "data/mine"


def test_evaluation_takes_the_folder(here, capsys, monkeypatch):
    forget(here)
    reports = []
    for flags in (["--data=moved"], ["--activations=a.png", "--data=moved"]):
        monkeypatch.setattr("sys.argv", ["evaluate", "export", "--split=valid", "--json", *flags])
        lm.evaluate.main()
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["splits"][0]["loss"] == pytest.approx(reports[1]["runs"][0]["loss"])


def test_a_run_goes_on_from_the_same_text_at_another_path_as_if_it_had_not_moved(here):
    train(*configure(["--data=moved/", *FLAGS, "--epochs=2", "--out-dir=run", "--resume=auto"]))
    train(*configure(["--data=moved", *FLAGS, "--epochs=2", "--out-dir=straight"]))
    assert same(weights(here / "run"), weights(here / "straight"))
    assert json.loads((here / "run" / "config.json").read_text())["data"] == "moved/"


def test_another_text_does_not_continue_it(here):
    write_corpus(here / "mine", seed=3)
    with pytest.raises(CheckpointError, match="another text"):
        train(*configure(["--data=mine", *FLAGS, "--epochs=2", "--out-dir=run", "--resume=auto"]))


def test_fine_tuning_finds_the_text_by_its_name(here):
    flags = ["--finetune=run", "--max-steps=1", "--no-tensorboard", "--out-dir=tuned"]
    with pytest.raises(CorpusError, match="mine"):
        configure(flags)
    shutil.copytree("moved", "data/mine")
    assert train(*configure(flags))["config"]["data"] == ""
