"""Exact perplexity and activation statistics: `python -m lm.evaluate RUN_DIR [--split valid test] [--adapt MODE]`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm import tune
from lm.batching import BPTTWindows, batchify, evaluation_rows
from lm.checkpoint import load_checkpoint
from lm.config import TrainConfig, config_from_dict
from lm.corpus import Corpus, configured_corpus
from lm.errors import CheckpointError, ConfigError, run_cli
from lm.flags import Parser
from lm.metrics import log_to_stderr, perplexity
from lm.model import AWDLSTM
from lm.runtime import pick_device
from lm.units import figures_text, split_figures

# |h| below this counts as inactive (a unit's output lies in -1..1).
_SMALL = 0.01


@dataclass(frozen=True)
class Evaluation:
    """Sum of nats and number of targets apart, divided once; `activation` describes the last layer's raw output."""

    nats: float
    targets: int
    activation: dict[str, float]
    sample_TBH: Tensor
    """raw outputs of the last window, for a histogram"""

    @property
    def loss(self) -> float:
        """Cross entropy in nats per target."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


class _ActivationSums:
    """Running sums over raw outputs h_TBH, in float64, across windows."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._values = self._steps = 0
        self._last_BH: Tensor | None = None

    def add(self, h_TBH: Tensor) -> None:
        h_TBH = h_TBH.float()
        joined = h_TBH if self._last_BH is None else torch.cat([self._last_BH.unsqueeze(0), h_TBH])
        change = (joined[1:] - joined[:-1]).square().sum(dtype=torch.float64)
        square, magnitude = h_TBH.square().sum(dtype=torch.float64), h_TBH.abs().sum(dtype=torch.float64)
        small = (h_TBH.abs() < _SMALL).sum(dtype=torch.float64)
        self._sums += torch.stack([square, magnitude, small, change])
        self._values += h_TBH.numel()
        self._steps += (len(joined) - 1) * h_TBH[0].numel()
        self._last_BH = h_TBH[-1]

    def means(self) -> dict[str, float]:
        square, magnitude, small, change = self._sums.tolist()
        return {
            "rms": math.sqrt(square / self._values),
            "mean_abs": magnitude / self._values,
            "frac_small": small / self._values,
            "temporal_rms": math.sqrt(change / max(self._steps, 1)),
        }


@torch.no_grad()
def evaluate(
    model: AWDLSTM,
    ids: np.ndarray,
    batch_size: int,
    *,
    window: int | None = None,
    between_windows: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Cross entropy of a text in fp32, hidden state carried from its start to its end.

    Args:
        model: evaluated in evaluation mode and left in the mode it was in.
        ids: word ids of the split.
        batch_size: columns the text is cut into; the remainder is dropped, a column's first token is no target.
        window: rows a forward pass, which does not change the result; None: as many as run fast.
        between_windows: called before each window; may raise to stop.

    Raises:
        CorpusError: the text is too short for `batch_size`.
    """
    device = model.decoder.bias.device
    windows = BPTTWindows(batchify(ids, batch_size, device), window or evaluation_rows(batch_size))
    nats, targets = torch.zeros((), dtype=torch.float64, device=device), 0
    sums, state = _ActivationSums(device), model.initial_state(batch_size)
    was_training = model.training
    model.eval()
    try:
        with model.exact():
            for window in windows:
                between_windows()
                output = model(window.tokens_TB, state)
                state = output.state
                nats += model.token_loss(output, window.targets_TB).sum(dtype=torch.float64)
                targets += window.targets_TB.numel()
                sums.add(output.raw[-1])
    finally:
        model.train(was_training)
    return Evaluation(nats.item(), targets, sums.means(), output.raw[-1].float())


def load_run(run_dir: Path, device: torch.device) -> tuple[AWDLSTM, TrainConfig, Corpus]:
    """Model with the weights of a run's best checkpoint, in evaluation mode, with its configuration and corpus.

    Raises:
        CheckpointError: no usable checkpoint, or the corpus found is not the one that the run was trained on.
    """
    checkpoint = load_checkpoint(run_dir / "ckpt" / "best.pt", device)
    config = config_from_dict(checkpoint["config"])
    corpus = configured_corpus(config)
    if corpus.sha256 != checkpoint["corpus_sha256"]:
        raise CheckpointError(f"{run_dir}: was trained on another text than that in {corpus.source}")
    corpus.check_vocabulary(checkpoint)
    with device:  # whatever kernel the run took, this machine takes its own
        model = AWDLSTM(corpus.vocab_size, dataclasses.replace(config, kernel="auto"))
    model.load_state_dict(checkpoint["model"])
    return model.eval(), config, corpus


def protocol_columns(config: TrainConfig, split: str) -> int:
    """Columns that the run's protocol cuts a split into."""
    return config.test_batch_size if split == "test" else config.eval_batch_size


def split_report(model: AWDLSTM, corpus: Corpus, split: str, columns: int) -> dict[str, Any]:
    """Loss, perplexity and activations of one split."""
    started = time.perf_counter()
    result = evaluate(model, corpus.splits[split], columns)
    return {
        "split": split, "adapt": "none", "loss": result.loss, "ppl": result.perplexity, "targets": result.targets,
        "batch_size": columns, "seconds": round(time.perf_counter() - started, 2), "activation": result.activation,
    } | split_figures(corpus, split, result.loss)  # fmt: skip


def table(reports: list[dict[str, Any]]) -> str:
    """The reports for a human reader."""
    lines = [f"{'split':6} {'adapt':14} {'perplexity':>10} {'nats':>8} {'targets':>9} {'columns':>7} {'s':>7}"]
    for row in reports:
        lines.append(
            f"{row['split']:6} {row['adapt']:14} {row['ppl']:10.2f} {row['loss']:8.4f} {row['targets']:9,} "
            f"{row['batch_size']:7} {row['seconds']:7.1f}"
        )
        if "activation" in row:
            lines[-1] += f"  rms h {row['activation']['rms']:.4f}, rms dh {row['activation']['temporal_rms']:.4f}"
        else:
            settings = [f"{k} {v}" for part in (row["cache"], row["dynamic"]) if part for k, v in part.items()]
            lines[-1] += "  " + ", ".join(settings)
        lines[-1] += figures_text({name: row[name] for name in ("bits_per_char", "word_ppl") if name in row})
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = Parser("python -m lm.evaluate", description=__doc__.split(":")[0])
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory of lm.train")
    parser.add_argument("--split", nargs="+", choices=["train", "valid", "test"], default=["valid", "test"])
    parser.add_argument("--columns", type=int, metavar="N", help="cut splits into N columns (default: as in training)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    tune.add_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    if arguments.columns is not None and arguments.columns < 1:
        raise ConfigError(f"--columns: must be at least 1; got {arguments.columns}")
    log_to_stderr()
    model, config, corpus = load_run(arguments.run_dir, pick_device(arguments.device))
    adaptation = tune.Adaptation(model, config, corpus, arguments)
    reports = []
    for split in arguments.split:
        columns = arguments.columns or protocol_columns(config, split)
        if adaptation.plain:
            reports.append(split_report(model, corpus, split, columns))
        reports += adaptation.report(split, columns)
    if arguments.json:
        sys.stdout.write(json.dumps({"run": str(arguments.run_dir), "dataset": corpus.name, "splits": reports}) + "\n")
    else:
        sys.stdout.write(table(reports) + "\n")


if __name__ == "__main__":
    run_cli(main)
