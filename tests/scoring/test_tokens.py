"""Predictions at every token: against a plain loop in float64, alone and together, and against `lm.evaluate`."""

import copy
import math

import numpy as np
import pytest
import torch

from lm.nn.model import AWDLSTM
from lm.scoring.evaluation import evaluate
from lm.scoring.tokens import details, read_independent, read_running
from tests.nn.test_model import V, tiny

EOS = 0


@pytest.fixture
def model():
    model = AWDLSTM(V, tiny()).eval()
    with torch.no_grad():
        model.encoder.weight.mul_(20)
        model.decoder.bias.normal_()
    return model


def some_lines(count=150):
    """Lines of random lengths, many of which begin alike or are equal."""
    rng = np.random.default_rng(0)
    return [np.append(rng.integers(1, 4, rng.integers(0, 12)), EOS) for _ in range(count)]


def log_p(model, context):
    """Log-probabilities of the token after a context, in float64, the state carried token by token."""
    model = copy.deepcopy(model).double()
    state = model.initial_state(1)
    with torch.no_grad():
        for index in context:
            output = model(torch.tensor([[index]]), state)
            state = output.state
        return torch.log_softmax(model.decoder(output.after_dropout[-1][0, 0]), 0)


def test_figures_of_a_prediction_equal_a_plain_loop_in_float64(model):
    line = np.array([3, 1, 4, 1, EOS])
    nats, rank, entropy, top, p = read_independent(model, [line], EOS, details(3))
    for t, target in enumerate(line):
        expected = log_p(model, [EOS, *line[:t].tolist()])
        assert nats[t] == pytest.approx(-expected[target].item(), rel=1e-5)
        order = expected.argsort(descending=True)
        assert rank[t] == 1 + order.tolist().index(target)
        assert entropy[t] == pytest.approx(-(expected.exp() * expected).sum().item(), rel=1e-5)
        assert top[t].tolist() == order[:3].tolist()
        assert p[t].tolist() == pytest.approx(expected[order[:3]].exp().tolist(), rel=1e-5)


def test_equally_likely_tokens_share_the_best_rank_and_a_uniform_prediction_has_entropy_ln_v(model):
    with torch.no_grad():
        model.encoder.weight.zero_()
        model.decoder.bias.zero_()
    nats, rank, entropy, *_ = read_independent(model, [np.array([5, EOS])], EOS, details(0))
    assert rank.tolist() == [1, 1]
    assert [*nats, *entropy] == pytest.approx(4 * [math.log(V)], rel=1e-6)


def test_a_running_text_adds_up_to_its_evaluation_in_one_column(model):
    ids = np.concatenate(some_lines())
    whole = evaluate(model, ids, 1)
    for describe in (None, details(2)):
        figures = read_running(model, ids, *([describe] if describe else []))
        assert len(figures[0]) == len(ids) - 1
        assert math.isclose(figures[0].sum(), whole.nats, rel_tol=1e-12)


def test_a_line_alone_has_the_same_figures_as_among_others_in_any_order(model):
    lines = some_lines()
    ends = np.cumsum([len(line) for line in lines])
    together = [np.split(figure, ends[:-1]) for figure in read_independent(model, lines, EOS, details(2))]
    backwards = read_independent(model, lines[::-1], EOS)[0]
    np.testing.assert_allclose(
        np.concatenate(together[0]),
        np.concatenate(np.split(backwards, np.cumsum([len(line) for line in lines[::-1]])[:-1])[::-1]),
        rtol=1e-5,
    )
    for index in range(0, len(lines), 7):
        for one, other in zip(together, read_independent(model, [lines[index]], EOS, details(2)), strict=True):
            np.testing.assert_allclose(one[index], other, rtol=1e-5)
        after_eos = read_running(model, np.append(EOS, lines[index]))[0]
        np.testing.assert_allclose(together[0][index], after_eos, rtol=1e-5)


def test_what_lines_share_is_computed_once_and_equal_lines_have_equal_figures(model):
    lines = [np.array(line) for line in ([1, 2, 3, 0], [1, 2, 0], [1, 2, 3, 0], [2, 2, 0], [1, 2, 3, 0, 4])]
    seen = []

    def describe(model, h, targets):
        seen.extend(targets.tolist())
        return details(0)(model, h, targets)

    nats = np.split(read_independent(model, lines, EOS, describe)[0], np.cumsum([4, 3, 4, 3]))
    assert sorted(seen) == sorted([1, 2, 3, 0, 0, 2, 2, 0, 4])  # the nodes of the tree of beginnings
    assert nats[0].tolist() == nats[2].tolist() == nats[4][:4].tolist()
    assert nats[1][:2].tolist() == nats[0][:2].tolist()


def test_probabilities_of_all_continuations_sum_to_one(model):
    lines = [np.array([3, 4, word]) for word in range(V)]
    nats = read_independent(model, lines, EOS)[0].reshape(V, 3)
    assert math.isclose(np.exp(-nats[:, 2]).sum(), 1, rel_tol=1e-6)
