"""Names of configuration fields as flags of the command line, and back: the one place where `_` meets `-`."""

from __future__ import annotations


def flag(field: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return f"--{field.replace('_', '-')}"


def field(name: str) -> str:
    """`batch-size` -> `batch_size`, for names that a user wrote."""
    return name.replace("-", "_")
