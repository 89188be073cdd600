"""Exact perplexity and activation statistics: `python -m lm.evaluate RUN_DIR [--split valid test] [--adapt MODE]`.

The same command draws what the last layer does (`--activations`, see `lm.scoring.look`), tests grammatical knowledge
(`--pairs`, see `lm.scoring.pairs`) and exports a model (`--export`).
"""

from __future__ import annotations

if __name__ == "__main__":
    from lm.base.process import begin

    begin()

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lm.base.device import pick_device
from lm.base.errors import ConfigError, run_cli
from lm.base.process import show
from lm.base.rundir import RunDir
from lm.base.threads import choose_threads
from lm.config.bounds import choices
from lm.config.flags import Parser
from lm.config.schema import RunOptions, TrainConfig
from lm.scoring.adapt_flags import Adaptation, add_adaptation_flags, check_adaptation_flags, settings_text
from lm.scoring.evaluation import evaluate, protocol_columns, split_report
from lm.scoring.export import FORMATS, export_run
from lm.scoring.loading import load_run
from lm.scoring.trained import load
from lm.scoring.tune import setting_flag
from lm.text.batching import check_columns
from lm.text.english import CHOICES, tokenization_for
from lm.text.units import NAMES, units_text
from lm.training.divergence import check_loss

# Against too little memory.
SMALLER = "--columns, --cache-window or text"

# What --export, --activations and --pairs do instead of the table, and the flags that they read.
_INSTEAD = {
    "export": {"format", "bf16", "json"},
    "activations": {"beside", "words", "split", "columns", "data", "device", "json"},
    "pairs": {"beside", "plot", "sentences", "device", "json"},
}
# Flags that are for another one alone.
_FOR = {
    "activations PNG": {"words"},
    "pairs PATH": {"plot", "sentences"},
    "activations PNG or --pairs PATH": {"beside"},
    "export DIR": {"format", "bf16"},
}


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
            lines[-1] += "; ".join([f"  {settings_text(row)}", *row["notes"]])
        lines[-1] += units_text({name: row[name] for name in NAMES if name in row and name != "ppl"})
    return "\n".join(lines)


def evaluate_run(arguments: argparse.Namespace) -> None:
    """Print the figures of each split, in every mode of adaptation that was asked for."""
    model, config, corpus = load_run(arguments.run_dir, pick_device(arguments.device), arguments.data)
    splits = corpus.scored_splits(arguments.split)  # tuning takes hours: what is missing is said before
    adaptation = Adaptation(model, config, corpus, arguments)
    for split in {*splits, "valid"} if arguments.tune else splits:
        check_columns(len(corpus.splits[split]), adaptation.columns(split), f"{corpus.source}, {split}", "--columns")
    adaptation.prepare()
    reports = []
    for split in splits:
        if adaptation.plain:
            reports.append(split_report(model, corpus, split, adaptation.columns(split)))
        reports += adaptation.report(split)
    if arguments.json:
        show(json.dumps({"run": str(arguments.run_dir), "dataset": corpus.name, "splits": reports}) + "\n")
    else:
        show(table(reports) + "\n")


def _with_penalties(run_dir: RunDir, config: TrainConfig) -> str:
    """A run by its place and its penalties, where two are shown together."""
    return f"{run_dir}: AR {config.alpha:g}, TAR {config.beta:g}"


