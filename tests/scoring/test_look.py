"""The picture of the last layer: its numbers against one forward pass, two runs at once, and what is refused."""

import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread

import lm.evaluate
from lm.base.errors import CheckpointError, ConfigError
from lm.base.rundir import RunDir
from lm.nn.model import AWDLSTM
from lm.scoring.evaluation import evaluate
from lm.scoring.loading import load_run
from lm.scoring.look import Activations, draw
from tests.conftest import TINY, write_corpus
from tests.nn.test_model import V, tiny


@pytest.fixture
def command(main_here):
    return functools.partial(main_here, lm.evaluate)


@torch.no_grad()
def expected(run, columns, start, count):
    """Words of valid's first column, what each cost, mean |h| before it, and how often each unit is inactive."""
    model, _, corpus = load_run(RunDir(run), torch.device("cpu"))
    ids = torch.from_numpy(corpus.splits["valid"].astype(np.int64))
    rows = len(ids) // columns
    data = ids[: rows * columns].view(columns, rows).t()
    output = model(data[:-1], model.initial_state(columns))
    h = output.raw[-1]
    nats = F.cross_entropy(model.decoder(h[:, 0]), data[1:, 0], reduction="none")
    piece = slice(start, start + count)
    inactive = (h.abs() < 0.01).double().mean((0, 1))
    words = [corpus.tokenizer.types[i] for i in data[1:, 0][piece]]
    return words, nats[piece], h[:, 0].abs().mean(1)[piece], inactive


def test_two_runs_are_drawn_with_the_numbers_of_each(command, train_here, tiny_run, corpus_dir, tmp_path):
    regularized = tmp_path / "regularized"
    flags = ["--alpha=4", "--beta=4", "--nhid=9", "--eval-batch-size=3", "--max-steps=50", "--no-eval-test"]
    train_here("--data", corpus_dir, *TINY, *flags, "--no-tensorboard", "--out-dir", regularized)
    picture = tmp_path / "two.png"
    flags = ["--activations", picture, "--beside", regularized, "--words", 40, 60, "--json"]
    report = json.loads(command(tiny_run, *flags))
    assert report["split"] == "valid" and report["batch_size"] == 2
    for run, found in zip((tiny_run, regularized), report["runs"], strict=True):
        words, nats, mean_abs, inactive = expected(run, 2, 40, 60)  # both cut as the first run's protocol says
        assert report["words"] == words
        assert found["run"] == str(run)
        assert found["word_loss"] == pytest.approx(nats.tolist(), rel=1e-4)
        assert found["word_mean_abs"] == pytest.approx(mean_abs.tolist(), rel=1e-4)
        assert found["unit_inactive"] == pytest.approx(inactive.tolist(), abs=0.01)
        assert np.mean(found["unit_inactive"]) == pytest.approx(found["activation"]["frac_small"])
    assert np.mean(report["runs"][1]["word_mean_abs"]) < np.mean(report["runs"][0]["word_mean_abs"])
    pixels = imread(picture)[..., :3]
    orange = np.abs(pixels - np.array([0xD5, 0x5E, 0x00]) / 255).max(-1) < 0.02
    thirds = np.array_split(orange, 3)  # distributions above, words below: the second run is in all of them
    assert all(part.sum() > 200 for part in thirds)
    command(tiny_run, "--activations", picture, "--words", 0, 5)
    assert not (np.abs(imread(picture)[..., :3] - np.array([0xD5, 0x5E, 0x00]) / 255).max(-1) < 0.02).any()


def test_a_piece_that_reaches_beyond_its_column_is_cut(command, tiny_run, tmp_path):
    printed = command(
        tiny_run, "--activations", tmp_path / "a.png", "--split", "test", "--words", 350, 50, "--columns", 1, "--json"
    )
    report = json.loads(printed)
    assert len(report["words"]) == len(report["runs"][0]["word_loss"]) == 359 - 350
    with pytest.raises(ConfigError, match="--words: START must be below 359"):
        command(tiny_run, "--activations", tmp_path / "a.png", "--split", "test", "--words", 359, 1, "--columns", 1)


@pytest.mark.parametrize("window", [1, 7, 50])
def test_windows_do_not_change_what_is_seen(window):
    model, ids = AWDLSTM(V, tiny()), np.random.default_rng(0).integers(0, V, 203).astype(np.int32)
    whole, pieces = Activations(203, 11, 17), Activations(203, 11, 17)
    evaluate(model, ids, 2, window=500, watch=whole.add)
    evaluate(model, ids, 2, window=window, watch=pieces.add)
    assert len(pieces.nats) == len(pieces.mean_abs) == 17
    for name in ("nats", "mean_abs", "inactive"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-5)
    np.testing.assert_allclose(np.sort(pieces.sample), np.sort(whole.sample), atol=1e-6)


def test_of_a_long_text_the_histogram_takes_a_sample():
    activations = Activations(4_000_000, 0, 1)
    activations.add(torch.arange(7.0).view(7, 1, 1).expand(7, 2, 3), torch.zeros(7, 2))
    assert np.unique(activations.sample).tolist() == [0, 3, 6]


def test_words_are_shown_as_they_are_and_the_same_bytes_come_out_again(tmp_path):
    seen = Activations(9, 0, 9)
    seen.add(torch.rand(8, 1, 4), torch.rand(8, 1))
    words = ["$", "$\\frac$", "%", "_a^", "<eos>", "a" * 300, "N", "\\"]
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, "a $x_$ b", {"runs/$x_$": seen}, words)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_run_on_another_text_cannot_stand_beside(command, train_here, tiny_run, tmp_path):
    other = tmp_path / "other"
    corpus = write_corpus(tmp_path / "corpus", train=100, seed=1)
    flags = ["--max-steps=1", "--no-tensorboard", "--no-eval-test"]
    train_here("--data", corpus, *TINY, *flags, "--out-dir", other)
    with pytest.raises(ConfigError, match="--beside: .* another text"):
        command(tiny_run, "--activations", tmp_path / "a.png", "--beside", other)
    with pytest.raises(CheckpointError, match="nowhere"):
        command(tiny_run, "--activations", tmp_path / "a.png", "--beside", "nowhere")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--beside=x"], "--beside: is for --activations"),
        (["--words", "0", "9"], "--words: is for --activations"),
        (["--activations=a.pdf"], "--activations"),
        (["--activations=a.png", "--words", "-1", "9"], "--words"),
        (["--activations=a.png", "--words", "0", "0"], "--words"),
        (["--activations=a.png", "--split", "test", "train"], "--split: give one"),
        (["--activations=a.png", "--adapt", "cache"], "--adapt: leave it out with --activations"),
        (["--activations=a.png", "--cache-window=5"], "--cache-window: leave it out"),
        (["--activations=a.png", "--export=b"], "with --export"),
        (["--export=b", "--split", "test"], "--split: leave it out with --export"),
    ],
)
def test_a_flag_that_makes_no_sense_is_named(command, flags, words):
    with pytest.raises(ConfigError, match=words):
        command("run", *flags)
