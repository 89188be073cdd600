"""Perplexity per word and bits per character, and runs on characters and BPE from training to scoring."""

import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from lm import evaluate, generate
from lm.base.errors import CheckpointError, ConfigError
from lm.base.rundir import RunDir
from lm.nn.model import AWDLSTM
from lm.scoring.evaluation import split_report
from lm.scoring.loading import load_run
from lm.scoring.score import score_text
from lm.text.finding import load_corpus
from lm.text.tokenization import Tokenization
from lm.text.units import summary
from lm.train import configure, train
from lm.training.checkpoint import load_checkpoint
from tests.conftest import TINY
from tests.nn.test_model import tiny

KINDS = {"char": ["--tokenizer=char"], "bpe": ["--tokenizer=bpe", "--bpe-vocab-size=300"]}


def train_here(*arguments):
    config, options = configure([str(argument) for argument in arguments])
    return train(config, options)


@pytest.fixture(scope="module")
def runs(corpus_dir, work_dir):
    """A short run of each kind, trained in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work_dir)
        for kind, flags in KINDS.items():
            run = ["--max-steps=30", "--no-tensorboard", "--out-dir", work_dir / f"units_{kind}"]
            train_here("--data", corpus_dir, *TINY, *flags, *run)
    return {kind: work_dir / f"units_{kind}" for kind in KINDS}


@pytest.fixture(params=list(KINDS))
def run(request, runs, work_dir, monkeypatch):
    monkeypatch.chdir(work_dir)
    return request.param, runs[request.param]


def words_in(path):
    """Words and line ends of a file."""
    return len(path.read_text().split()) + path.read_text().count("\n")


@pytest.mark.parametrize("columns", [1, 3, 10])
@pytest.mark.parametrize("tokenization", [Tokenization(), Tokenization("char"), Tokenization("bpe", 300)])
def test_a_uniform_model_pays_the_logarithm_of_the_vocabulary_for_each_token_of_a_word(
    corpus_dir, tmp_path, tokenization, columns
):
    corpus = load_corpus(None, corpus_dir, tmp_path, tokenization)
    model = AWDLSTM(corpus.vocab_size, tiny())
    with torch.no_grad():
        model.encoder.weight.zero_()
    row = split_report(model, corpus, "valid", columns)
    tokens_a_word = len(corpus.splits["valid"]) / words_in(corpus_dir / "valid.txt")
    assert row["ppl"] == pytest.approx(corpus.vocab_size, rel=1e-6)
    if tokenization.kind == "word":
        assert tokens_a_word == 1
        assert not {"word_ppl", "bits_per_char"} & row.keys()
        return
    assert tokens_a_word > 1
    assert row["word_ppl"] == pytest.approx(corpus.vocab_size**tokens_a_word, rel=1e-5)
    if tokenization.kind == "char":
        assert row["bits_per_char"] == pytest.approx(math.log2(corpus.vocab_size), rel=1e-6)
        assert len(corpus.splits["valid"]) == len((corpus_dir / "valid.txt").read_text())


def test_a_result_holds_the_units_of_every_split_and_the_printed_line_begins_with_the_comparable_ones(run, corpus_dir):
    kind, path = run
    result = json.loads((path / "result.json").read_text())
    corpus = load_corpus(None, corpus_dir, tokenization=Tokenization(kind, 300))
    for split in ("train", "valid", "test"):
        ratio = len(corpus.splits[split]) / words_in(corpus_dir / f"{split}.txt")
        assert result[f"{split}_word_ppl"] == pytest.approx(math.exp(result[f"{split}_loss"] * ratio))
        assert result[f"{split}_ppl"] == pytest.approx(math.exp(result[f"{split}_loss"]))
        assert (f"{split}_bits_per_char" in result) == (kind == "char")
    line = summary(result)
    assert line.startswith("tiny: " + ("bits per character train " if kind == "char" else "perplexity per word train "))
    assert f"per token train {result['train_ppl']:.2f}  valid {result['valid_ppl']:.2f}" in line
    epoch = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()][-1]
    assert epoch["valid_word_ppl"] == result["valid_word_ppl"]
    library = Tokenizer.from_file(str(path / "tokenizer.json"))
    assert library.encode((corpus_dir / "test.txt").read_text()).ids == corpus.splits["test"].tolist()


def test_the_result_and_the_printed_line_of_a_run_on_words_stay(tiny_run):
    result = json.loads((tiny_run / "result.json").read_text())
    assert not [name for name in result if "word" in name or "bits" in name]
    train_ppl, valid_ppl, test_ppl = (result[f"{split}_ppl"] for split in ("train", "valid", "test"))
    expected = f"tiny: perplexity train {train_ppl:.2f}  valid {valid_ppl:.2f}  test {test_ppl:.2f}  (best epoch "
    assert summary(result).startswith(expected)
    assert "  test" not in summary(result | {"test_ppl": None})


def test_a_run_is_evaluated_adapted_and_scored_to_the_same_figures(run, corpus_dir, monkeypatch, capsys):
    kind, path = run
    result = json.loads((path / "result.json").read_text())
    modes = ["none", "cache", "dynamic", "dynamic+cache"]
    monkeypatch.setattr("sys.argv", ["lm.evaluate", str(path), "--split", "test", "--json", "--adapt", *modes])
    evaluate.main()
    rows = json.loads(capsys.readouterr().out)["splits"]
    assert [row["adapt"] for row in rows] == modes
    units = ["word_ppl"] + ["bits_per_char"] * (kind == "char")
    for unit in units:
        assert rows[0][unit] == pytest.approx(result[f"test_{unit}"], rel=1e-6)
    ratio = math.log(rows[0]["word_ppl"]) / rows[0]["loss"]
    assert [math.log(row["word_ppl"]) for row in rows] == pytest.approx([ratio * row["loss"] for row in rows])
    assert len({row["loss"] for row in rows}) == 4
    assert "perplexity per word" in evaluate.table(rows)
    monkeypatch.setattr("sys.argv", ["lm.generate", str(path), "--score", str(corpus_dir / "test.txt")])
    generate.main()
    head, *lines, total = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    scores = dict(zip(head, total, strict=True))
    assert float(scores["word_ppl"]) == pytest.approx(result["test_word_ppl"], rel=1e-4)
    assert (len(lines), int(scores["words"]) + 60) == (60, words_in(corpus_dir / "test.txt"))


def test_a_line_alone_has_its_nats_divided_by_its_words_and_its_end(run):
    kind, path = run
    model, _, corpus = load_run(RunDir(path), torch.device("cpu"))
    scores = score_text(model, corpus.tokenizer, "w1  w2 Zork\n\nw3", independent=True)
    for row, words in zip([*scores["lines"], scores["total"]], (4, 1, 2, 7), strict=True):
        assert row["word_ppl"] == pytest.approx(math.exp(-row["logprob"] / words))
    unknown = 4 if kind == "char" else 0
    assert [row["unknown"] for row in [*scores["lines"], scores["total"]]] == [unknown, 0, 0, unknown]
    assert scores["lines"][0]["tokens"] == len(corpus.tokenizer.encode("w1  w2 Zork\n"))


def test_text_is_generated_on_from_a_prompt_as_it_stands(run, monkeypatch, capsys):
    _, path = run
    for extra in ([], ["--greedy"], ["--detokenize"]):
        arguments = [str(path), "--prompt", "w1  w2\nw3 ", "--tokens", "20", "--json", *extra]
        monkeypatch.setattr("sys.argv", ["lm.generate", *arguments])
        generate.main()
        (text,) = [one["text"] for one in json.loads(capsys.readouterr().out)["samples"]]
        assert text.startswith("w1 w2\nw3" if "--detokenize" in extra else "w1  w2\nw3 ")


def test_a_run_is_fine_tuned_and_keeps_its_tokenizer(run, tmp_path):
    kind, path = run
    flags = ["--max-steps=2", "--no-tensorboard", "--no-eval-test"]
    result = train_here("--finetune", path, *flags, "--out-dir", tmp_path / "run")
    assert result["config"]["tokenizer"] == kind
    assert result["valid_word_ppl"] <= json.loads((path / "result.json").read_text())["valid_word_ppl"]
    with pytest.raises(ConfigError, match=rf"--finetune: .*--tokenizer {kind} \(now word\)"):
        train_here("--finetune", path, "--tokenizer=word", "--bpe-vocab-size=8000", "--out-dir", tmp_path / "word")


def test_a_run_is_not_resumed_with_another_tokenizer(runs, work_dir, monkeypatch, corpus_dir):
    monkeypatch.chdir(work_dir)
    more = ["--max-steps=30", "--no-tensorboard", "--resume=auto", "--out-dir", runs["bpe"]]
    with pytest.raises(ConfigError, match=r"--tokenizer bpe \(now char\)"):
        train_here("--data", corpus_dir, *TINY, *KINDS["char"], *more)
    with pytest.raises(ConfigError, match=r"--bpe-vocab-size 300 \(now 301\)"):
        train_here("--data", corpus_dir, *TINY, "--tokenizer=bpe", "--bpe-vocab-size=301", *more)


def test_a_checkpoint_of_another_vocabulary_of_the_same_text_is_refused_and_an_older_one_is_not(run, tmp_path):
    _, path = run
    shutil.copytree(path, tmp_path / "run")
    best = tmp_path / "run" / "ckpt" / "best.pt"
    state = load_checkpoint(best)
    for vocabulary, usable in (("0" * 64, False), (None, True)):
        changed = {name: value for name, value in state.items() if name != "vocabulary"}
        torch.save(changed | ({"vocabulary": vocabulary} if vocabulary else {}), best)
        if usable:
            load_run(RunDir(tmp_path / "run"), torch.device("cpu"))
        else:
            with pytest.raises(CheckpointError, match="another .* vocabulary"):
                load_run(RunDir(tmp_path / "run"), torch.device("cpu"))


def test_each_tokenizer_has_a_cache_of_its_own_that_is_read_back(corpus_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO, "lm")
    kinds = [Tokenization(), Tokenization("char"), Tokenization("bpe", 270), Tokenization("bpe", 280)]
    first = [load_corpus(None, corpus_dir, tmp_path, kind) for kind in kinds]
    assert len({corpus.path for corpus in first}) == 4
    assert [corpus.vocab_size for corpus in first[2:]] == [270, 280]
    assert len(caplog.records) == 4  # each was encoded
    caplog.clear()
    for corpus, kind in zip(first, kinds, strict=True):
        again = load_corpus(None, corpus_dir, tmp_path, kind)
        assert again.tokenizer.types == corpus.tokenizer.types
        assert (again.words, again.unk, again.sha256) == (first[0].words, corpus.unk, first[0].sha256)
        assert all(np.array_equal(again.splits[split], ids) for split, ids in corpus.splits.items())
    assert not caplog.records