def look_inside(arguments: argparse.Namespace) -> None:
    """Draw what the last layers of one or two runs do on a split. Raises ConfigError if they read different texts."""
    from lm.scoring import look  # matplotlib takes half a second to import

    device = pick_device(arguments.device)
    start, count = arguments.words
    names = [name for name in (arguments.run_dir, arguments.beside) if name]
    runs = [load_run(name, device, arguments.data) for name in names]
    _, config, corpus = runs[0]
    split = corpus.scored_splits(arguments.split)[0]
    ids = corpus.splits[split]
    columns = arguments.columns or protocol_columns(config, split)
    if runs[-1][2].sha256 != corpus.sha256 or not np.array_equal(runs[-1][2].splits[split], ids):
        raise ConfigError(f"--beside: {names[1]} was trained on another text or vocabulary than {names[0]}")
    if 0 < (length := len(ids) // columns - 1) <= start:
        raise ConfigError(f"--words: START must be below {length}, the words of a column of {split}; got {start}")
    reports = []
    seen = {}
    for name, (model, trained, _) in zip(names, runs, strict=True):
        one = look.Activations(len(ids), start, count)
        result = evaluate(model, ids, columns, watch=one.add)
        check_loss(result.loss, f"{name}: {split}", "train again with a lower --lr", result.activation)
        label = f"{_with_penalties(name, trained)}; perplexity {result.perplexity:.2f}"
        seen[f"{label}, rms h {result.activation['rms']:.3f}, rms dh {result.activation['temporal_rms']:.3f}"] = one
        report = {"run": str(name), "loss": result.loss, "ppl": result.perplexity, "activation": result.activation}
        reports.append(report | one.as_json())
    words = corpus.tokenizer.decode(ids[start + 1 : start + 1 + len(one.nats)])
    look.draw(arguments.activations, f"{corpus.name} {split}", seen, words)
    if arguments.json:
        head = {"dataset": corpus.name, "split": split, "batch_size": columns, "words": words}
        show(json.dumps(head | {"runs": reports}) + "\n")
    else:
        show("\n".join(seen) + "\n")


def judge_pairs(arguments: argparse.Namespace) -> None:
    """Print how often a model, or each of two, finds the grammatical sentence of a pair likelier."""
    from lm.scoring import pairs  # scipy takes half a second to import

    sets = pairs.load_pairs(arguments.pairs)
    device = pick_device(arguments.device)
    names = []
    answers = []
    reports = []
    for run_dir in filter(None, (arguments.run_dir, arguments.beside)):
        trained = load(run_dir, device)
        tokenization, tokenize = tokenization_for(trained.config, arguments.sentences)
        answers.append(pairs.answer_pairs(trained.model, trained.tokenizer, sets, tokenize))
        reports.append({"run": str(run_dir), "sentences": tokenization} | pairs.report(sets, answers[-1]))
        names.append(_with_penalties(run_dir, trained.config))
    if arguments.plot:
        from lm.scoring.pairs_plot import draw

        draw(arguments.plot, arguments.pairs.resolve().name, reports, names)
    found: dict[str, Any] = {"pairs": str(arguments.pairs)} | reports[0]
    if arguments.beside:
        from lm.scoring import pairs_difference

        difference = pairs_difference.differences(sets, *answers)
        found |= {"beside": reports[1], "difference": difference}
        text = pairs_difference.table(names, reports, difference)
    else:
        text = pairs.table(reports[0])
    show((json.dumps(found) if arguments.json else text) + "\n")


def _parse() -> argparse.Namespace:
    """The command line. Raises ConfigError for a value or a combination that makes no sense."""
    parser = Parser("python -m lm.evaluate", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("run_dir", type=RunDir, metavar="RUN_DIR", help="run directory of lm.train, or an export")
    text = "splits to score (default: valid and, if there is one, test; with --activations: valid)"
    parser.add_argument("--split", nargs="+", action="extend", choices=["train", "valid", "test"], help=text)
    parser.add_argument(
        "--columns", type=int, metavar="N", help="cut splits into N columns (default: as in training; 1 with --adapt)"
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="DIR",
        help="folder of the corpus, if it has moved since training: its text decides",
    )
    parser.add_argument(
        "--device", choices=choices(RunOptions, "device"), default="auto", help="auto: CUDA if there is one"
    )
    add_adaptation_flags(parser, splits=True)
    inside = parser.add_argument_group("looking inside")
    inside.add_argument("--activations", type=Path, metavar="PNG", help="draw what the last layer does on a split")
    inside.add_argument("--beside", type=RunDir, metavar="RUN_DIR", help="another run, for --activations and --pairs")
    inside.add_argument(
        "--words",
        type=int,
        nargs=2,
        metavar=("START", "COUNT"),
        default=(0, 50),
        help="words of the split that are shown one by one (default: 0 50)",
    )
    grammar = parser.add_argument_group("minimal pairs")
    grammar.add_argument(
        "--pairs", type=Path, metavar="PATH", help="a .jsonl file of sentence pairs, or a folder of them"
    )
    grammar.add_argument("--plot", type=Path, metavar="PNG", help="draw the accuracies of --pairs")
    grammar.add_argument(
        "--sentences",
        choices=CHOICES,
        default="auto",
        help="tokenize the sentences as this corpus; plain: not at all; auto: as the run's, else plain (default)",
    )
    parser.add_argument("--export", type=RunDir, metavar="DIR", help="write the model for use without this program")
    text = "pytorch: safetensors for plain PyTorch and this program (default); transformers: for AutoModelForCausalLM"
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=f"{text}; onnx: a graph")
    parser.add_argument("--bf16", action="store_true", help="with --export: round the weights, for half the size")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
    instead = next((name for name in _INSTEAD if name in given), "")
    if instead and (unread := given - {"run_dir", instead} - _INSTEAD[instead]):
        raise ConfigError(f"{setting_flag(min(unread))}: leave it out with --{instead}")
    for owner, names in _FOR.items():
        if not instead and (unread := given & names):
            raise ConfigError(f"{setting_flag(min(unread))}: is for --{owner}")
    if arguments.bf16 and arguments.format != FORMATS[0]:
        raise ConfigError(f"--bf16: not with --format {arguments.format}, which is for fp32")
    check_adaptation_flags(given, arguments)
    if arguments.columns is not None and arguments.columns < 1:
        raise ConfigError(f"--columns: must be at least 1; got {arguments.columns}")
    for name in ("activations", "plot"):
        if (file := getattr(arguments, name)) and file.suffix != ".png":
            raise ConfigError(f"--{name}: the file's name must end in .png; got {file}")
    if arguments.activations:
        if len(arguments.split or ()) > 1:
            raise ConfigError("--split: give one with --activations")
        if not (arguments.words[0] >= 0 and 1 <= arguments.words[1] <= 500):
            raise ConfigError("--words: START must be at least 0, COUNT from 1 to 500")
    return arguments


def main() -> None:
    """Command line."""
    arguments = _parse()
    if arguments.export:
        export_run(arguments.run_dir, arguments.export, arguments.format, bf16=arguments.bf16)
        report = {"run": str(arguments.run_dir), "export": str(arguments.export)}
        show(json.dumps(report) + "\n" if arguments.json else f"{arguments.export}\n")
        return
    choose_threads()
    if arguments.activations:
        look_inside(arguments)
    elif arguments.pairs:
        judge_pairs(arguments)
    else:
        evaluate_run(arguments)


if __name__ == "__main__":
    run_cli(main, SMALLER)
