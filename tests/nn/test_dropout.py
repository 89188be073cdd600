"""Masks: exact probabilities, what is shared along which axis, identity where dropout is off."""

import pytest
import torch

from lm.nn.dropout import (
    EmbeddingDropout,
    LockedDropout,
    StandardDropout,
    drop_gradient,
    drop_weight,
    keep_mask,
    keep_probability,
)


@pytest.mark.parametrize(
    ("p", "expected"), [(0.0, (256, 256)), (0.5, (128, 256)), (0.75, (64, 256)), (0.3, (45875, 65536))]
)
def test_keep_probability_is_exact_in_8_bits_or_nearest_in_16(p, expected):
    assert keep_probability(p) == expected
    kept, levels = expected
    assert abs(kept / levels - (1 - p)) <= 2**-17


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan"), 1 - 1e-9])
def test_probabilities_that_keep_nothing_or_are_none_are_refused(p):
    with pytest.raises(ValueError, match="dropout probability"):
        keep_probability(p)


@pytest.mark.parametrize("p", [0.5, 0.3, 0.05, 0.999])
def test_mask_holds_zeros_and_ones_at_the_announced_rate(p):
    torch.manual_seed(0)
    mask, scale = keep_mask((1000, 999), p, "cpu")
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    deviation = 5 * (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(mask.mean().item() - (1 - p)) < deviation
    kept, levels = keep_probability(p)
    assert scale == levels / kept


def test_every_level_of_the_random_bits_is_equally_likely():
    """The threshold splits the 256 levels as announced: a chi-square statistic over the rate of 64 column blocks."""
    torch.manual_seed(1)
    mask, _ = keep_mask((4096, 64), 0.25, "cpu")
    z = (mask.sum(0) - 4096 * 0.75) / (4096 * 0.75 * 0.25) ** 0.5
    assert 30 < z.square().sum().item() < 110


def test_mask_depends_on_the_seed_alone_and_not_on_its_dtype():
    masks = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        torch.manual_seed(7)
        masks.append(keep_mask((33, 5), 0.4, "cpu", dtype)[0])
    assert all(
        mask.dtype == dtype for mask, dtype in zip(masks, (torch.float32, torch.bfloat16, torch.float64), strict=True)
    )
    assert torch.equal(masks[0], masks[1].float()) and torch.equal(masks[0], masks[2].float())
    assert not torch.equal(masks[0], keep_mask((33, 5), 0.4, "cpu")[0])


def test_locked_dropout_uses_one_mask_for_all_time_steps():
    torch.manual_seed(0)
    y = LockedDropout(0.5)(torch.ones(6, 3, 50))
    assert torch.equal(y, y[:1].expand_as(y))
    assert not torch.equal(y[0, 0], y[0, 1])
    assert set(y.unique().tolist()) == {0.0, 2.0}


def test_standard_dropout_differs_at_every_time_step():
    torch.manual_seed(0)
    y = StandardDropout(0.5)(torch.ones(6, 3, 50))
    assert not torch.equal(y[0], y[1])
    assert set(y.unique().tolist()) == {0.0, 2.0}


def test_embedding_dropout_drops_whole_words_wherever_they_stand_and_their_gradient():
    torch.manual_seed(0)
    weight = torch.randn(40, 8, requires_grad=True)
    tokens = torch.randint(40, (30, 4))
    y = EmbeddingDropout(0.5)(tokens, weight)
    y.sum().backward()
    for word in tokens.unique():
        rows = y[tokens == word]
        dropped = bool((rows == 0).all())
        assert dropped or torch.equal(rows, (2 * weight[word]).expand_as(rows))
        assert weight.grad[word].eq(0).all() == dropped
    assert (y == 0).all(-1).any() and not (y == 0).all(-1).all()


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_modules_are_the_identity_in_eval_mode_and_at_p_zero(p):
    x, weight, tokens = torch.randn(4, 2, 6), torch.randn(9, 6), torch.randint(9, (4, 2))
    training = p == 0.0
    assert LockedDropout(p).train(training)(x) is x
    assert StandardDropout(p).train(training)(x) is x
    assert torch.equal(EmbeddingDropout(p).train(training)(tokens, weight), weight[tokens])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_weight_and_its_gradient_are_masked_and_scaled_without_a_second_rounding(dtype):
    torch.manual_seed(0)
    weight = torch.randn(50, 20)
    mask, scale = keep_mask((50, 20), 0.3, "cpu", dtype)
    dropped = drop_weight(weight, mask, scale, dtype)
    assert torch.equal(dropped, (weight * scale).to(dtype) * mask)
    grad = torch.randn(50, 20).to(dtype)
    assert torch.equal(drop_gradient(grad.clone(), mask, scale, torch.float32), (grad.float() * mask.float()) * scale)
    assert torch.equal(drop_weight(weight, None, 1.0, torch.float32), weight)
