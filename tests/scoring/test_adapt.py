"""Cache pointer and dynamic evaluation against implementations that read one word, or one segment, at a time."""

import argparse
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lm.evaluate
from lm.base.errors import ConfigError, CorpusError
from lm.nn.model import AWDLSTM
from lm.scoring import tune
from lm.scoring.adapt import adapted_nats
from lm.scoring.adapt_flags import Adaptation
from lm.scoring.cache import Cache, History, cache_probability
from lm.scoring.dynamic import Dynamic, fast_statistics, gradient_rms, published_statistics
from lm.scoring.evaluation import evaluate
from lm.scoring.tune import tune_cache, tune_dynamic
from lm.text.finding import load_corpus
from tests.conftest import TINY, write_corpus
from tests.nn.test_model import V, tiny

# Few words, so that the cache finds them again.
IDS = np.random.default_rng(0).integers(0, 9, 203).astype(np.int32)
CACHE = Cache(window=17, lam=0.3, theta=0.8)


@pytest.fixture
def model():
    torch.manual_seed(3)
    model = AWDLSTM(V, tiny()).double()
    with torch.no_grad():  # far enough from uniform that gradients and attention matter
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def naive(model, ids, columns, cache, dynamic, rms):
    """Sum of nats, see `naive_predictions`."""
    return sum(-torch.log(p[word]).item() for p, word in naive_predictions(model, ids, columns, cache, dynamic, rms))


def naive_predictions(model, ids, columns, cache, dynamic, rms):
    """Every prediction and its target, word by word in each column, with updates and distributions written out."""
    names = [name for name, _ in model.named_parameters()]
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = {name: p.clone().requires_grad_() for name, p in trained.items()}
    rows = len(ids) // columns
    text = torch.from_numpy(ids[: rows * columns].astype(np.int64)).view(columns, rows).t()
    state = model.initial_state(columns)
    seen = [[] for _ in range(columns)]
    segment = dynamic.segment if dynamic else rows
    mean = sum(r.mean() for r in rms) / len(rms) if rms else None
    predictions = []
    for start in range(0, rows - 1, segment):
        losses = []
        for t in range(start, min(start + segment, rows - 1)):
            tied = weights | {"decoder.weight": weights["encoder.weight"]}
            output = torch.func.functional_call(model, tied, (text[t : t + 1], state))
            state, h = output.state, output.raw[-1][0]
            log_p = F.log_softmax(h @ weights["encoder.weight"].t() + weights["decoder.bias"], 1)
            for column in range(columns):
                word, p = text[t + 1, column], log_p[column].detach().exp()
                losses.append(-log_p[column, word])
                votes = torch.zeros(V, dtype=torch.float64)
                for key, following in seen[column][-cache.window :] if cache else []:
                    votes[following] += torch.exp(cache.theta * (key @ h[column].detach()))
                if votes.sum() > 0:
                    p = (1 - cache.lam) * p + cache.lam * votes / votes.sum()
                predictions.append((p, word))
                seen[column].append((h[column].detach(), word))
        state = [tuple(s.detach() for s in layer) for layer in state]
        if dynamic:
            gradients = torch.autograd.grad(torch.stack(losses).mean(), [weights[name] for name in names])
            for index, (name, g) in enumerate(zip(names, gradients, strict=True)):
                step, decay = dynamic.lr * g, torch.tensor(dynamic.decay)
                if dynamic.rule == "rms":
                    step, decay = step / (rms[index] + dynamic.epsilon), (decay * rms[index] / mean).clamp(max=1)
                new = weights[name] - step + decay * (trained[name] - weights[name])
                weights[name] = new.detach().requires_grad_()
    return predictions


