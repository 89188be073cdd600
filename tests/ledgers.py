"""Studies, ledgers and their analysis, made up for tests."""

import json
import math

from lm.config.values import as_plain, make_config
from lm.study.ledger import append_ledger
from lm.study.specification import load_study
from lm.tables.analysis import analyse

GRID = "[[grid]]\nalpha = [0, 1, 2]\nbeta = [0, 1]\n"
# Test losses that are easy to check by hand: configurations by (alpha, beta), one value a seed.
LOSSES = {(0, 0): (4.50, 4.52, 4.51), (1, 0): (4.47, 4.48, 4.49), (2, 0): (4.44, 4.47, 4.46)}


def record(seed, valid_loss, *, test=None, status="completed", config=None, **more):
    """A ledger line with the given losses, in nats; `more` replaces or adds keys."""
    config = as_plain(make_config("examples-200", "ptb")) | (config or {})
    config["seed"] = seed
    done = status == "completed" and valid_loss is not None
    line = {
        "id": json.dumps(config, sort_keys=True), "status": status, "config": config, "seed": seed, "dataset": "ptb",
        "best_epoch": 3, "valid_loss": valid_loss, "valid_ppl": math.exp(valid_loss) if done else None,
        "test_loss": test, "test_ppl": math.exp(test) if test else None, "train_ppl": 60.0 if done else None,
        "activation": {"rms": 0.3, "mean_abs": 0.2, "frac_small": 0.1, "temporal_rms": 0.25} if done else {},
        "seconds": 90.0, "versions": {"torch": "2.13.0", "cpu": "A CPU", "gpu": None, "threads": 1},
        "git": {"commit": "0123456789abcdef", "dirty": False}, "corpus_sha256": {"train": "00"},
    }  # fmt: skip
    return line | more


def write_study(folder, records, *, seeds=(1, 2, 3), body=GRID):
    folder.mkdir(parents=True, exist_ok=True)
    head = 'title = "T"\nquestion = "Q?"\ndataset = "ptb"\npreset = "examples-200"\n'
    (folder / "study.toml").write_text(f"{head}seeds = {list(seeds)}\n{body}")
    for line in records:
        append_ledger(folder / "runs.jsonl", line)
    return folder


def records_of(losses, *, offset=0.04):
    """Valid losses from a table; test losses lie `offset` below, plus a little by seed and configuration."""
    return [
        record(
            seed,
            loss,
            test=loss - offset + 0.001 * math.sin(7 * a + 3 * b + seed),
            config={"alpha": float(a), "beta": b},
        )
        for (a, b), values in losses.items()
        for seed, loss in enumerate(values, start=1)
    ]


def analysis_of(folder, records, **study):
    study = load_study(write_study(folder, records, **study))
    return analyse(study, records)


def configuration_of(analysis, **values):
    return next(
        configuration
        for configuration in analysis.configurations
        if all(configuration.values[name] == value for name, value in values.items())
    )


def write_run(folder, line):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({key: value for key, value in line.items() if key != "id"}))
    return str(folder)


def row_of(rows, source, **values):
    return next(r for r in rows if r.source == source and all(r.values[k] == v for k, v in values.items()))
