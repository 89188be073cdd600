"""Anything valid works, anything else is refused: configurations and corpora drawn at random.

A few examples in the normal suite; `LM_FUZZ_EXAMPLES=2000 python -m pytest tests/test_fuzz.py` tries that many of each.
"""

import dataclasses
import json
import math
import os
import re
import signal
import tempfile
import typing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lm import train
from lm.base.errors import ConfigError, CorpusError, DivergedError, Interrupted
from lm.base.rundir import RunDir
from lm.config.bounds import Bounds
from lm.config.schema import RunOptions, TrainConfig
from lm.config.values import make_config
from lm.scoring.evaluation import protocol_columns, split_report
from lm.scoring.loading import load_run
from lm.study.executors import train_arguments
from lm.text.finding import load_corpus
from lm.text.tokenization import Tokenization
from lm.training.checkpoint import load_checkpoint

FUZZ = settings(
    max_examples=int(os.environ.get("LM_FUZZ_EXAMPLES", "15")), derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

# Largest value drawn of fields where a valid one may be as large as the machine.
LARGEST = {"batch_size": 9, "eval_batch_size": 9, "test_batch_size": 9, "emsize": 12, "nhid": 12, "nlayers": 3,
           "bptt": 40, "epochs": 3, "bpe_vocab_size": 300, "min_count": 9}  # fmt: skip
# Fields that name other files.
PLACES = ("dataset", "data", "preset", "finetune", "init_vectors", "init_vectors_sha256")
HINTS = typing.get_type_hints(TrainConfig, include_extras=True)


def values_of(name):
    """Valid values of a configuration field, by its declared type and bounds."""
    hint = HINTS[name]
    bounds = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Bounds)), None)
    base = typing.get_args(hint)[0] if bounds else hint
    if base is bool:
        return st.booleans()
    if typing.get_origin(base) is typing.Literal:
        return st.sampled_from(typing.get_args(base))
    if typing.get_origin(base) is tuple:
        return st.lists(st.integers(1, 4), max_size=2).map(tuple)
    if base is int:
        return st.integers(int(bounds.low), LARGEST.get(name, min(int(bounds.high), 2**31 - 1)))
    usual = st.floats(bounds.low, min(bounds.high, 4.0), exclude_min=bounds.open_low)
    anywhere = st.floats(bounds.low, min(bounds.high, 1e300), exclude_min=bounds.open_low)
    return st.one_of(usual, usual, usual, anywhere)


def of_others(drawn):
    """Fields that are for another tokenizer or model than the one drawn."""
    kind, model = drawn.get("tokenizer", "word"), drawn.get("model", "LSTM")
    of_words = ("vocab_size", "min_count", "lowercase", "cutoffs")
    found = of_words if kind != "word" else ()
    return found + ("bpe_vocab_size",) * (kind != "bpe") + ("zoneout",) * (model != "QRNN")


@st.composite
def configurations(draw):
    """Any configuration that is valid; half of the fields stand at a usual value, so that most runs converge."""
    drawn = {"lr": 0.5, "batch_size": 3, "eval_batch_size": 2, "bptt": 5, "emsize": 6, "nhid": 7, "nlayers": 2}
    for name in HINTS:
        if name not in PLACES and draw(st.booleans()):
            drawn[name] = draw(values_of(name))
    drawn |= {"max_steps": 2, "epochs": min(drawn.get("epochs", 2), 3)}
    for name in of_others(drawn):
        drawn.pop(name, None)
    if drawn.get("vocab_size") or "cutoffs" in drawn:  # more words than any cutoff
        drawn |= {"vocab_size": max(drawn.get("vocab_size", 0), 6), "min_count": 1}
        drawn["cutoffs"] = tuple(sorted(set(drawn.get("cutoffs", ()))))
    for name in ("train_tokens", "eval_train_tokens"):
        if drawn.get(name):
            drawn[name] = max(drawn[name], 2 * drawn["eval_batch_size"], 2 * drawn["batch_size"])
    try:
        return make_config(dataset="tiny", **drawn)
    except ConfigError:  # two fields contradict each other; each is valid
        annealing = [name for name in drawn if name.startswith("trapezoid_") or name == "average_last"]
        kept = {name: value for name, value in drawn.items() if name not in annealing}
        simple = {"min_lr": 0.0, "kernel": "auto", "tied": False, "validate_epochs": 1}
        return make_config(dataset="tiny", **kept | simple)


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    """A corpus of two windows or so."""
    folder = tmp_path_factory.mktemp("fuzz") / "tiny"
    folder.mkdir()
    for seed, split in enumerate(("train", "valid", "test")):
        words = [f"w{(seed + i * i) % 13}" for i in range(60)]
        (folder / f"{split}.txt").write_text(" ".join(words[:30]) + "\n" + " ".join(words[30:]) + "\n")
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Spare what takes most of a tiny run's time and cannot depend on the configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("quick"))
        patch.setattr("lm.training.writer.git_state", dict)
        patch.setattr("lm.base.files.os.fsync", lambda descriptor: None)
        yield


def stop_after_first_update(patch):
    """Let a stop signal arrive during the first update of the next run."""
    update = train.update

    def stopping(run, window):
        update(run, window)
        patch.setattr(train, "update", update)
        os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(train, "update", stopping)