def naive_statistics(model, ids, columns, length):
    """Root mean square, over windows of a text, of each parameter's gradient of the mean loss."""
    model = model.eval()
    rows = len(ids) // columns
    text = torch.from_numpy(ids[: columns * rows].astype(np.int64)).view(columns, rows).t()
    squares, state, windows = [0] * len(list(model.parameters())), model.initial_state(columns), 0
    for start in range(0, rows - 1, length):
        stop = min(start + length, rows - 1)
        output = model(text[start:stop], state)
        state = [tuple(s.detach() for s in layer) for layer in output.state]
        logits = F.linear(output.raw[-1].flatten(0, 1), model.decoder.weight, model.decoder.bias)
        loss = F.cross_entropy(logits, text[start + 1 : stop + 1].flatten())
        squares = [s + g**2 for s, g in zip(squares, torch.autograd.grad(loss, list(model.parameters())), strict=True)]
        windows += 1
    return [(square / windows).sqrt() for square in squares]


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("cache", [None, CACHE], ids=["", "cache"])
@pytest.mark.parametrize(
    "dynamic",
    [None, Dynamic("sgd", lr=0.3, decay=0.02, segment=5), Dynamic("rms", lr=3e-3, decay=0.5, segment=7)],
    ids=["", "sgd", "rms"],
)
def test_equals_the_naive_implementation(model, columns, cache, dynamic):
    model.eval()
    rms = naive_statistics(model, IDS, 5, 6) if dynamic and dynamic.rule == "rms" else None
    expected = naive(model, IDS, columns, cache, dynamic, rms)
    (nats,), targets = adapted_nats(model, IDS, columns, (cache,), dynamic, rms)
    assert targets == (203 // columns - 1) * columns
    assert nats == pytest.approx(expected, rel=1e-9)
    plain = evaluate(model, IDS, columns).nats
    assert (abs(nats - plain) > 1e-3 * plain) == bool(cache or dynamic)


def test_a_qrnn_carries_its_state_and_last_input_from_word_to_word_as_from_segment_to_segment():
    torch.manual_seed(3)
    model = AWDLSTM(V, tiny(model="QRNN", zoneout=0.2)).double().eval()
    dynamic = Dynamic("sgd", lr=0.3, decay=0.02, segment=5)
    (nats,), _ = adapted_nats(model, IDS, 4, (CACHE,), dynamic)
    assert nats == pytest.approx(naive(model, IDS, 4, CACHE, dynamic, None), rel=1e-9)


def test_gradient_statistics_are_the_root_mean_square_over_windows(model):
    for ours, theirs in zip(gradient_rms(model, IDS, 5, 6), naive_statistics(model, IDS, 5, 6), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_published_statistics_read_all_of_train_in_100_columns_and_fast_ones_its_first_300_windows(model):
    train = np.random.default_rng(1).integers(0, 9, 2400).astype(np.int32)
    for ours, theirs in zip(published_statistics(model, train, 5), naive_statistics(model, train, 100, 5), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(published_statistics(model, IDS, 5), naive_statistics(model, IDS, 33, 5), strict=True):
        torch.testing.assert_close(ours, theirs)  # too short for 100 columns of a segment each
    start = train[: 2 * 900 + 2].reshape(2, -1)[:, :901].reshape(-1)
    for ours, theirs in zip(fast_statistics(model, start, 2, 3), naive_statistics(model, start, 2, 3), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_published_procedure_is_the_default_and_equals_the_one_written_from_the_paper(model):
    model.eval()
    dynamic = Dynamic(lr=5e-3)
    assert (dynamic.rule, dynamic.decay, dynamic.epsilon, dynamic.segment) == ("rms", 2e-3, 2e-5, 5)
    expected = naive(model, IDS, 1, None, dynamic, naive_statistics(model, IDS, 33, 5))
    (nats,), _ = adapted_nats(model, IDS, 1, (None,), dynamic, published_statistics(model, IDS, 5))
    assert nats == pytest.approx(expected, rel=1e-6)


def test_the_decay_is_scaled_by_the_mean_over_tensors_not_over_their_elements(model):
    rms = gradient_rms(model, IDS, 5, 6)
    dynamic = Dynamic(lr=0.01, decay=0.3)
    (nats,), _ = adapted_nats(model, IDS, 1, (None,), dynamic, rms)
    over_tensors = sum(r.mean() for r in rms) / len(rms)
    over_elements = sum(r.sum() for r in rms) / sum(r.numel() for r in rms)
    other = Dynamic(lr=0.01, decay=0.3 * (over_tensors / over_elements).item())
    assert abs(adapted_nats(model, IDS, 1, (None,), other, rms)[0][0] - nats) > 1e-4 * nats


@pytest.mark.parametrize("columns", [1, 4])
def test_lambda_zero_and_zero_learning_rate_are_bitwise_plain_evaluation(columns):
    model = AWDLSTM(V, tiny())
    rms = gradient_rms(model, IDS, 5, 6)
    plain = evaluate(model, IDS, columns).nats
    assert adapted_nats(model, IDS, columns, [None, Cache(50, 0.0, 1.0)])[0] == [plain, plain]
    for dynamic in (Dynamic("sgd", lr=0.0, decay=0.1, segment=5), Dynamic("rms", lr=0.0, decay=0.1, segment=5)):
        nats, _ = adapted_nats(model, IDS, columns, [None, Cache(50, 0.0, 1.0)], dynamic, rms)
        assert nats == [plain, plain]


def test_cache_probabilities_sum_to_one_over_the_vocabulary():
    generator = torch.Generator().manual_seed(0)
    history = History(6)
    for length in (4, 5, 3):
        h = torch.randn(length, 2, 3, generator=generator, dtype=torch.float64)
        keys = history.extend(h, torch.randint(V, (length, 2), generator=generator))
        each = [cache_probability(*keys, torch.full((length, 2), word), 6, 0.7) for word in range(V)]
        total = torch.stack(each).sum(0)
        known = ~total.isnan()
        torch.testing.assert_close(total[known], torch.ones_like(total[known]))
        assert known.sum() == known.numel() - (2 if length == 4 else 0)  # only the first word of a column has no past


def test_the_model_and_its_mode_are_left_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    adapted_nats(model, IDS, 2, (CACHE,), Dynamic("sgd", lr=1.0))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tuning_finds_settings_that_are_no_worse_than_it_started_from(model):
    plain = evaluate(model, IDS, 2).nats
    cache, _ = tune_cache(model, IDS, 2)
    assert adapted_nats(model, IDS, 2, (cache,))[0][0] < plain
    start = Dynamic("sgd", lr=0.5, decay=0.01)
    tuned, _ = tune_dynamic(model, IDS, 2, start)
    assert tuned != start
    assert adapted_nats(model, IDS, 2, (None,), tuned)[0] < adapted_nats(model, IDS, 2, (None,), start)[0]


def bowl(**best):
    """A stand-in for `adapted_nats` whose loss rises with the distance, on a log scale, from these values."""
    seen = []

    def nats(model, ids, batch_size, caches=(None,), dynamic=None, rms=None):
        settings = [dynamic] if caches == (None,) else caches
        seen.extend(settings)
        return [sum(math.log(getattr(s, n) / value) ** 2 for n, value in best.items()) for s in settings], 1

    return nats, seen


def test_a_cache_at_the_edge_of_the_grid_extends_it_and_the_notes_say_so(monkeypatch):
    nats, seen = bowl(window=9000, lam=0.09, theta=5.0)
    monkeypatch.setattr(tune, "adapted_nats", nats)
    best, notes = tune_cache(None, range(50_000), 1)
    assert (best.window, best.lam) == (8000, 0.1)
    assert 4 < best.theta < 6
    for name in ("window", "theta"):
        tried = [getattr(cache, name) for cache in seen]
        assert min(tried) < getattr(best, name) < max(tried)
    assert [note.split(":")[0] for note in notes] == ["--cache-window", "--cache-theta"]
    assert len(seen) == len(set(seen))


def test_a_grid_that_could_grow_without_end_stops_and_the_notes_say_where(monkeypatch):
    monkeypatch.setattr(tune, "adapted_nats", bowl(window=300, lam=0.1, theta=1e5)[0])
    assert "--cache-theta: the best is at the edge of the grid" in tune_cache(None, range(50_000), 1)[1]
    monkeypatch.setattr(tune, "adapted_nats", bowl(lr=1e30, decay=1e-3)[0])
    assert "stopped after 40 passes" in tune_dynamic(None, range(99), 1, Dynamic())[1][0]
    monkeypatch.setattr(tune, "adapted_nats", bowl(lr=1e-4, decay=3.0)[0])
    assert tune_dynamic(None, range(99), 1, Dynamic())[1] == ["--dynamic-decay: the best is at the edge of its range"]


def test_a_cache_window_never_exceeds_the_column(monkeypatch):
    nats, seen = bowl(window=9000, lam=0.1, theta=0.5)
    monkeypatch.setattr(tune, "adapted_nats", nats)
    best, notes = tune_cache(None, range(302), 2)
    assert (best.window, notes) == (150, [])
    assert {cache.window for cache in seen} == {100, 150}


def test_tuned_learning_rate_and_decay_have_worse_neighbours_on_all_sides(monkeypatch):
    nats, seen = bowl(lr=7e-4, decay=2e-2)
    monkeypatch.setattr(tune, "adapted_nats", nats)
    best, notes = tune_dynamic(None, range(99), 1, Dynamic())
    assert notes == []
    for name in ("lr", "decay"):
        for factor in (0.5, 2):
            there = dataclasses.replace(best, **{name: getattr(best, name) * factor})
            assert there in seen
            assert nats(None, None, 1, dynamic=there)[0] >= nats(None, None, 1, dynamic=best)[0]


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: Cache(window=0), "--cache-window"),
        (lambda: Cache(lam=1.0), "--cache-lambda"),
        (lambda: Cache(theta=float("nan")), "--cache-theta"),
        (lambda: Cache(theta=1e40), "--cache-theta"),
        (lambda: Dynamic(lr=-1.0), "--dynamic-lr"),
        (lambda: Dynamic(decay=2.0), "--dynamic-decay"),
        (lambda: Dynamic(segment=0), "--dynamic-segment"),
        (lambda: Dynamic(rule="adam"), "--dynamic-rule"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make, flag):
    with pytest.raises(ConfigError, match=flag):
        make()


def test_a_split_that_is_not_there_is_refused_before_anything_is_tuned(tmp_path, monkeypatch):
    folder = write_corpus(tmp_path / "corpus", train=9, held_out=9)
    (folder / "test.txt").unlink()
    monkeypatch.setattr(lm.evaluate, "load_run", lambda *_: (None, None, load_corpus(None, folder)))
    monkeypatch.setattr(lm.evaluate, "Adaptation", lambda *_: pytest.fail("tuned"))
    with pytest.raises(CorpusError, match="has no test split"):
        lm.evaluate.evaluate_run(argparse.Namespace(run_dir="", device="cpu", data="", split=["valid", "test"]))


@pytest.mark.parametrize("flags", [["--split=test", "--adapt=dynamic"], ["--split=test", "--adapt=cache", "--tune"]])
def test_too_many_columns_are_refused_before_train_is_read_or_anything_tuned(flags, tiny_run, main_here, monkeypatch):
    monkeypatch.setattr(Adaptation, "prepare", lambda _: pytest.fail("tuned"))
    with pytest.raises(CorpusError, match="--columns"):
        main_here(lm.evaluate, tiny_run, *flags, "--columns=40000")


def test_the_command_puts_the_modes_side_by_side_and_tunes_on_valid_only(cli, train_here, tmp_path):
    run = tmp_path / "run"
    corpus = write_corpus(tmp_path / "corpus", train=100, held_out=20)
    flags = ["--max-steps=20", "--no-eval-test", "--no-tensorboard", "--out-dir", run]
    train_here("--data", corpus, *TINY, *flags)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    modes = ["none", "cache", "dynamic", "dynamic+cache"]
    command = ["evaluate", run, "--split", "test", "--adapt", *modes, "--tune", "--dynamic-lr=0.001", "--json"]
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    rows = {row["adapt"]: row for row in json.loads(done.stdout)["splits"]}
    assert list(rows) == modes
    assert rows["dynamic+cache"]["dynamic"] == rows["dynamic"]["dynamic"]
    assert rows["dynamic+cache"]["cache"]["window"] >= 1
    assert len({row["ppl"] for row in rows.values()}) == 4
    assert {row["batch_size"] for row in rows.values()} == {1}
    assert len({row["targets"] for row in rows.values()}) == 1
    fast = cli("evaluate", run, "--split", "valid", "--adapt", "none", "cache", "dynamic", "--adapt-fast").stdout
    assert [line.split()[5] for line in fast.splitlines()[1:]] == ["2"] * 3
    assert fast.count("fast, not as published") == 2
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli("evaluate", run, "--adapt", "cache", "--cache-lambda=2").returncode == 2
