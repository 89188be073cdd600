"""A training step through CUDA graphs is the step without them."""

import pytest
import torch

from lm.base.device import pick_device, rng_state, set_determinism
from lm.bench import random_run
from lm.config.values import make_config
from lm.train import update
from lm.training.cudagraphs import CUDAGraphs
from tests.rundir import same

SMALL = {"emsize": 16, "nhid": 24, "nlayers": 2, "batch_size": 4, "lr": 2.0, "deterministic": True}


def test_without_cuda_the_function_is_called_as_it_is():
    calls, graphs = [], CUDAGraphs(torch.device("cpu"))
    for _ in range(3):
        graphs(lambda *inputs: calls.append(inputs), torch.zeros(2), torch.ones(2))
    assert len(calls) == 3


def trained(device, updates, graphs, **values):
    """Everything that a run's updates change."""
    run, forwards = random_run(make_config(**SMALL | values), 50, device), []
    run.model.register_forward_hook(lambda *_: forwards.append(1))
    if not graphs:
        run.cuda_graphs = lambda function, *inputs: function(*inputs)
    for _ in range(updates):
        update(run, next(run.windows))
    assert (len(forwards) < updates) == graphs  # a graph repeats the kernels, not the Python
    return {
        "weights": run.model.state_dict(),
        "hidden": [list(layer) for layer in run.hidden],
        "means": run.means.state_dict(),
        "mean": run.averaging.state_dict(),
        "optimizer": run.optimizer.state_dict()["state"],
        "rng": rng_state(device),
    }


@pytest.mark.gpu
@pytest.mark.parametrize(
    "values",
    [
        {"variable_bptt": False, "bptt": 9},
        {"variable_bptt": True, "bptt": 12, "max_seq_len_delta": 5},
        {"variable_bptt": True, "bptt": 12, "max_seq_len_delta": 5, "optimizer": "adamw", "lr": 1e-2},
        {"variable_bptt": False, "bptt": 9, "model": "GRU", "precision": "fp32", "dropout_kind": "standard"},
        # The step outside of the graph, beta1 anew in each, and the mean begun after 20 of 400 windows.
        {
            "variable_bptt": True,
            "bptt": 12,
            "max_seq_len_delta": 5,
            "schedule": "trapezoid",
            "optimizer": "adam",
            "lr": 1e-2,
            "adam_beta1": 0.8,
            "clip": 0.12,
            "epochs": 1,
            "average_last": 0.95,
        },
        {"variable_bptt": False, "bptt": 9, "schedule": "onecycle", "ar_layers": "all", "clip": 0.0, "lr": 0.1},
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_updates_through_graphs_end_in_the_same_bits_as_without(values):
    device = pick_device("cuda")
    set_determinism(True, 1)
    try:
        plain, graphed = (trained(device, 60, graphs, **values) for graphs in (False, True))
        assert same(graphed, plain)
        assert not same(trained(device, 59, True, **values)["weights"], plain["weights"])
    finally:
        set_determinism(False, 1)


@pytest.mark.gpu
def test_a_step_outside_of_the_graphs_finds_gradients_norm_and_rate_in_one_place():
    device = pick_device("cuda")
    values = {"variable_bptt": True, "bptt": 12, "max_seq_len_delta": 5, "schedule": "trapezoid", "optimizer": "adam"}
    run = random_run(make_config(**SMALL | values | {"adam_beta1": 0.8, "lr": 1e-2, "epochs": 1}), 50, device)
    places, norms = set(), []
    for _ in range(60):
        update(run, next(run.windows))
        optimizer = run.optimizer
        tensors = [*(p.grad for p in run.model.parameters()), optimizer.grad_scale, optimizer.found_inf]
        places.add(tuple(tensor.data_ptr() for tensor in (*tensors, optimizer.param_groups[0]["lr"])))
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()]).item())
    assert len(places) == 1
    assert len(run.cuda_graphs._graphs) > 3
    # The fused step leaves what it has scaled in the gradients' place.
    assert max(norms) <= run.config.clip * 1.001
