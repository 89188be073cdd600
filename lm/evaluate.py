"""Exact perplexity and activation statistics: `python -m lm.evaluate RUN_DIR [--split valid test] [--adapt MODE]`.

The same command draws what the last layer does (`--activations`, see `lm.look`) and exports a model (`--export`).
"""

from __future__ import annotations

import argparse
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
from lm.batching import BPTTWindows, batchify, check_columns, evaluation_rows
from lm.checkpoint import fitting
from lm.config import TrainConfig, config_from_dict
from lm.corpus import Corpus, configured_corpus
from lm.errors import CheckpointError, ConfigError, run_cli
from lm.export import export_run, load_trained
from lm.flags import Parser
from lm.metrics import perplexity
from lm.model import AWDLSTM
from lm.regularization import INACTIVE
from lm.runtime import pick_device
from lm.units import figures_text, split_figures


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
        small = (h_TBH.abs() < INACTIVE).sum(dtype=torch.float64)
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
    watch: Callable[[Tensor, Tensor], None] = lambda h_TBH, nats_TB: None,
) -> Evaluation:
    """Cross entropy of a text in fp32, hidden state carried from its start to its end.

    Args:
        model: evaluated in evaluation mode and left in the mode it was in.
        ids: word ids of the split.
        batch_size: columns the text is cut into; the remainder is dropped, a column's first token is no target.
        window: rows a forward pass, which does not change the result; None: as many as run fast.
        between_windows: called before each window; may raise to stop.
        watch: shown each window's raw output of the last layer and the nats of its targets.

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
            for tokens_TB, targets_TB, _, _ in windows:
                between_windows()
                output = model(tokens_TB, state)
                state = output.state
                nats_TB = model.token_loss(output, targets_TB)
                nats += nats_TB.sum(dtype=torch.float64)
                targets += targets_TB.numel()
                sums.add(output.raw[-1])
                watch(output.raw[-1], nats_TB)
    finally:
        model.train(was_training)
    return Evaluation(nats.item(), targets, sums.means(), output.raw[-1].float())


def load_model(directory: Path, device: torch.device) -> tuple[AWDLSTM, TrainConfig, dict[str, Any]]:
    """Model of a run (its best checkpoint) or of an export, in evaluation mode, its configuration, and what else
    `load_trained` knows of it.

    Raises:
        CheckpointError: no usable weights.
    """
    trained = load_trained(directory)
    config, weights = config_from_dict(trained["config"]), trained.pop("model")
    with fitting(directory), device:  # whatever kernel the run took, this machine takes its own
        model = AWDLSTM(len(weights["decoder.bias"]), dataclasses.replace(config, kernel="auto"))
        model.load_state_dict(weights)
    return model.eval(), config, trained


def load_run(directory: Path, device: torch.device) -> tuple[AWDLSTM, TrainConfig, Corpus]:
    """The same with the corpus.

    Raises:
        CheckpointError: no usable weights, or the corpus found is not the one that they were trained on.
    """
    model, config, trained = load_model(directory, device)
    corpus = configured_corpus(config)
    if corpus.sha256 != trained["corpus_sha256"]:
        raise CheckpointError(f"{directory}: was trained on another text than that in {corpus.source}")
    corpus.check_vocabulary(trained)
    return model, config, corpus


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


def evaluate_run(arguments: argparse.Namespace) -> None:
    """Print the figures of each split, in every mode of adaptation that was asked for."""
    model, config, corpus = load_run(arguments.run_dir, pick_device(arguments.device))
    adaptation = tune.Adaptation(model, config, corpus, arguments)
    reports = []
    for split in arguments.split or ["valid", "test"]:
        columns = arguments.columns or protocol_columns(config, split)
        check_columns(len(corpus.splits[split]), columns, f"{corpus.source}, {split}", "--columns")
        if adaptation.plain:
            reports.append(split_report(model, corpus, split, columns))
        reports += adaptation.report(split, columns)
    if arguments.json:
        sys.stdout.write(json.dumps({"run": str(arguments.run_dir), "dataset": corpus.name, "splits": reports}) + "\n")
    else:
        sys.stdout.write(table(reports) + "\n")


def look_inside(arguments: argparse.Namespace) -> None:
    """Draw what the last layers of one or two runs do on a split. Raises ConfigError if they read different texts."""
    from lm import look  # matplotlib takes half a second to import

    device, (start, count), split = pick_device(arguments.device), arguments.words, (arguments.split or ["valid"])[0]
    names = [name for name in (arguments.run_dir, arguments.beside) if name]
    runs = [load_run(name, device) for name in names]
    _, config, corpus = runs[0]
    ids, columns = corpus.splits[split], arguments.columns or protocol_columns(config, split)
    if runs[-1][2].sha256 != corpus.sha256 or not np.array_equal(runs[-1][2].splits[split], ids):
        raise ConfigError(f"--beside: {names[1]} was trained on another text or vocabulary than {names[0]}")
    if 0 < (length := len(ids) // columns - 1) <= start:
        raise ConfigError(f"--words: START must be below {length}, the words of a column of {split}; got {start}")
    reports, seen = [], {}
    for name, (model, config, _) in zip(names, runs, strict=True):
        one = look.Activations(len(ids), start, count)
        result = evaluate(model, ids, columns, watch=one.add)
        label = f"{name}: AR {config.alpha:g}, TAR {config.beta:g}; perplexity {result.perplexity:.2f}"
        seen[f"{label}, rms h {result.activation['rms']:.3f}, rms dh {result.activation['temporal_rms']:.3f}"] = one
        report = {"run": str(name), "loss": result.loss, "ppl": result.perplexity, "activation": result.activation}
        reports.append(report | one.as_json())
    words = corpus.tokenizer.decode(ids[start + 1 : start + 1 + len(one.nats)])
    look.draw(arguments.activations, f"{corpus.name} {split}", seen, words)
    if arguments.json:
        head = {"dataset": corpus.name, "split": split, "batch_size": columns, "words": words}
        sys.stdout.write(json.dumps(head | {"runs": reports}) + "\n")
    else:
        sys.stdout.write("\n".join(seen) + "\n")


# What --export and --activations do instead of the table, and the flags that they read.
_INSTEAD = {"export": {"json"}, "activations": {"beside", "words", "split", "columns", "device", "json"}}


def _parse() -> argparse.Namespace:
    """The command line. Raises ConfigError for a value or a combination that makes no sense."""
    parser = Parser("python -m lm.evaluate", description=__doc__.split(":")[0])
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory of lm.train, or an export")
    text = "default: valid and test; with --activations: valid"
    parser.add_argument("--split", nargs="+", choices=["train", "valid", "test"], help=text)
    parser.add_argument("--columns", type=int, metavar="N", help="cut splits into N columns (default: as in training)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    tune.add_flags(parser)
    inside = parser.add_argument_group("looking inside")
    inside.add_argument("--activations", type=Path, metavar="PNG", help="draw what the last layer does on a split")
    inside.add_argument("--beside", type=Path, metavar="RUN_DIR", help="another run, drawn in the same axes")
    inside.add_argument(
        "--words", type=int, nargs=2, metavar=("START", "COUNT"), default=(0, 50),
        help="words of the split that are shown one by one (default: 0 50)",
    )  # fmt: skip
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the model for use without this program")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
    instead = next((name for name in _INSTEAD if name in given), "")
    unread = given - {"run_dir", instead} - _INSTEAD[instead] if instead else given & {"beside", "words"}
    if unread:
        flag = f"--{min(unread).replace('_', '-')}"
        raise ConfigError(f"{flag}: leave it out with --{instead}" if instead else f"{flag}: is for --activations PNG")
    tune.check_flags(given, arguments)
    if arguments.columns is not None and arguments.columns < 1:
        raise ConfigError(f"--columns: must be at least 1; got {arguments.columns}")
    if arguments.activations:
        if len(arguments.split or ()) > 1:
            raise ConfigError("--split: give one with --activations")
        if arguments.activations.suffix != ".png":
            raise ConfigError(f"--activations: the file's name must end in .png; got {arguments.activations}")
        if not (arguments.words[0] >= 0 and 1 <= arguments.words[1] <= 500):
            raise ConfigError("--words: START must be at least 0, COUNT from 1 to 500")
    return arguments


def main() -> None:
    """Command line."""
    arguments = _parse()
    if arguments.export:
        export_run(arguments.run_dir, arguments.export)
        report = {"run": str(arguments.run_dir), "export": str(arguments.export)}
        sys.stdout.write(json.dumps(report) + "\n" if arguments.json else f"{arguments.export}\n")
    elif arguments.activations:
        look_inside(arguments)
    else:
        evaluate_run(arguments)


if __name__ == "__main__":
    run_cli(main)
