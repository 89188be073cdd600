"""What the lines of a ledger say: metrics, configurations, and how a configuration is named.

For runs on characters, bytes or BPE, perplexity and nats are per word (`lm.text.units`), so that they stand beside
those of words, where a token is a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lm.base.numbers import is_number, perplexity
from lm.config.values import with_defaults
from lm.study.specification import identity


def _positive_log(value: Any) -> float:
    return math.log(value) if is_number(value) and value > 0 else math.nan


def loss_of(record: Mapping[str, Any], split: str) -> float:
    """Nats per word of a split, NaN where there are none."""
    loss = None if f"{split}_word_ppl" in record else record.get(f"{split}_loss")
    return float(loss) if is_number(loss) else _positive_log(word_ppl(record, split))


def word_ppl(record: Mapping[str, Any], split: str) -> Any:
    """Perplexity per word of a split as a record has it: what a run on words has as `ppl`."""
    return record.get(f"{split}_word_ppl", record.get(f"{split}_ppl"))


def _bits(record: Mapping[str, Any], split: str) -> Any:
    """Bits per character, or per byte in runs on bytes: what is published for enwik8 under the same name."""
    return record.get(f"{split}_bits_per_char", record.get(f"{split}_bits_per_byte"))


def _activation(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: (record.get("activation") or {}).get(name)


# Value in a ledger record; losses and the gap in nats per word, time in seconds.
METRICS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "valid_loss": lambda record: loss_of(record, "valid"),
    "test_loss": lambda record: loss_of(record, "test"),
    "valid_ppl": lambda record: perplexity(loss_of(record, "valid")),
    "test_ppl": lambda record: perplexity(loss_of(record, "test")),
    "train_ppl": lambda record: word_ppl(record, "train"),
    "gap": lambda record: loss_of(record, "valid") - _positive_log(METRICS["train_ppl"](record)),
    "valid_bits_per_char": lambda record: _bits(record, "valid"),
    "test_bits_per_char": lambda record: _bits(record, "test"),
    "rms": _activation("rms"),
    "mean_abs": _activation("mean_abs"),
    "frac_small": _activation("frac_small"),
    "frac_zero": _activation("frac_zero"),
    "temporal_rms": _activation("temporal_rms"),
    "best_epoch": lambda record: record.get("best_epoch"),
    "seconds": lambda record: record.get("seconds"),
}


def curve_of(record: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Epochs and perplexities of a record's curve, as far as they are numbers."""
    rows = record.get("curve")
    pairs = [row for row in rows if isinstance(row, list) and len(row) == 2] if isinstance(rows, list) else []
    return [(epoch, ppl) for epoch, ppl in pairs if is_number(epoch) and is_number(ppl)]


def histogram_of(record: Mapping[str, Any]) -> list[float] | None:
    """Shares of a record's histogram of activations; None where it has none that could be drawn."""
    shares = _activation("histogram")(record)
    return shares if isinstance(shares, list) and shares and all(map(is_number, shares)) else None


def label(values: Mapping[str, Any]) -> str:
    """A configuration in words, as `alpha 2, beta 1`."""
    return ", ".join(f"{name} {show(value)}" for name, value in values.items()) or "all runs"


def configuration_name(values: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """A configuration by its values that the baseline `base` lacks or has otherwise; the baseline by all it has."""
    other = {name: v for name, v in values.items() if name not in base or identity(v) != identity(base[name])}
    return label(other or values)


def show(value: Any) -> str:
    """A configuration value as a user writes it: 1.0 as 1, true, 10,20; none where it is empty."""
    if isinstance(value, (list, tuple)):
        return ",".join(show(item) for item in value) or "none"
    if not is_number(value):
        return str(value).lower() if isinstance(value, bool) or value is None else str(value) or "none"
    return f"{value:.6g}"


def config_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of a run; younger fields, which an older line lacks, at their defaults."""
    return with_defaults(record.get("config") or {})
