"""AWDLSTM against an independent plain-PyTorch reference, its published sizes, its masks and its names."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lm.config.schema import TrainConfig
from lm.config.values import make_config
from lm.nn.model import AWDLSTM, count_parameters, detach
from lm.nn.regularization import regularization_terms

V, T, B = 23, 6, 3
NO_DROPOUT = {"dropout": 0.0, "dropouth": 0.0, "dropouti": 0.0, "dropoute": 0.0, "wdrop": 0.0}


def tiny(**overrides) -> TrainConfig:
    return make_config(**({"emsize": 8, "nhid": 12, "nlayers": 3} | overrides))


def batch(generator_seed=0):
    generator = torch.Generator().manual_seed(generator_seed)
    ids = torch.randint(V, (T + 1, B), generator=generator)
    return ids[:-1], ids[1:]


def reference(weights: dict[str, torch.Tensor], config: TrainConfig, tokens, targets, state):
    """Loss with AR and TAR, and new state, in plain nn.LSTMs that share nothing with the model but its weights."""
    x = F.embedding(tokens, weights["encoder.weight"])
    new_state, layers = [], []
    for layer in range(config.nlayers):
        mine = {name.split(".")[2]: w for name, w in weights.items() if name.startswith(f"rnns.{layer}.")}
        hidden = mine["weight_hh_l0"].shape[1]
        lstm = nn.LSTM(x.shape[2], hidden, dtype=x.dtype)
        h0_c0 = tuple(tensor.unsqueeze(0) for tensor in state[layer])
        x, (h, c) = torch.func.functional_call(lstm, mine, (x, h0_c0))
        new_state.append((h[0], c[0]))
        layers.append(x)
    decoder = weights["encoder.weight"] if config.tied else weights["decoder.weight"]
    logits = torch.einsum("tbh,vh->tbv", x, decoder) + weights["decoder.bias"]
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    loss = -log_p.gather(2, targets.unsqueeze(2)).mean()
    steps = len(x) - 1
    ar = config.alpha * (x**2).sum() / x.numel()
    tar = config.beta * sum(((x[t + 1] - x[t]) ** 2).sum() for t in range(steps)) / (steps * x[0].numel())
    return loss + ar + tar, new_state


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_every_gradient_equal_an_independent_reference_over_two_windows(dtype, tolerance, tied):
    config = tiny(tied=tied, alpha=2.0, beta=1.0, **NO_DROPOUT)
    model = AWDLSTM(V, config).to(dtype)
    weights = {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}
    state = model.initial_state(B)
    expected_state = state
    for window in range(2):
        tokens, targets = batch(window)
        output = model(tokens, state)
        loss = model.loss(output, targets)
        total = loss + sum(regularization_terms(output.raw, output.after_dropout, config.alpha, config.beta).values())
        model.zero_grad()
        total.backward()
        expected, expected_state = reference(weights, config, tokens, targets, expected_state)
        gradients = dict(zip(weights, torch.autograd.grad(expected, weights.values()), strict=True))
        assert abs(total - expected) <= tolerance * expected.abs()
        for name, parameter in model.named_parameters():
            scale = gradients[name].abs().max()
            assert (parameter.grad - gradients[name]).abs().max() <= tolerance * scale, name
        state, expected_state = detach(output.state), detach(expected_state)


def test_gradcheck_passes_on_a_tiny_model():
    config = tiny(emsize=2, nhid=3, nlayers=2, alpha=2.0, beta=1.0, **NO_DROPOUT)
    model = AWDLSTM(5, config).double()
    names = [name for name, _ in model.named_parameters()]
    tokens, targets = torch.randint(5, (3, 2)), torch.randint(5, (3, 2))

    def total(*values):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self):
                output = self.model(tokens, self.model.initial_state(2))
                terms = regularization_terms(output.raw, output.after_dropout, 2.0, 1.0)
                return self.model.loss(output, targets) + terms["ar"] + terms["tar"]

        return torch.func.functional_call(Both(), {f"model.{n}": v for n, v in zip(names, values, strict=True)}, ())

    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(total, values)


@pytest.mark.parametrize(
    ("preset", "dataset", "vocabulary", "parameters"),
    [
        ("awd-lstm", "ptb", 10_000, 24_221_600),
        ("awd-lstm", "wikitext-2", 33_278, 33_556_078),
        ("examples-200", "ptb", 10_000, 2_653_200),
        ("examples-200", "wikitext-2", 33_278, 7_332_078),
        ("examples-650", "ptb", 10_000, 13_280_400),
        ("examples-1500", "ptb", 10_000, 51_034_000),
        ("examples-1500", "wikitext-2", 33_278, 85_974_278),
    ],
)
def test_parameter_counts_are_the_published_ones(preset, dataset, vocabulary, parameters):
    with torch.device("meta"):
        assert count_parameters(AWDLSTM(vocabulary, make_config(preset, dataset))) == parameters


def test_untied_counts_are_the_published_ones():
    with torch.device("meta"):
        model = AWDLSTM(10_000, make_config("examples-650", "ptb", tied=False))
    assert count_parameters(model) == 19_780_400


def test_initial_weights_follow_the_paper():
    model = AWDLSTM(1000, tiny(emsize=100, nhid=25, nlayers=2))
    assert 0.099 < model.encoder.weight.abs().max() <= 0.1
    assert not model.decoder.bias.any()
    assert model.decoder.weight is model.encoder.weight
    assert 0.19 < model.rnns[0].weight_hh_l0.abs().max() <= 0.2  # 1/sqrt(25)
    assert 0.099 < model.rnns[1].weight_hh_l0.abs().max() <= 0.1  # 1/sqrt(100): the tied last layer is emsize wide


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU", "QRNN"])
def test_every_cell_trains_and_carries_its_state(cell):
    model = AWDLSTM(V, tiny(model=cell))
    tokens, targets = batch()
    output = model(tokens, model.initial_state(B))
    model.loss(output, targets).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    whole = model(tokens, model.initial_state(B)).raw[-1]
    first = model(tokens[:2], model.initial_state(B))
    rest = model(tokens[2:], first.state)
    assert torch.allclose(torch.cat([first.raw[-1], rest.raw[-1]]), whole, atol=1e-6)


def test_evaluation_draws_no_random_numbers_and_training_masks_change_every_forward():
    model = AWDLSTM(V, tiny())
    tokens, _ = batch()
    before = torch.get_rng_state()
    model.eval()
    assert torch.equal(
        model(tokens, model.initial_state(B)).after_dropout[-1], model(tokens, model.initial_state(B)).after_dropout[-1]
    )
    assert torch.equal(torch.get_rng_state(), before)
    model.train()
    first, second = (model(tokens, model.initial_state(B)).after_dropout[-1] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["locked", "standard"])
def test_locked_masks_are_constant_over_time_and_standard_ones_are_not(kind):
    model = AWDLSTM(V, tiny(dropout_kind=kind, dropout=0.5))
    output = model(torch.zeros(200, B, dtype=torch.long), model.initial_state(B))
    kept = (output.after_dropout[-1] != 0).float().mean(0)
    assert ((kept == 0) | (kept == 1)).all() == (kind == "locked")


def test_no_tensor_is_created_on_another_device_than_the_models():
    config = tiny(alpha=2.0, beta=1.0)
    with torch.device("meta"):
        model = AWDLSTM(V, config)
    tokens = torch.zeros(T, B, dtype=torch.long, device="meta")
    output = model(tokens, model.initial_state(B))
    total = model.loss(output, tokens) + sum(regularization_terms(output.raw, output.after_dropout, 2.0, 1.0).values())
    total.backward()
    assert all(parameter.grad.device.type == "meta" for parameter in model.parameters())


def test_a_copy_is_independent_and_keeps_the_tie():
    model = AWDLSTM(V, tiny())
    twin = copy.deepcopy(model)
    assert twin.decoder.weight is twin.encoder.weight
    with torch.no_grad():
        twin.encoder.weight.zero_()
    assert model.encoder.weight.any()


def test_state_dict_has_the_documented_names():
    config = dataclasses.replace(tiny(nlayers=1, nhid=8), emsize=8)
    assert set(AWDLSTM(V, config).state_dict()) == {
        "encoder.weight", "decoder.weight", "decoder.bias", "rnns.0.weight_ih_l0", "rnns.0.weight_hh_l0",
        "rnns.0.bias_ih_l0", "rnns.0.bias_hh_l0",
    }  # fmt: skip


@pytest.mark.gpu
def test_cuda_computes_what_the_cpu_computes():
    config = tiny(**NO_DROPOUT)
    model = AWDLSTM(V, config)
    tokens, targets = batch()
    expected = model.loss(model(tokens, model.initial_state(B)), targets)
    model.cuda()
    found = model.loss(model(tokens.cuda(), model.initial_state(B)), targets.cuda())
    assert torch.isclose(found.cpu(), expected, rtol=1e-4)
