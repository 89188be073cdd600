"""AR, TAR and ActivationPenalty against their definitions, on any module and axis of time."""

import copy
import doctest
import gc
import io
import math
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lm.nn import regularization
from lm.nn.regularization import ActivationPenalty, activation_penalty, regularization_terms, temporal_penalty

T, B, H = 5, 3, 4


def test_ar_is_the_mean_square_the_mean_absolute_value_or_both():
    h = torch.full((T, B, H), -3.0)
    assert activation_penalty(h).item() == 9
    assert activation_penalty(h, "l1").item() == 3
    assert activation_penalty(h, "elastic").item() == 12


def test_tar_of_a_ramp_is_the_square_of_its_slope():
    h = 0.5 * torch.arange(T).float().view(T, 1, 1).expand(T, B, H)
    assert temporal_penalty(h).item() == 0.25


def test_tar_runs_along_time_and_not_along_the_batch():
    h = torch.arange(B).float().view(1, B, 1).expand(T, B, H)
    assert temporal_penalty(h).item() == 0


def test_tar_divides_by_the_number_of_differences():
    h = torch.zeros(T, B, H)
    h[2, 1, 3] = 2.0  # two differences of 2 among (T - 1) * B * H
    assert math.isclose(temporal_penalty(h).item(), 8 / ((T - 1) * B * H), rel_tol=1e-6)


def test_permuting_columns_changes_nothing_and_permuting_time_changes_tar_only():
    h = torch.randn(T, B, H, dtype=torch.float64)
    columns, time = h[:, torch.tensor([2, 0, 1])], h[torch.tensor([3, 0, 4, 1, 2])]
    for changed in (columns, time):
        assert torch.isclose(activation_penalty(changed), activation_penalty(h))
    assert torch.isclose(temporal_penalty(columns), temporal_penalty(h))
    assert not torch.isclose(temporal_penalty(time), temporal_penalty(h))


def test_one_time_step_has_no_tar_and_no_nan():
    h = torch.randn(1, B, H, requires_grad=True)
    assert temporal_penalty(h).item() == 0


def test_terms_read_the_dropped_output_for_ar_and_the_raw_output_for_tar():
    raw, dropped = [torch.randn(T, B, H) for _ in range(2)], [torch.randn(T, B, H) for _ in range(2)]
    terms = regularization_terms(raw, dropped, 2.0, 3.0)
    assert torch.equal(terms["ar"], 2 * dropped[1].square().mean())
    assert torch.equal(terms["tar"], 3 * temporal_penalty(raw[1]))


def test_all_layers_sums_the_layers():
    raw, dropped = [torch.randn(T, B, H) for _ in range(2)], [torch.randn(T, B, H) for _ in range(2)]
    terms = regularization_terms(raw, dropped, 2.0, 3.0, layers="all")
    assert torch.isclose(terms["ar"], 2 * (dropped[0].square().mean() + dropped[1].square().mean()))
    assert torch.isclose(terms["tar"], 3 * (temporal_penalty(raw[0]) + temporal_penalty(raw[1])))


def test_a_zero_coefficient_adds_no_term():
    h = [torch.randn(T, B, H)]
    assert regularization_terms(h, h, 0.0, 0.0) == {}
    assert regularization_terms(h, h, 1.0, 0.0).keys() == {"ar"}


@pytest.mark.parametrize("norm", ["l2", "l1", "elastic"])
def test_penalties_pass_gradcheck(norm):
    h = torch.randn(T, B, H, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: activation_penalty(x, norm) + temporal_penalty(x), h)


def test_activation_penalty_makes_a_sparse_autoencoder_sparser():
    def active_fraction(coefficient):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        model = nn.Sequential(encoder, nn.Linear(32, 8))
        sparsity = ActivationPenalty(encoder, "l1", coefficient)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        x = torch.randn(64, 8)
        for _ in range(150):
            optimizer.zero_grad()
            (nn.functional.mse_loss(model(x), x) + sparsity.pop()).backward()
            optimizer.step()
        return (encoder(x) > 0).float().mean().item()

    assert active_fraction(1.0) < 0.7 * active_fraction(0.0)


def test_activation_penalty_takes_the_first_output_and_adds_up_forward_passes():
    lstm = nn.LSTM(H, H)
    penalty = ActivationPenalty(lstm, "temporal", 2.0)
    x = torch.randn(T, B, H)
    expected = 2 * temporal_penalty(lstm(x)[0])
    lstm(x)
    assert torch.isclose(penalty.pop(), 2 * expected)
    assert penalty.pop() == 0.0


def test_activation_penalty_is_silent_in_evaluation_and_after_removal():
    layer = nn.Linear(H, H)
    penalty = ActivationPenalty(layer, "l2", 1.0)
    layer.eval()(torch.ones(1, H))
    assert penalty.pop() == 0.0
    penalty.remove()
    layer.train()(torch.ones(1, H))
    assert penalty.pop() == 0.0


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="l2, l1, elastic, temporal"):
        ActivationPenalty(nn.Linear(1, 1), "l3")
    h = torch.ones(2, 1, 1)
    with pytest.raises(ValueError, match="norm 'L2' is not one of l2, l1, elastic"):
        activation_penalty(h, norm="L2")
    with pytest.raises(ValueError, match="norm 'L2' is not one of l2, l1, elastic"):
        regularization_terms([h], [h], alpha=0, beta=1, norm="L2")


