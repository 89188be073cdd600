"""Ranges of the configuration's numbers, as annotations of its fields, and the check of a field's type and range."""

from __future__ import annotations

import functools
import math
import sys
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lm.base.errors import ConfigError
from lm.base.names import flag


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


@functools.cache
def field_types(owner: Any) -> dict[str, tuple[Any, Bounds | None]]:
    """Field name -> its type and, if it has one, its range."""
    found: dict[str, tuple[Any, Bounds | None]] = {}
    for name, hint in typing.get_type_hints(owner, include_extras=True).items():
        bounds = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Bounds)), None)
        found[name] = typing.get_args(hint)[0] if bounds else hint, bounds
    return found


def choices(owner: Any, name: str) -> tuple[str, ...]:
    """The values that the field `name` of the configuration class `owner` can have, in the order of its declaration."""
    return typing.get_args(field_types(owner)[name][0])


def check_fields(config: Any) -> None:
    """Raise ConfigError, naming the flag, unless every field has its declared type and range."""
    owner: Any = type(config)
    for name, declared in field_types(owner).items():
        value = getattr(config, name)
        if (checked := checked_value(name, value, declared)) is not value:
            object.__setattr__(config, name, checked)


def checked_value(name: str, value: Any, declared: tuple[Any, Bounds | None]) -> Any:
    """The value of a field: as it is, but an integer for a float becomes one, so that 1 and 1.0 have one identity.

    Raises ConfigError, naming the flag, unless it has the declared type and range.
    """
    base, bounds = declared
    if base is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if isinstance(base, type):
        if type(value) is not base:
            raise ConfigError(f"{flag(name)}: must be {base.__name__}; got {value!r}")
    elif typing.get_origin(base) is Literal:
        if value not in typing.get_args(base):
            raise ConfigError(f"{flag(name)}: {value!r} is not one of {', '.join(typing.get_args(base))}")
    elif not isinstance(value, tuple) or not all(type(item) is int and item > 0 for item in value):
        raise ConfigError(f"{flag(name)}: must be integers, each at least 1; got {value!r}")
    if bounds and value not in bounds:
        raise ConfigError(f"{flag(name)}: must be {bounds}; got {value}")
    return value
