"""An activation penalty beside weight decay and dropout: `python -m examples.digits.classifier`.

Classifiers with one hidden layer of 256 ReLU units learn from 300 images. Each method's strength is chosen on valid,
from 0.0001 to 0.1 on a log scale and then more finely around the best; then it trains with ten new seeds, and each of
those runs is scored on test once. Writes ledger and page of results/digits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

import lm
from examples.digits.data import RESULTS, batches, load_parts, write_records
from examples.digits.page import write_page

HIDDEN, TRAIN, BATCH, RATE, UPDATES = 256, 300, 50, 3e-3, 120
COARSE = (1e-4, 1e-3, 1e-2, 1e-1)
FINER = (0.2, 0.5, 2.0, 5.0)  # times the best of the coarse ones
DROPOUTS = (0.1, 0.2, 0.3, 0.5, 0.7)
TUNING_SEEDS = (1, 2, 3)
TEST_SEEDS = tuple(range(11, 21))


@dataclass(frozen=True)
class Setting:
    """Strengths: `l1` and `l2` of the sum over hidden units of |h| and h², averaged over images."""

    l1: float = 0.0
    l2: float = 0.0
    weight_decay: float = 0.0
    dropout: float = 0.0


def train_and_score(setting: Setting, seed: int, split: str, updates: int = UPDATES) -> dict[str, float]:
    """Accuracy and cross entropy (nats) on a split of a classifier trained with a seed."""
    parts = load_parts(seed, TRAIN)
    torch.manual_seed(seed)
    hidden = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU())
    model = nn.Sequential(hidden, nn.Dropout(setting.dropout), nn.Linear(HIDDEN, 10))
    penalties = [lm.ActivationPenalty(hidden, norm, HIDDEN * getattr(setting, norm)) for norm in ("l1", "l2")]
    optimizer = torch.optim.Adam(model.parameters(), RATE, weight_decay=setting.weight_decay, fused=True)
    images, labels = parts["train"].images, parts["train"].labels
    for rows in batches(TRAIN, BATCH, updates, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        sum((penalty.pop() for penalty in penalties), start=loss).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        logits = model(parts[split].images)
        zeros = (hidden(parts[split].images) == 0).float().mean()
    right = (logits.argmax(1) == parts[split].labels).double().mean()
    nats = nn.functional.cross_entropy(logits, parts[split].labels)
    return {"accuracy": round(right.item(), 5), "nats": round(nats.item(), 5), "zeros": round(zeros.item(), 5)}


class Tuning:
    """Choices on valid, and every run that they took."""

    def __init__(self, seeds: Sequence[int], updates: int) -> None:
        self._seeds = seeds
        self._updates = updates
        self._scores: dict[Setting, tuple[float, float]] = {}
        self.runs: list[dict[str, Any]] = []

    def best(self, settings: Sequence[Setting]) -> Setting:
        """The setting with the highest mean accuracy on valid; of equal ones that with the lowest loss."""
        for setting in settings:
            if setting not in self._scores:
                scores = [train_and_score(setting, seed, "valid", self._updates) for seed in self._seeds]
                self._scores[setting] = fmean(s["accuracy"] for s in scores), -fmean(s["nats"] for s in scores)
                pairs = zip(self._seeds, scores, strict=True)
                self.runs += [{"split": "valid", **asdict(setting), "seed": seed, **score} for seed, score in pairs]
        return max(settings, key=self._scores.__getitem__)

    def strength(self, setting: Setting, field: str) -> Setting:
        """`setting` with the best strength of a field: 0, the coarse ones, then finer ones around the best of those."""
        coarse = [replace(setting, **{field: value}) for value in COARSE]
        middle = getattr(self.best(coarse), field)
        finer = [replace(setting, **{field: float(f"{middle * factor:.3g}")}) for factor in FINER]
        return self.best([setting, *coarse, *finer])


def choose(tuning: Tuning) -> dict[str, Setting]:
    """Every method with its strength, chosen on valid."""
    plain = Setting()
    decay = tuning.strength(plain, "weight_decay")
    dropout = tuning.best([plain, *(Setting(dropout=p) for p in DROPOUTS)])
    return {
        "nothing": plain,
        "L1": tuning.strength(plain, "l1"),
        "L2 of activations": tuning.strength(plain, "l2"),
        "weight decay": decay,
        "dropout": dropout,
        "weight decay + dropout": tuning.strength(dropout, "weight_decay"),
        "weight decay + L1": tuning.strength(decay, "l1"),
        "dropout + L1": tuning.strength(dropout, "l1"),
    }


def main(
    folder: Path = RESULTS,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    test_seeds: Sequence[int] = TEST_SEEDS,
    updates: int = UPDATES,
) -> None:
    """Tune, score test once, and write ledger and page."""
    started = time.perf_counter()
    tuning = Tuning(tuning_seeds, updates)
    chosen = choose(tuning)
    scored = [
        {"split": "test", "method": method, **asdict(setting), "seed": seed}
        | train_and_score(setting, seed, "test", updates)
        for method, setting in chosen.items()
        for seed in test_seeds
    ]
    write_records(folder, "classifier", [*tuning.runs, *scored], started)
    write_page(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
