"""Autoencoders with an L1 penalty on their code: `python -m examples.digits.autoencoder`.

Code of 16, 64 or 256 units, ReLU or tanh, standardised or raw pixels, L1 of 0 and of 0.0001 to 0.1, three seeds. Writes
ledger, pictures and page of results/digits: for each run, on images that were held out, the part of the pixels'
variance that the reconstruction misses, zeros in the code, and the accuracy of a linear probe that reads the code.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import lm
from examples.digits.data import RESULTS, Part, batches, load_parts, write_records
from examples.digits.page import write_page
from examples.digits.pictures import draw_autoencoders, draw_features
from lm.nn.regularization import INACTIVE

CODES = (16, 64, 256)
STRENGTHS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
INPUTS = ("standardised", "raw")
SEEDS = (1, 2, 3)
TRAIN, UPDATES, BATCH, RATE = 1000, 200, 100, 5e-3


def train(images: Tensor, code: int, activation: str, l1: float, seed: int, updates: int = UPDATES) -> nn.Sequential:
    """An autoencoder (encoder, decoder) of images (N, 64).

    `l1` multiplies the sum of |h| over the code's units, averaged over images; the error is a mean over pixels.
    """
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(64, code), ACTIVATIONS[activation]())
    model = nn.Sequential(encoder, nn.Linear(code, 64))
    sparsity = lm.ActivationPenalty(encoder, "l1", l1 * code)  # its own norm is a mean over units
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    for rows in batches(len(images), BATCH, updates, torch.Generator().manual_seed(seed)):
        batch = images[rows]
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(batch), batch) + sparsity.pop()).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def measure(model: nn.Sequential, parts: dict[str, Part]) -> dict[str, float]:
    """What a trained autoencoder does on images that were held out; `chosen_on` is the probe's accuracy on valid."""
    codes = {name: model[0](part.images) for name, part in parts.items()}
    test, mean = parts["test"].images, parts["train"].images.mean(0)
    probe = make_pipeline(StandardScaler(), RidgeClassifier()).fit(codes["train"].numpy(), parts["train"].labels)
    accuracy = {name: float(probe.score(codes[name].numpy(), parts[name].labels)) for name in ("valid", "test")}
    return {
        "missed": ((model(test) - test).square().sum() / (test - mean).square().sum()).item(),
        "zeros": (codes["test"] == 0).float().mean().item(),
        "near_zeros": (codes["test"].abs() < INACTIVE).float().mean().item(),
        "dead": (codes["test"] == 0).all(0).float().mean().item(),
        "probe_valid": accuracy["valid"],
        "probe_test": accuracy["test"],
    }


def main(folder: Path = RESULTS, seeds: tuple[int, ...] = SEEDS, updates: int = UPDATES) -> None:
    """Run all, and write ledger, pictures and page."""
    started = time.perf_counter()
    runs: list[dict[str, Any]] = []
    features: dict[float, Tensor] = {}
    for seed, inputs in itertools.product(seeds, INPUTS):
        parts = load_parts(seed, TRAIN, inputs)
        for activation, code, l1 in itertools.product(ACTIVATIONS, CODES, STRENGTHS):
            model = train(parts["train"].images, code, activation, l1, seed, updates)
            setting = {"inputs": inputs, "activation": activation, "code": code, "l1": l1, "seed": seed}
            runs.append(setting | {name: round(value, 5) for name, value in measure(model, parts).items()})
            if (seed, inputs, activation, code) == (seeds[0], "standardised", "relu", CODES[-1]):
                features[l1] = model[1].weight.detach().t()
    write_records(folder, "autoencoder", runs, started)
    draw_features(folder / "features.png", {l1: features[l1] for l1 in (0.0, 1e-2)})
    draw_autoencoders(folder / "autoencoders.png", runs)
    write_page(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
