"""The page of what the Triton LSTM takes on a GPU, from its figures: `python3 -m tests.gpu_page results/speed`.

The folder's gpu-lstm.json holds what `tests.gpu_lstm` (tiles) and `tests.gpu_lanes` (runs side by side) measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from lm.nn.kernels.triton_lstm import choose_tiles
from tests.full_size_page import table

_NAMES = {"ptb": "PTB", "wikitext-2": "WT2"}


def times(tune: list[dict[str, Any]], hidden: int, batch: int, kernel: str) -> tuple[str, str, int]:
    """Microseconds of the tile that is taken and of the fastest one, and how many were tried."""
    rows = [row for row in tune if (row["hidden"], row["batch"], row["kernel"]) == (hidden, batch, kernel)]
    taken = dataclasses.asdict(choose_tiles(hidden, batch, torch.bfloat16)[kernel == "backward"])
    measured = next((f"{row['us_a_step']:.1f}" for row in rows if row["tile"] == taken), "not tried")
    return measured, f"{min(row['us_a_step'] for row in rows if row['us_a_step']):.1f}", len(rows)


def tile_rows(tune: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """A row for each size: units, rows, and forward and backward the tile taken, the fastest, and the tiles tried."""
    sizes = sorted({(row["hidden"], row["batch"]) for row in tune})
    return [
        (f"{hidden} x {batch}", *times(tune, hidden, batch, "forward"), *times(tune, hidden, batch, "backward"))
        for hidden, batch in sizes
    ]


def lane_rows(lanes: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """A row for each corpus in each company: its runs' mean milliseconds by kernel, and their ratio."""
    rows: list[tuple[object, ...]] = []
    for runs, group in itertools.groupby(sorted(lanes, key=lambda row: len(row["runs"])), key=lambda row: row["runs"]):
        members = list(group)
        for corpus in dict.fromkeys(runs):
            mean = {}
            for kernel in ("triton", "native"):
                values = [r["ms_an_update"] for r in members if r["kernel"] == kernel and r["runs"][r["run"]] == corpus]
                mean[kernel] = sum(values) / len(values)
            company = " + ".join(f"{runs.count(name)} {_NAMES[name]}" for name in dict.fromkeys(runs))
            ratio = f"{mean['native'] / mean['triton']:.2f}"
            rows.append((f"{company}: {_NAMES[corpus]}", f"{mean['triton']:.2f}", f"{mean['native']:.2f}", ratio))
    return rows


def page(found: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# The Triton LSTM on a GPU", "",
        f"{found['gpu']}, PyTorch {found['torch']}, Triton {found['triton']}, {found['date']}. All figures are in "
        "gpu-lstm.json, every tile that was tried among them; this page is made of it by "
        "`python3 -m tests.gpu_page results/speed`.", "",
        "## Errors", "",
        "A layer with weight drop over 70 steps in bf16, output, state and every gradient against float64, in units of "
        "the error that rounding the operands of the products makes (`tests/nn/kernels/reference.py`): at most "
        f"{max(error for row in found['check'] for error in row['errors'].values()):.2f}.", "",
        "## A time step", "",
        "Microseconds of one layer, bf16, in a CUDA graph of 70 steps (`tests/gpu_tiles.py`). *Taken* is the tile that "
        "`choose_tiles` returns now, *fastest* the fastest of those tried.", "",
        *table(
            "units x rows of the batch | forward: taken | fastest | tried | backward: taken | fastest | tried",
            tile_rows(found["tune"]),
        ), "",
        "## Runs side by side", "",
        "Milliseconds of an update of `awd-lstm-fast` (full size; PTB in batches of 40, WikiText-2 of 100; windows of "
        "70, random words) for each of the runs that share the GPU under MPS, by kernel: Triton, and cuDNN in bf16. A "
        "figure is the mean over 2.2 seconds. The tiles were the fastest of those tried, and the code that of "
        "07f93088. `python3 -m tests.gpu_lanes` measures the same.", "",
        *table("runs: of which | Triton | cuDNN | ratio", lane_rows(found["lanes"])), "",
        "A step alone on the GPU, and beside plain PyTorch (`python -m lm.bench --device cuda`), has not been measured "
        "with these kernels.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("folder", type=Path, help="folder of gpu-lstm.json, which gets gpu-lstm.md")
    folder = parser.parse_args().folder
    (folder / "gpu-lstm.md").write_text(page(json.loads((folder / "gpu-lstm.json").read_text())))


if __name__ == "__main__":
    main()
