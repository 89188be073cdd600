import math

import pytest
import torch
from torch import nn

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
