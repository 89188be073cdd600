"""What a training run takes over from another: the one that it fine-tunes, or that it resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lm.base.errors import ConfigError
from lm.base.files import read_file, same_place
from lm.base.rundir import RunDir
from lm.config.flags import TrainArguments
from lm.config.schema import RunOptions, TrainConfig
from lm.config.values import as_plain, config_from_dict, with_vectors_digest


def with_inherited(given: TrainArguments) -> TrainArguments:
    """The arguments, completed for fine-tuning without a preset by the values of the run to fine-tune.

    Where the run is resumed its own will do, for what it started from may be gone. Raises ConfigError where there is
    neither.
    """
    source = given.values.get("finetune")
    if not source or given.preset is not None:
        return given
    before = _resumed(given.options)
    if not before.get("finetune") or not same_place(before["finetune"], source):
        before = read_config(RunDir(source))
    before |= {"average_last": 0.0, "validate_epochs": 1, "init_vectors": "", "init_vectors_sha256": ""}
    preset = before.pop("preset")
    dataset = before.pop("dataset")
    inherited = not given.values.get("data") and given.dataset in (None, dataset)
    if not inherited:
        before["data"] = ""
        dataset = given.dataset
    values = before | given.values
    return dataclasses.replace(given, preset=preset, dataset=dataset, inherited=inherited, values=values)


def with_vectors(config: TrainConfig, options: RunOptions) -> TrainConfig:
    """`config` with the checksum of its word vectors, if it names any.

    Where their file cannot be read it is that of the run to resume, which needs the file no more. Raises ConfigError
    where there is none.
    """
    try:
        return with_vectors_digest(config)
    except ConfigError:
        before = _resumed(options)
        if not before.get("init_vectors") or not same_place(before["init_vectors"], config.init_vectors):
            raise
        return dataclasses.replace(config, init_vectors_sha256=before["init_vectors_sha256"])


def _resumed(options: RunOptions) -> dict[str, Any]:
    """The configuration of the run that is resumed; nothing where there is none."""
    home: Path | str = options.out_dir
    if options.resume != "auto":
        home = options.resume and Path(options.resume).absolute().parent.parent
    try:
        return read_config(RunDir(home)) if home else {}
    except ConfigError:
        return {}


def read_config(run_dir: RunDir) -> dict[str, Any]:
    """The values in the config.json of a run or an export. Raises ConfigError where there is none."""
    try:
        values = json.loads(read_file(run_dir.config))
        if isinstance(values, dict) and "model_type" in values:
            raise ConfigError("it is one for transformers; give the run that it was made of")
        return as_plain(config_from_dict(values))
    except (OSError, ValueError, ConfigError) as error:
        what = "is neither a run directory nor an export of this program"
        raise ConfigError(f"--finetune: {run_dir} {what}: {error}") from None
