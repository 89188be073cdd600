"""Scores and surprisal by a model that adapts to the text: against a plain loop, and against `lm.evaluate`."""

import json
import math

import numpy as np
import pytest
import torch

import lm.evaluate
import lm.generate
from lm.base.errors import ConfigError
from lm.nn.model import AWDLSTM
from lm.scoring import tokens
from lm.scoring.adapt import Adapt
from lm.scoring.cache import Cache
from lm.scoring.dynamic import Dynamic, gradient_rms
from lm.scoring.tokens import details, nats, read_running
from lm.scoring.trained import load
from tests.nn.test_model import V, tiny
from tests.scoring.test_adapt import CACHE, IDS, naive_predictions

SGD = Dynamic("sgd", lr=0.3, decay=0.02, segment=5)


@pytest.fixture
def model():
    model = AWDLSTM(V, tiny()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.mark.parametrize(
    "adapt",
    [Adapt(CACHE), Adapt(dynamic=SGD), Adapt(CACHE, Dynamic("rms", lr=3e-3, decay=0.5, segment=7))],
    ids=["cache", "dynamic", "dynamic+cache"],
)
def test_figures_are_those_of_the_whole_distribution_of_a_plain_loop(model, adapt, monkeypatch):
    model.double()
    if adapt.dynamic and adapt.dynamic.rule == "rms":
        adapt = Adapt(adapt.cache, adapt.dynamic, gradient_rms(model, IDS, 5, 6))
    ids = IDS[:101]
    expected = naive_predictions(model, ids, 1, adapt.cache, adapt.dynamic, adapt.rms)
    monkeypatch.setattr(tokens, "_LOGITS", 30 * V)  # several blocks of a window, the last one shorter
    figures = read_running(model, ids, details(3), adapt)
    assert {len(figure) for figure in figures} == {len(expected)} == {len(ids) - 1}
    for (p, word), cost, rank, entropy, top, top_p in zip(expected, *figures, strict=True):
        assert cost == pytest.approx(-p[word].log().item(), rel=1e-7)
        assert rank == 1 + (p > p[word]).sum()
        assert entropy == pytest.approx(torch.special.entr(p).sum().item(), rel=1e-7)
        assert top_p.tolist() == pytest.approx(p.sort(descending=True).values[:3].tolist(), rel=1e-7)
        assert p[top].tolist() == pytest.approx(top_p.tolist(), rel=1e-7)
    assert (read_running(model, ids, nats, adapt)[0] == figures[0]).all()


def test_a_cache_of_no_weight_and_a_rate_of_zero_change_no_bit(model):
    plain = read_running(model, IDS, details(2))
    for adapt in (Adapt(Cache(50, 0.0, 1.0)), Adapt(dynamic=Dynamic("sgd", lr=0.0)), Adapt(Cache(50, 0.0, 1.0), None)):
        assert all(map(np.array_equal, plain, read_running(model, IDS, details(2), adapt)))


def test_a_word_without_probability_adds_nothing_to_the_entropy(model):
    with torch.no_grad():
        model.double().decoder.bias[V - 1] = -1e4
    entropy = read_running(model, IDS, details(0), Adapt(CACHE))[2]
    assert np.isfinite(entropy).all() and (entropy > 0).all()


MODES = [
    ["--adapt=cache"],
    ["--adapt=cache", "--cache-window=30", "--cache-lambda=0.3", "--cache-theta=2"],
    ["--adapt=dynamic", "--dynamic-lr=0.001"],
    ["--adapt=dynamic", "--adapt-fast"],
    ["--adapt=dynamic+cache", "--dynamic-rule=sgd", "--dynamic-segment=9", "--cache-lambda=0.2"],
]


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_rows_of_a_split_add_up_to_what_evaluate_reports_in_one_column(main_here, tiny_run, corpus_dir, mode):
    (split,) = json.loads(main_here(lm.evaluate, tiny_run, "--split=valid", "--columns=1", *mode, "--json"))["splits"]
    score = [lm.generate, tiny_run, "--score", corpus_dir / "valid.txt", *mode, "--json"]
    report = json.loads(main_here(*score, "--per-token", "--base=e"))
    settings = ("adapt", "cache", "dynamic", "fast")
    assert [report[name] for name in settings] == [split[name] for name in settings]
    nats = [row["surprisal"] for row in report["rows"]][1:]
    assert len(nats) == split["targets"]
    assert math.fsum(nats) / len(nats) == pytest.approx(split["loss"], abs=1e-8)


def test_lines_and_the_total_add_up_to_the_same(main_here, tiny_run, corpus_dir):
    score = [lm.generate, tiny_run, "--score", corpus_dir / "valid.txt", "--adapt=cache", "--json"]
    by_token, by_line = (
        json.loads(main_here(*score, per, "--base=e"))["rows"] for per in ("--per-token", "--per-line")
    )
    nats = [row["surprisal"] for row in by_token]
    assert math.fsum(row["surprisal"] for row in by_line) == pytest.approx(math.fsum(nats), abs=1e-8)
    total = json.loads(main_here(*score))["total"]
    assert total["logprob"] == pytest.approx(-math.fsum(nats[1:]), abs=1e-8)
    assert (
        total["logprob"]
        != json.loads(main_here(*[part for part in score if part != "--adapt=cache"]))["total"]["logprob"]
    )


def test_only_the_statistics_of_dynamic_evaluation_need_the_corpus(cli, tiny_run, corpus_dir, tmp_path):
    export, text = tmp_path / "export", tmp_path / "text.txt"
    assert cli("evaluate", tiny_run, "--export", export).returncode == 0
    values = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(values | {"data": str(tmp_path / "gone")}))
    text.write_text("w1 w2\nw1 w2\n")
    score = ["generate", export, "--score", text, "--per-line"]
    done = cli(*score, "--adapt=cache", "--cache-theta=0.5", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "cache: window 500, lam 0.1, theta 0.5\n")
    assert cli(*score, "--adapt=dynamic", "--dynamic-rule=sgd", folder=tmp_path).returncode == 0
    done = cli(*score, "--adapt=dynamic", folder=tmp_path)
    assert done.returncode == 3 and "--data DIR" in done.stderr
    done = cli(*score, "--adapt=dynamic", "--data", corpus_dir, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gradient statistics of train, all 3,600 tokens" in done.stderr


def test_as_a_library_the_same_settings_are_given_as_an_object(tiny_run):
    trained = load(tiny_run)
    text = "w1 w2 w3\nw1 w2 w3\n"
    adapt = Adapt(CACHE, SGD)
    rows = trained.surprisal(text, adapt=adapt, bits=False)
    score = trained.score(text, adapt=adapt)
    assert -sum(row["surprisal"] for row in rows[1:]) == pytest.approx(score["total"]["logprob"], rel=1e-9)
    assert score["total"]["logprob"] != trained.score(text)["total"]["logprob"]
    assert trained.surprisal(text, bits=False)[0] == rows[0]  # nothing came before it
    for refused in (trained.surprisal, trained.score):
        with pytest.raises(ConfigError, match="leave it out with --independent"):
            refused(text, independent=True, adapt=adapt)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--adapt=cache"], "--adapt is for scoring"),
        (["--score=x", "--adapt=cache", "--independent"], "--adapt: a model adapts to running text"),
        (["--score=x", "--adapt=cache", "--adapt=dynamic"], "--adapt: give one mode, not cache and dynamic"),
        (["--score=x", "--cache-theta=1"], "--cache-theta: is for --adapt cache"),
        (["--score=x", "--adapt=cache", "--dynamic-lr=1"], "--dynamic-lr: is for --adapt dynamic"),
        (["--score=x", "--adapt=cache", "--adapt-fast"], "--adapt-fast: is for --adapt dynamic"),
        (["--score=x", "--adapt=cache", "--data=y"], "--data: is for --adapt dynamic"),
        (["--score=x", "--adapt=dynamic", "--dynamic-rule=sgd", "--data=y"], "--data: is for --adapt dynamic"),
        (["--score=x", "--adapt=dynamic", "--tune"], "--tune"),
    ],
)
def test_flags_that_make_no_sense_are_named(main_here, flags, named):
    with pytest.raises(ConfigError, match=named):
        main_here(lm.generate, "nowhere", *flags)
