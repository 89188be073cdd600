"""Published figures, from `published.toml` beside this module: what `--compare ... published` holds a study against."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

PUBLISHED = "published"
PUBLISHED_FILE = Path(__file__).with_name("published.toml")
# What a published figure is held against whatever its value: it decides roundings, the seed, or when a run ends.
NO_PROTOCOL = {"seed", "data", "precision", "kernel", "deterministic", "min_lr", "eval_train_tokens", "bpe_vocab_size"}
MARKS = {"V": "read in the primary source", "X": "transcribed from it by a third party"}


def load_published() -> list[dict[str, Any]]:
    """The published figures, each with label, source, mark, dataset, preset, config and valid_ppl and/or test_ppl."""
    return tomllib.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))["figure"]
