"""Perplexity, capped so that it stays a finite number, and what counts as a number in a record."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeGuard

# The largest loss, in nats, whose perplexity and its square, in a variance, are floats still. A loss above it is
# divergence (`lm.training.divergence`), so a capped perplexity is never a result.
LARGEST_LOSS = 354.0


def perplexity(loss: float) -> float:
    """exp(nats per target), capped at `LARGEST_LOSS` so that every record is valid JSON."""
    return math.exp(min(loss, LARGEST_LOSS))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number (true and false are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
