"""What an argument of `--compare` names: a study or a run directory, read as configurations with all their values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.base.errors import ConfigError
from lm.base.files import read_file
from lm.base.rundir import RunDir
from lm.config.values import as_plain, with_defaults
from lm.study.ledger import check_record, read_ledger
from lm.study.records import config_of
from lm.study.specification import STUDY_FILE, load_study
from lm.tables.analysis import analyse
from lm.tables.configurations import Configuration, with_estimates


@dataclass(frozen=True)
class Source:
    """What one argument of --compare names: its configurations, all values of each, and the fields that make them."""

    dataset: str
    fields: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    configs: tuple[dict[str, Any], ...]


def load_source(name: str) -> Source:
    """A study or a run directory. Raises ConfigError when the folder is neither."""
    folder = Path(name)
    if RunDir(folder).result.is_file():
        return _load_run(name, RunDir(folder).result)
    if (folder / STUDY_FILE).is_file():
        study = load_study(folder)
        analysis = analyse(study, read_ledger(study.ledger))
        configs = [
            config_of(next(iter(configuration.runs.values())))
            if configuration.runs
            else as_plain(study.config(**configuration.values))
            for configuration in analysis.configurations
        ]
        return Source(study.dataset, analysis.fields, analysis.configurations, tuple(configs))
    raise ConfigError(
        f"--compare {name}: neither a study ({STUDY_FILE}), nor a finished run (result.json), nor published"
    )


def _load_run(name: str, file: Path) -> Source:
    try:
        record = check_record(json.loads(read_file(file)), str(file))
        config = dict(record["config"])
        seed = record["seed"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: not the result of a run: {error!r}") from None
    status = record.get("status", "unknown")
    configuration = (
        Configuration({}, runs={seed: record}) if status == "completed" else Configuration({}, others=((seed, status),))
    )
    dataset = record.get("dataset") or config.get("dataset", "")
    return Source(dataset, (), (with_estimates(configuration),), (with_defaults(config),))
