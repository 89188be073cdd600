"""The digits (1,797 images of 8x8 pixels, ten classes) as tensors, and the ledger of what was measured on them.

Shapes: N images, 64 pixels.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lm.base.files import ROOT, write_bytes
from lm.base.provenance import git_state, versions

RESULTS = ROOT / "results/digits"
LEDGER = "runs.jsonl"
TEST = 497  # images that nothing is chosen on: the same ones for every seed


@dataclass(frozen=True)
class Part:
    """Images (N, 64) and their classes (N,)."""

    images: Tensor
    labels: Tensor


@functools.cache
def load_parts(seed: int, train: int, inputs: str = "standardised") -> dict[str, Part]:
    """Train, of this many images, valid, of 300 others, and test.

    Args:
        seed: draws train and valid; test does not depend on it.
        train: number of images.
        inputs: `raw`, pixels of 0 to 16, or `standardised` by mean and deviation of train.
    """
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST, stratify=labels, random_state=0)
    chosen, valid = train_test_split(
        rest, train_size=train, test_size=300, stratify=labels[rest], random_state=1000 + seed
    )
    if inputs == "standardised":
        images = StandardScaler().fit(images[chosen]).transform(images)
    return {
        name: Part(torch.tensor(images[rows], dtype=torch.float32), torch.tensor(labels[rows]))
        for name, rows in (("train", chosen), ("valid", valid), ("test", test))
    }


def batches(count: int, size: int, updates: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each update's batch: shuffled passes over `count` images, without the remainder of a pass."""
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(updates):
        if len(rows) < size:
            rows = torch.randperm(count, generator=generator)
        yield rows[:size]
        rows = rows[size:]


def read_records(folder: Path, experiment: str) -> list[dict[str, Any]]:
    """The ledger's lines of an experiment: first how it was run, then a line a run; empty where it was not."""
    if not (folder / LEDGER).exists():
        return []
    records = map(json.loads, (folder / LEDGER).read_text().splitlines())
    return [record for record in records if record["experiment"] == experiment]


def write_records(folder: Path, experiment: str, runs: Sequence[dict[str, Any]], started: float) -> None:
    """Put an experiment's runs into the ledger, in place of its former ones, with the command and the machine."""
    head = {
        "command": f"python -m examples.digits.{experiment}", "seconds": round(time.perf_counter() - started),
        "git": git_state(),
        "versions": versions(torch.device("cpu"), "fp32") | {"scikit-learn": version("scikit-learn")},
    }  # fmt: skip
    others = [r for name in ("autoencoder", "classifier") if name != experiment for r in read_records(folder, name)]
    records = [*others, *({"experiment": experiment} | record for record in (head, *runs))]
    records.sort(key=lambda record: record["experiment"])  # a stable sort: the lines of each keep their order
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / LEDGER, "".join(f"{json.dumps(record)}\n" for record in records).encode())