def ending(config, out_dir, **options):
    """Result of a run, None if it diverged, which must leave a record and finite weights."""
    run = RunOptions(out_dir=str(out_dir), tensorboard=False, log_interval=1, **options)
    try:
        result = train.train(config, run)
        for line in [json.dumps(result), *(out_dir / "metrics.jsonl").read_text().splitlines()]:
            json.loads(line, parse_constant=pytest.fail)
        return result
    except DivergedError:
        assert json.loads((out_dir / "result.json").read_text())["status"] == "diverged"
        for path in out_dir.glob("ckpt/*.pt"):
            assert all(weight.isfinite().all() for weight in load_checkpoint(path)["model"].values())
        return None


@FUZZ
@given(config=configurations())
def test_any_valid_configuration_trains_saves_resumes_and_evaluates(config, text_dir, quick):
    config = dataclasses.replace(config, data=str(text_dir))
    assert dataclasses.replace(train.configure(train_arguments(config))[0], dataset="tiny") == config
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        straight, stopped = Path(scratch, "straight"), Path(scratch, "stopped")
        result = ending(config, straight, save_every=1)
        stop_after_first_update(patch)
        try:
            resumed = ending(config, stopped)
        except Interrupted:
            resumed = ending(config, stopped, resume="auto")
        if result is None or resumed is None:
            assert resumed is result
            return
        for name in ("valid_loss", "test_loss", "train_loss", "steps", "epochs", "best_epoch", "activation"):
            assert resumed[name] == result[name], name
        one, other = (load_checkpoint(run / "ckpt" / "last.pt")["model"] for run in (straight, stopped))
        assert all(torch.equal(one[name], other[name]) for name in one)
        model, loaded, corpus = load_run(RunDir(stopped), torch.device("cpu"))
        assert loaded == config
        report = split_report(model, corpus, "valid", protocol_columns(config, "valid"))
        assert report["loss"] == pytest.approx(result["valid_loss"], rel=1e-5)  # may compute by another kernel
        assert math.isfinite(report["ppl"])


# What breaks tokenizers: every kind of white space and line end, marks, controls, and the tokens of our own.
PIECES = ["a", "the", "<unk>", "<eos>", " ", "\n", "\r", "\r\n", "\t", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0",
          "\u2028", "\u3000", "\u200b", "\ufeff", "\0", "\u0301", "İ", "ß", "\U0001f600", "##", '"', "\\"]  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=30).map("".join)
LINES = st.lists(st.lists(st.sampled_from(PIECES[:4]), min_size=1, max_size=5).map(" ".join), min_size=1, max_size=9)
FILES = st.one_of(
    LINES.map(lambda lines: "\n".join(lines).encode()),
    TEXT.map(str.encode),
    TEXT.map(str.encode),
    st.tuples(TEXT, st.sampled_from(["utf-8-sig", "utf-16", "utf-32-le"])).map(lambda pair: pair[0].encode(pair[1])),
    st.binary(max_size=40),
)


# str.isspace() counts four separators in that Unicode does not call white space.
WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\x1c\x1d\x1e\x1f")


def text_of(raw):
    """Text of a file with line ends as here; by Python's own rules, apart from the tokenizer's."""
    text = raw.decode("utf-8-sig")
    return "\n".join(text.split("\r\n" if "\n" in text else "\r"))


def words_of(raw):
    """Lines of words of a file, None where it is no text."""
    try:
        text = text_of(raw)
    except UnicodeDecodeError:
        return None
    lines = [re.findall(f"[^{WHITE_SPACE}]+", line) for line in text.removesuffix("\n").split("\n")]
    return lines if any(lines) and "\0" not in text else None


@FUZZ
@given(train_file=FILES, valid_file=FILES, test_file=FILES)
@example(b"a\n", b"a\x1cb\n", b"<eos> <unk>")
@example("\ufeffa\n".encode(), b"a\r\nb", "\ufeff\ufeffa".encode())
def test_any_folder_of_files_is_prepared_and_read_back_or_refused_by_name(train_file, valid_file, test_file):
    files = {"train": train_file, "valid": valid_file, "test": test_file}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "own")
        folder.mkdir()
        for split, raw in files.items():
            (folder / f"{split}.txt").write_bytes(raw)
        lines = {split: words_of(raw) for split, raw in files.items()}
        if bad := [split for split in files if lines[split] is None]:
            with pytest.raises(CorpusError) as refused:
                load_corpus(None, folder, scratch)
            assert any(f"{split}.txt" in str(refused.value) for split in bad)
            return
        first = load_corpus(None, folder, scratch)
        known = {word for line in lines["train"] for word in line} | {"<eos>", "<unk>"}
        again = load_corpus(None, folder, scratch)
        for corpus in (first, again):
            for split in files:
                expected = [word if word in known else "<unk>" for line in lines[split] for word in [*line, "<eos>"]]
                assert corpus.tokenizer.decode(corpus.splits[split]) == expected
            assert corpus.vocab_size == len(known)
        check_smaller_units(folder, {split: text_of(raw) for split, raw in files.items()}, scratch)


def check_smaller_units(folder, texts, scratch):
    """Characters and BPE give back every text, white space included; characters that train lacks as `<unk>`."""
    for kind in ("char", "bpe"):
        for _ in ("encoded", "read from the cache"):
            corpus = load_corpus(None, folder, scratch, Tokenization(kind, 270))
            for split, text in texts.items():
                text = text.removesuffix("\n") + "\n"
                if kind == "char":
                    text = "".join(c if c in texts["train"] + "\n" else "<unk>" for c in text)
                assert corpus.tokenizer.text(corpus.splits[split]) == text, (kind, split)
