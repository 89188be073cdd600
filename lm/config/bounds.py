"""Ranges of the configuration's numbers, as annotations of its fields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bounds:
    """Numeric range of a field; `open_low` excludes `low` itself."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high and value < math.inf

    def __str__(self) -> str:
        low = f"{'greater than' if self.open_low else 'at least'} {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:.10g}"


# The largest integer that every consumer (torch sizes, seeds, TensorBoard steps) takes without overflow.
_MAX_INT = 2**31 - 1
# Masks have 16 random bits an entry, so a probability nearer to 1 could keep nothing.
Probability = Annotated[float, Bounds(0, 0.9999)]
NonNegative = Annotated[float, Bounds(0)]
Positive = Annotated[float, Bounds(0, open_low=True)]
Count = Annotated[int, Bounds(0, _MAX_INT)]
Size = Annotated[int, Bounds(1, _MAX_INT)]
# Width of a layer: at the limit one matrix would fill 4 TB.
Width = Annotated[int, Bounds(1, 2**20)]
Depth = Annotated[int, Bounds(1, 1000)]
Threads = Annotated[int, Bounds(0, 1024)]
# Byte-level BPE starts from `<eos>` and the 256 bytes; its trainer takes memory for all the types asked for at once.
VocabSize = Annotated[int, Bounds(257, 1_000_000)]
