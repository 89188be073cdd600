"""A trained model as a folder that plain PyTorch can read: `python -m lm.evaluate RUN_DIR --export DIR`.

An export holds `model.safetensors`, `config.json`, `tokenizer.json` and `README.md`, its model card, which shows how to
use it without this project. Tensors have the names that they have in a checkpoint; a tied decoder is stored once.
"""

from __future__ import annotations

import hashlib
import json
import os

from safetensors import safe_open
from safetensors.torch import save

from lm.base.errors import CheckpointError, ConfigError
from lm.base.files import read_file, scratch_folder, scratch_folders, write_bytes
from lm.base.rundir import RunDir
from lm.config.values import as_plain, config_from_dict
from lm.scoring.loading import load_trained, read_json_object, values_digest, weights_digest
from lm.scoring.model_card import model_card
from lm.training.checkpoint import fitting


def export_run(run_dir: RunDir, directory: RunDir) -> None:
    """Write the best model of a finished run into `directory`; it is made, or overwritten where it holds an export.

    No file changes before all can be written. Killed after that, it leaves an export that is refused as incomplete.

    Raises:
        ConfigError: `directory` holds something else.
        CheckpointError: the run has no usable checkpoint or no result.
    """
    place = directory.path
    if run_dir.is_export:
        raise ConfigError(f"--export: {run_dir} is an export already; copy the folder")
    if place.exists() and not _may_be_replaced(directory):
        raise ConfigError(f"--export: {directory} is there and no export of this program; choose another, or empty it")
    trained = load_trained(run_dir)
    result = read_json_object(run_dir.result)
    environment = read_json_object(run_dir.environment)
    config = config_from_dict(trained["config"])
    weights = trained["model"]
    if config.tied:
        del weights["decoder.weight"]
    with fitting(run_dir.path):
        card = model_card(place.resolve().name, config, weights, result, environment)
    try:
        tokenizer = read_file(run_dir.tokenizer)
    except OSError as error:
        raise CheckpointError(f"{run_dir.tokenizer}: cannot be read: {error.strerror}") from error
    beside = {"config": values_digest(as_plain(config)), "tokenizer": hashlib.sha256(tokenizer).hexdigest()}
    text = json.dumps(
        {key: value for key, value in trained.items() if key not in ("config", "model")} | {"beside": beside}
    )
    metadata = {"text": text, "sha256": weights_digest(weights, text), "format": "pt"}
    contents = {
        directory.weights: save(weights, metadata),
        directory.tokenizer: tokenizer,
        place / "README.md": card.encode(),
        directory.config: (json.dumps(as_plain(config), indent=2) + "\n").encode(),
    }
    place.mkdir(parents=True, exist_ok=True)
    with scratch_folder(place) as scratch:  # inside, as the folder may be a file system of its own
        for file, content in contents.items():
            write_bytes(scratch / file.name, content)
        directory.config.unlink(missing_ok=True)  # back as the last: until then the export is incomplete
        for file in contents:
            os.replace(scratch / file.name, file)


def _may_be_replaced(directory: RunDir) -> bool:
    """Whether the folder holds nothing, or an export of this program and not weights that others stored."""
    if not directory.is_export:
        place = directory.path
        return place.is_dir() and not set(place.iterdir()) - set(scratch_folders(place))
    try:
        with safe_open(directory.weights, "pt") as file:
            return {"text", "sha256"} <= (file.metadata() or {}).keys()
    except Exception:  # the library has a kind of its own for what it cannot read
        return False
