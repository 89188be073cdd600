"""Published figures, from `published.toml` beside this module, corrected where a loss was divided by tokens.

`lm.report --compare STUDY published` holds a study against them.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from lm.text.cards import known_corpora

PUBLISHED = "published"
PUBLISHED_FILE = Path(__file__).with_name("published.toml")
# What a published figure is held against whatever its value: it decides roundings, the seed, or when a run ends.
NO_PROTOCOL = {"seed", "data", "precision", "kernel", "deterministic", "min_lr", "eval_train_tokens", "bpe_vocab_size"}
MARKS = {"V": "read in the primary source", "X": "transcribed from it by a third party"}


def load_published() -> list[dict[str, Any]]:
    """The published figures, each with label, source, mark, dataset, preset, config and valid_ppl and/or test_ppl."""
    return tomllib.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))["figure"]


def per_target(perplexity: float, tokens: int, columns: int) -> float:
    """The perplexity per target of a figure whose loss was divided by tokens.

    A split of `tokens` tokens, cut into `columns`, has L = tokens // columns rows and L - 1 rows of targets. The same
    sum S over rows of targets gave ln(published) = S / L where ln(perplexity) is S / (L - 1), so the figure is raised
    to the power L / (L - 1).
    """
    rows = tokens // columns
    return perplexity ** (rows / (rows - 1))


def comparable_ppl(figure: dict[str, Any], columns: dict[str, int]) -> dict[str, float]:
    """`valid_ppl` and `test_ppl` of a figure, per target; `columns` has the number of columns of each split."""
    found = {split: figure[f"{split}_ppl"] for split in ("valid", "test") if f"{split}_ppl" in figure}
    if figure.get("divisor") == "tokens":
        tokens = known_corpora()[figure["dataset"]].tokens
        found = {split: per_target(ppl, tokens[split], columns[split]) for split, ppl in found.items()}
    return {f"{split}_ppl": ppl for split, ppl in found.items()}