def test_unknown_layers_are_refused():
    h = torch.ones(2, 1, 1)
    with pytest.raises(ValueError, match="layers 'al' is not one of last, all"):
        regularization_terms([h], [h], alpha=1, beta=1, layers="al")


class Returns(nn.Module):
    """Returns what it is given, in a form of its own."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, h):
        return self.form(h)


def test_the_example_of_activation_penalty_runs():
    done = doctest.testmod(regularization)
    assert (done.failed, done.attempted) == (0, 6)


@pytest.mark.parametrize("lengths", [(5, 3, 1), (1, 4, 2), (1, 1)])
@pytest.mark.parametrize("norm", ["l2", "l1", "elastic", "temporal"])
def test_the_penalty_of_a_packed_sequence_is_that_of_a_loop_over_its_sequences(norm, lengths):
    sequences = [torch.randn(length, H) for length in lengths]
    penalty = ActivationPenalty(module := Returns(lambda h: h), norm, 3.0)
    module(pack_sequence(sequences, enforce_sorted=False))
    values = [value for h_TH in sequences for value in (h_TH.diff(dim=0) if norm == "temporal" else h_TH).flatten()]
    of_one = {
        "l2": lambda x: x**2, "l1": abs, "elastic": lambda x: x**2 + abs(x), "temporal": lambda x: x**2
    }[norm]  # fmt: skip
    expected = sum(of_one(value.item()) for value in values) / len(values) if values else 0.0
    assert penalty.pop().item() == pytest.approx(3 * expected, rel=1e-5)


def test_the_penalty_of_an_lstm_on_a_packed_sequence_ignores_padding():
    lstm = nn.LSTM(H, H)
    penalty = ActivationPenalty(lstm, "temporal")
    sequences = [torch.randn(length, H) for length in (4, 2)]
    lstm(pack_sequence(sequences))
    changes = torch.cat([lstm(sequence)[0].diff(dim=0) for sequence in sequences])
    packed = penalty._terms[0]  # those of the loop follow it
    assert torch.isclose(packed, changes.square().mean())


def test_packed_gradients_reach_every_sequence():
    sequences = [torch.randn(length, H, requires_grad=True) for length in (3, 2)]
    temporal_penalty(pack_sequence(sequences)).backward()
    assert all(sequence.grad.abs().sum() > 0 for sequence in sequences)


@pytest.mark.parametrize(
    "form",
    [
        lambda h: {"last_hidden_state": h, "loss": None},
        lambda h: OrderedDict(h=h),
        lambda h: [h, None],
        lambda h: ((h, "state"), 1),
        lambda h: {"rnn": (h, None)},
    ],
)
def test_the_first_entry_of_a_mapping_list_or_nested_output_counts(form):
    h = torch.randn(T, B, H)
    penalty = ActivationPenalty(module := Returns(form), "l1", 0.5)
    module(h)
    assert torch.isclose(penalty.pop(), 0.5 * h.abs().mean())


@pytest.mark.parametrize("output", [None, "text", (), {}, [None], {"loss": 0.5}])
def test_an_output_without_a_tensor_is_refused(output):
    penalty = ActivationPenalty(module := Returns(lambda h: output))
    with pytest.raises(TypeError, match="holds no tensor"):
        module(torch.ones(1))
    assert penalty.pop() == 0.0


def test_time_can_be_another_dimension():
    h_BTH = torch.randn(B, T, H)
    penalty = ActivationPenalty(module := Returns(lambda h: h), "temporal", time_dim=1)
    module(h_BTH)
    assert torch.isclose(penalty.pop(), temporal_penalty(h_BTH.transpose(0, 1)))


def copied(module):
    return copy.deepcopy(module)


def pickled(module):
    torch.save(module, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copied, pickled])
def test_a_copy_or_a_pickle_of_the_module_carries_no_penalty(duplicate):
    layer = nn.Linear(H, H)
    penalty = ActivationPenalty(layer)
    layer(torch.ones(1, H))  # a term with a graph is pending, which could be neither copied nor pickled
    other = duplicate(layer)
    assert penalty.pop() > 0
    assert torch.equal(other(torch.ones(1, H)), layer(torch.ones(1, H)))
    penalty.pop()
    other(torch.ones(1, H))
    assert penalty.pop() == 0.0
    again = ActivationPenalty(other)
    other(torch.ones(1, H))
    assert again.pop() > 0


def test_a_module_neither_keeps_its_penalty_alive_nor_needs_it():
    layer = nn.Linear(H, H)
    reference = weakref.ref(ActivationPenalty(layer))
    gc.collect()
    assert reference() is None
    layer(torch.ones(1, H))


def test_a_coefficient_of_zero_adds_nothing_whatever_the_output_is():
    penalty = ActivationPenalty(module := Returns(lambda h: None), coefficient=0.0)
    module(torch.ones(1))
    assert penalty.pop() == 0.0


def test_the_penalties_of_a_hook_are_those_of_the_training_loop():
    raw, dropped = torch.randn(T, B, H), torch.randn(T, B, H)
    ar = ActivationPenalty(first := Returns(lambda h: h), "elastic", 2.0)
    tar = ActivationPenalty(second := Returns(lambda h: h), "temporal", 3.0)
    first(dropped)
    second(raw)
    terms = regularization_terms([raw], [dropped], 2.0, 3.0, "elastic")
    assert torch.equal(ar.pop(), terms["ar"])
    assert torch.equal(tar.pop(), terms["tar"])
