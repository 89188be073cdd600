"""Presets: named starting values, each with where it was published.

A preset is plain data: values of `TrainConfig` fields, and for some corpora further values.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any

from lm.base.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """Values of configuration fields; `corpus` holds what differs by corpus, `source` where they come from."""

    source: str
    values: dict[str, Any]
    corpus: dict[str, dict[str, Any]] = field(default_factory=dict)


def _examples(units: int, dropout: float) -> Preset:
    """Two tied layers as in pytorch/examples: before AWD-LSTM, so no locked, embedding or weight dropout."""
    values = {
        "emsize": units, "nhid": units, "nlayers": 2, "batch_size": 20, "bptt": 35, "variable_bptt": False,
        "dropout": dropout, "dropouth": dropout, "dropouti": dropout, "dropoute": 0.0, "wdrop": 0.0,
        "dropout_kind": "standard", "alpha": 0.0, "beta": 0.0,
        "lr": 20.0, "schedule": "plateau", "nonmono": 0, "wdecay": 0.0, "epochs": 40, "test_batch_size": 10,
    }  # fmt: skip
    return Preset(f"pytorch/examples word_language_model, 2x{units} tied, 40 epochs; AR and TAR off", values)


# AWD-LSTM's published dropouts for PTB: input, between layers, output, words (README of awd-lstm-lm).
_AWD_PTB = {"dropouti": 0.4, "dropouth": 0.25, "dropout": 0.4, "dropoute": 0.1}
# Small models need less of them; 0.6 is this project's own choice.
_AWD_PTB_MILD = {name: round(0.6 * p, 3) for name, p in _AWD_PTB.items()}
# Adam over a trapezoid of the learning rate, for AWD-LSTM in 90 epochs (README and train_rnn.py of
# sgugger/Adam-experiments): L2 in the gradient, stronger penalties than the published 2 and 1, a tighter clip. The mean
# of the last weights is this project's own: on PTB valid prefers it (results/ptb-fast).
_TRAPEZOID = {
    "optimizer": "adam", "schedule": "trapezoid", "adam_beta1": 0.8, "adam_beta2": 0.99,
    "wdecay": 1.2e-6, "clip": 0.12, "alpha": 3.0, "beta": 1.5, "average_last": 0.15,
}  # fmt: skip

PRESETS: dict[str, Preset] = {
    "examples-200": _examples(200, 0.2),
    "examples-650": _examples(650, 0.5),
    "examples-1500": _examples(1500, 0.65),
    "awd-lstm": Preset(
        "Merity et al. 2018 (arXiv 1708.02182), README of awd-lstm-lm; PTB's values where the corpus is not wikitext-2",
        {**_AWD_PTB, "batch_size": 20, "epochs": 500, "seed": 141},
        {
            "wikitext-2": {
                "batch_size": 80, "epochs": 750, "seed": 1882,
                "dropouti": 0.65, "dropouth": 0.2, "dropout": 0.4, "dropoute": 0.1,
            }
        },
    ),
    "awd-qrnn": Preset(
        "AWD-LSTM with QRNN layers, README of awd-lstm-lm; PTB's values where the corpus is not wikitext-2",
        {
            "model": "QRNN", "nhid": 1550, "nlayers": 4, "emsize": 400, "batch_size": 20, "epochs": 550, "seed": 9001,
            "clip": 0.2, "wdrop": 0.1, "dropouth": 0.3, "dropouti": 0.4,
        },
        {"wikitext-2": {"batch_size": 40, "epochs": 500, "seed": 4002, "clip": 0.25, "dropouth": 0.2}},
    ),
    "awd-lstm-fast": Preset(
        "AWD-LSTM at its full size in about 100 epochs: WikiText-2 as sgugger/Adam-experiments (README, train_rnn.py), "
        "but for the averaging; for other corpora the same with PTB's dropouts, this project's own",
        {**_AWD_PTB, **_TRAPEZOID, "batch_size": 40, "epochs": 100, "lr": 4e-3, "seed": 141},
        {
            "wikitext-2": {
                "batch_size": 100, "epochs": 90, "lr": 5e-3, "seed": 1882,
                "dropouti": 0.6, "dropouth": 0.2, "dropout": 0.4, "dropoute": 0.1,
            }
        },
    ),
    "awd-lstm-small": Preset(
        "AWD-LSTM at a size for CPUs: 2 layers, 200/500 units, 0.6 of its dropouts; this project's own",
        {**_AWD_PTB_MILD, "emsize": 200, "nhid": 500, "nlayers": 2, "batch_size": 20, "epochs": 40, "wdrop": 0.3},
    ),
    "awd-lstm-onecycle": Preset(
        "AdamW with one cycle on a 2-layer AWD-LSTM, 400/650 units, 0.6 of its dropouts; this project's own",
        {
            **_AWD_PTB_MILD, "emsize": 400, "nhid": 650, "nlayers": 2, "batch_size": 20, "epochs": 15,
            "optimizer": "adamw", "schedule": "onecycle", "lr": 3e-3, "adam_beta1": 0.8, "adam_beta2": 0.99,
            "wdecay": 0.01, "clip": 1.0,
        },
    ),
}  # fmt: skip
# Window, lambda and theta of the neural cache on the AWD-LSTM or QRNN of each corpus (README of awd-lstm-lm).
CACHE_POINTER = {"ptb": (500, 0.1, 1.0), "wikitext-2": (3785, 0.1279, 0.662)}


def preset_values(name: str, dataset: str) -> dict[str, Any]:
    """Values of preset `name` for corpus `dataset`; no name: none. Raises ConfigError for an unknown name."""
    if not name:
        return {}
    if name not in PRESETS:
        raise ConfigError(f"--preset: {name!r} is not one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return preset.values | preset.corpus.get(dataset, {})


def presets_help() -> str:
    """The presets and their sources, for `--help`."""
    rows = [
        textwrap.fill(preset.source, 100, initial_indent=f"  {name:19}", subsequent_indent=" " * 21)
        for name, preset in PRESETS.items()
    ]
    return "\n".join(["presets:", *rows])
