"""NT-ASGD, optimizers, clipping, divergence and schedules against their definitions and PyTorch's own."""

import copy
import math

import pytest
import torch
from torch import nn

from lm.base.errors import DivergedError
from lm.config.values import make_config
from lm.training.averaging import NTASGD
from lm.training.divergence import check_update
from lm.training.optim import build_optimizer, clip, load_state, set_beta1, set_rate
from lm.training.schedule import LearningRate, schedule_factor


def switch_epoch(losses, nonmono):
    averaging = NTASGD(nonmono)
    return next((epoch for epoch, loss in enumerate(losses, 1) if averaging.after_validation(loss)), None)


@pytest.mark.parametrize(
    ("losses", "nonmono", "epoch"),
    [
        ([5, 4, 3, 2, 1], 2, None),  # always improving
        ([5, 4, 4.5, 4.5, 4.5], 2, 5),  # before epoch 5 the best of all but the last two is 4
        ([5, 4, 3, 3.5, 3.5, 3.5], 2, 6),
        ([1, 2, 2, 2], 3, None),  # the history must be longer than n
        ([1, 2, 2, 2, 2], 3, 5),
        ([4, 4, 4, 4, 4], 2, None),  # equal is not worse
        ([1, 9, 9], 0, None),  # never
    ],
)
def test_averaging_starts_when_the_loss_exceeds_the_best_of_all_but_the_last_n(losses, nonmono, epoch):
    assert switch_epoch(losses, nonmono) == epoch


def test_a_history_restored_after_every_epoch_switches_in_the_same_epoch():
    averaging, model = NTASGD(2), nn.Linear(1, 1)
    for epoch, loss in enumerate([5, 4, 3, 3.5, 3.5, 3.5], 1):
        resumed = NTASGD(2)
        resumed.load_state_dict(copy.deepcopy(averaging.state_dict()), model)
        averaging = resumed
        assert averaging.after_validation(loss) == (epoch == 6)


def test_the_mean_is_the_equal_weight_mean_of_the_iterates_after_the_switch():
    model, averaging = nn.Linear(3, 2).double(), NTASGD(5)
    averaging.start(model)
    iterates = []
    for _ in range(7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        averaging.after_update(model)
        iterates.append(copy.deepcopy(model.weight))
    assert torch.allclose(averaging.averaged.weight, torch.stack(list(iterates)).mean(0), atol=1e-12)
    assert averaging.averaged is not model


def test_averaging_restored_from_its_state_goes_on_with_the_same_mean():
    model, straight = nn.Linear(3, 2), NTASGD(5)
    straight.start(model)
    straight.after_update(model)
    resumed = NTASGD(5)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()), model)
    with torch.no_grad():
        model.weight.add_(1)
    for averaging in (straight, resumed):
        averaging.after_update(model)
    assert torch.equal(straight.averaged.weight, resumed.averaged.weight)


def test_sgd_is_the_plain_update_with_weight_decay_in_the_gradient():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, make_config(lr=2.0, wdecay=0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.allclose(model.weight, before - 2.0 * (1.0 + 0.1 * before))


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_and_adamw_take_the_configured_values(name, kind):
    config = make_config(optimizer=name, lr=0.1, wdecay=0.2, adam_beta1=0.5, adam_beta2=0.6)
    optimizer = build_optimizer(nn.Linear(1, 1), config)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.2, (0.5, 0.6))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_loaded_optimizer_has_the_rate_and_beta1_of_its_last_update(kind):
    config = make_config(optimizer=kind, lr=0.1)
    before, after = (build_optimizer(nn.Linear(1, 1), config) for _ in range(2))
    set_rate(before, 0.025)
    if kind == "adam":
        set_beta1(before, 0.7)
    saved = before.state_dict()
    for group in saved["param_groups"]:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)  # as a GPU keeps it
    load_state(after, saved)
    assert after.param_groups[0]["lr"] == 0.025
    assert after.param_groups[0].get("betas", (0.7,))[0] == 0.7


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("max_norm", [1.0, 100.0, 0.0])
def test_a_clipped_step_is_clip_grad_norm_and_a_plain_step(kind, max_norm):
    config = make_config(optimizer=kind, lr=0.1, wdecay=0.01)
    ours, theirs = (nn.Linear(3, 4) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        (module(torch.arange(6.0).view(2, 3)) ** 2).sum().backward()
    optimizer = build_optimizer(ours, config)
    norm = clip(optimizer, max_norm)
    optimizer.step()
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm or math.inf)
    build_optimizer(theirs, config).step()
    assert torch.isclose(norm, expected)
    assert 1 < norm < 100  # one bound clips, the other does not
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_gradient_that_is_not_finite_makes_no_update(bad, kind):
    module = nn.Linear(2, 2)
    before = copy.deepcopy(module.state_dict())
    module(torch.ones(1, 2)).sum().backward()
    module.weight.grad[0, 0] = bad
    optimizer = build_optimizer(module, make_config(optimizer=kind))
    assert not clip(optimizer, 0.25).isfinite()
    optimizer.step()
    assert all(torch.equal(w, before[name]) for name, w in module.state_dict().items())


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_a_value_that_is_not_finite_is_reported_as_divergence(loss, norm):
    with pytest.raises(DivergedError, match="update 7"):
        check_update(loss, norm, 7)


def test_plateau_divides_by_four_without_improvement_and_when_by_ten():
    rate = LearningRate("plateau", 20.0)
    bases = []
    for epoch, loss in enumerate([5.0, 4.0, 4.0, 4.5, 3.0], 1):
        rate.after_validation(loss)
        rate.end_epoch(epoch)
        bases.append(rate.base)
    assert bases == [20, 20, 5, 1.25, 1.25]
    constant = LearningRate("constant", 30.0, when=(2,))
    for epoch in (1, 2, 3):
        constant.after_validation(1.0)
        constant.end_epoch(epoch)
    assert constant.base == 3
    improving = LearningRate("plateau", 40.0, when=(1, 3))
    for epoch, loss in enumerate([3.0, 3.0, 2.0], 1):  # by 10, by 4, by 10
        improving.after_validation(loss)
        improving.end_epoch(epoch)
    assert improving.base == pytest.approx(0.1)


def test_onecycle_is_pytorchs_onecycle():
    steps = 2000  # PyTorch counts steps, we fractions: the two meet as steps grow
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps)
    for step in range(steps - 1):
        assert math.isclose(schedule_factor("onecycle", step / (steps - 1)), theirs.get_last_lr()[0], abs_tol=2e-3)
        optimizer.step()
        theirs.step()
    assert math.isclose(schedule_factor("onecycle", 1.0), theirs.get_last_lr()[0], rel_tol=1e-6)


def test_linear_goes_from_one_to_zero_and_constant_stays():
    assert [schedule_factor("linear", f) for f in (0, 0.25, 1)] == [1, 0.75, 0]
    assert schedule_factor("constant", 0.7) == schedule_factor("plateau", 0.7) == 1


def test_the_norm_of_the_last_gradient_is_the_one_that_a_step_scales_by():
    module = nn.Linear(2, 2, bias=False)
    optimizer = build_optimizer(module, make_config(lr=1.0, wdecay=0.0))
    before = module.weight.detach().clone()
    for size in (100.0, 4.0):  # the second finds the place that the first has written to
        module.weight.grad = torch.full((2, 2), size)
        assert clip(optimizer, 1.0).item() == pytest.approx(2 * size)
    optimizer.step()
    assert torch.allclose(before - module.weight, torch.full((2, 2), 0.5), atol=1e-5)
