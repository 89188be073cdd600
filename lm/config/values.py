"""Configurations as values: made from presets and overrides, read back, identified, compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.base.errors import ConfigError
from lm.base.files import file_sha256, same_place
from lm.base.names import flag
from lm.config.presets import preset_values
from lm.config.schema import TrainConfig

# Values that label a run without changing what it computes; of word vectors the checksum decides.
_LABELS = ("preset", "init_vectors")


def make_config(preset: str = "", dataset: str = "", **overrides: Any) -> TrainConfig:
    """Defaults, then the preset's values for the corpus, then `overrides`.

    Raises ConfigError for an unknown preset or field, or a value out of its range.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown := sorted(overrides.keys() - known):
        raise ConfigError(f"unknown configuration field {unknown[0]!r}; the fields are {', '.join(sorted(known))}")
    values = preset_values(preset, dataset) | overrides | {"preset": preset, "dataset": dataset}
    return TrainConfig(**_with_tuples(values))


def with_vectors_digest(config: TrainConfig) -> TrainConfig:
    """`config` with the checksum of the word vectors that it names, if any, where it has none.

    Raises ConfigError if their file cannot be read.
    """
    if not config.init_vectors or config.init_vectors_sha256:
        return config
    return dataclasses.replace(config, init_vectors_sha256=vectors_digest(config.init_vectors))


def vectors_digest(path: str) -> str:
    """Checksum of the file that `--init-vectors` names. Raises ConfigError if it cannot be read."""
    try:
        stat = Path(path).stat()
        return _digest(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise ConfigError(f"--init-vectors: {path}: cannot be read: {error.strerror}") from None


@functools.cache  # a study makes the configuration of every run
def _digest(path: str, _modified: int, _size: int) -> str:
    return file_sha256(Path(path))


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Read back what `config.json` or a checkpoint holds; fields younger than it take their defaults.

    Raises ConfigError for an unknown field or a value that makes no sense.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"no configuration: {str(values)[:60]!r}")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"configuration of another version: unknown fields {', '.join(unknown)}")
    return TrainConfig(**_with_tuples(values))


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, which JSON and TOML have, as the tuples that a configuration has."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def config_id(config: TrainConfig) -> str:
    """12 hex digits that identify what a run computes: equal for equal values, whatever flags produced them.

    Values at their defaults are left out, so that a field added later changes no identity.
    """
    values = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in _LABELS and value != getattr(TrainConfig, name)
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def is_open_ended(config: TrainConfig) -> bool:
    """Whether a run computes the same however many epochs it is to have, so that it can be made longer.

    After a --max-steps that ended it within an epoch it goes on with the next, which result.json tells.
    """
    fixed = config.average_last or config.validate_epochs > 1  # the last epoch has a validation of its own
    return config.schedule in ("constant", "plateau") and not fixed


def resume_conflicts(now: TrainConfig, before: Mapping[str, Any]) -> list[str]:
    """Flags whose values forbid that `now` continues a run configured as `before`, with both values.

    `--epochs` and `--max-steps` may change where nothing else depends on them (`is_open_ended`), `--patience` may too,
    and `--min-lr` may fall: they only end a run. `--lr` may change, which result.json tells. Where the corpus lies, and
    its name, may change: a checkpoint has the checksums of its text.
    """
    values = as_plain(now)
    before = with_defaults(before)
    free = (*_LABELS, "data", "dataset", "patience", "lr", *(("epochs", "max_steps") if is_open_ended(now) else ()))
    free += ("min_lr",) if now.min_lr < before["min_lr"] else ()
    if before["finetune"] and values["finetune"] and same_place(before["finetune"], values["finetune"]):
        free += ("finetune",)
    changed = [name for name in values if name not in free and values[name] != before[name]]
    return [f"{flag(name)} {before[name]} (now {values[name]})" for name in changed]


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of an earlier version's configuration, completed by those of younger fields."""
    return {**_defaults(), **values}


@functools.cache  # a configuration checks itself, which takes 0.5 ms, and reports ask for every line and field
def _defaults() -> dict[str, Any]:
    return as_plain(TrainConfig())


def as_plain(config: TrainConfig) -> dict[str, Any]:
    """All values as JSON types, for `config.json` and checkpoints; `config_from_dict` reads them back."""
    values = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def run_name(config: TrainConfig) -> str:
    """Folder name of a run: corpus, preset or model, identity."""
    return f"{config.dataset}-{config.preset or config.model.lower()}-{config_id(config)}"
