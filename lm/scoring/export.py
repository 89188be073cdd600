"""A trained model as a folder that other programs can read: `python -m lm.evaluate RUN_DIR --export DIR`.

An export holds the model, `tokenizer.json` and `README.md`, its model card, which shows how to use it without this
project. `--format` says for whom: `pytorch` (weights under the names of a checkpoint, a tied decoder stored once; this
program reads it back), `transformers` or `onnx`.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lm.base.errors import CheckpointError, ConfigError
from lm.base.files import json_bytes, read_file, scratch_folder, scratch_folders, write_bytes
from lm.base.rundir import RunDir
from lm.config.schema import TrainConfig
from lm.config.values import as_plain, config_from_dict
from lm.scoring.loading import load_trained, read_json_object, values_digest, weights_digest
from lm.scoring.model_card import model_card, plain_use
from lm.scoring.onnx_format import is_onnx_export, onnx_files
from lm.scoring.transformers_format import USE, transformers_files
from lm.text.tokenization import tokenization_of
from lm.training.checkpoint import fitting

FORMATS = ("pytorch", "transformers", "onnx")


def export_run(run_dir: RunDir, directory: RunDir, layout: str = "pytorch", *, bf16: bool = False) -> None:
    """Write the best model of a finished run into `directory`; it is made, or overwritten where it holds an export.

    No file changes before all can be written. Killed after that, it leaves an export that is refused as incomplete.

    Args:
        run_dir: the run.
        directory: where to.
        layout: one of FORMATS.
        bf16: round the weights to bfloat16, which halves the file.

    Raises:
        ConfigError: `directory` holds something else, or an export of another format; `layout` is not for such a model;
            a package is missing.
        CheckpointError: the run has no usable checkpoint or no result.
        CorpusError: the run's tokenizer is damaged.
    """
    place = directory.path
    if run_dir.is_export:
        raise ConfigError(f"--export: {run_dir} is an export already; copy the folder")
    if place.exists() and not _may_be_replaced(directory, layout):
        raise ConfigError(
            f"--export: {directory} is there and no export of this program for {layout}; choose another, or empty it"
        )
    trained = load_trained(run_dir)
    result = read_json_object(run_dir.result)
    environment = read_json_object(run_dir.environment)
    config = config_from_dict(trained.pop("config"))
    weights = trained.pop("model")
    if config.tied:
        del weights["decoder.weight"]
    if layout != "pytorch" and config.model == "QRNN":
        raise ConfigError(f"--format {layout}: not for --model QRNN; leave --format out")
    if layout != "pytorch" and config.cutoffs:
        raise ConfigError(f"--format {layout}: not for --cutoffs (adaptive softmax); leave --format out")
    if bf16:
        weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
    files, use = _files(layout, run_dir, config, weights, trained)
    with fitting(run_dir.path):
        card = model_card(place.resolve().name, config, weights, result, environment, use)
    first = next(iter(files))  # what makes the folder an export, which the next one may replace
    _replace(directory, {first: files[first], "README.md": card.encode()} | files)


def _files(
    layout: str, run_dir: RunDir, config: TrainConfig, weights: dict[str, Tensor], trained: dict[str, Any]
) -> tuple[dict[str, bytes], str]:
    """Name -> content of the files of a layout, that without which the model cannot be used last, and how to use it."""
    try:
        tokenizer = read_file(run_dir.tokenizer)
    except OSError as error:
        raise CheckpointError(f"{run_dir.tokenizer}: cannot be read: {error.strerror}") from error
    if layout == "onnx":
        return onnx_files(config, weights, tokenizer, json.dumps(trained))
    if layout == "transformers":
        stored = save(weights, _metadata(weights, trained) | {"layout": layout})
        return transformers_files(config, stored, tokenization_of(config).load(run_dir.tokenizer)), USE
    beside = {"config": values_digest(as_plain(config)), "tokenizer": hashlib.sha256(tokenizer).hexdigest()}
    return {
        "model.safetensors": save(weights, _metadata(weights, trained | {"beside": beside})),
        "tokenizer.json": tokenizer,
        "config.json": json_bytes(as_plain(config)),
    }, plain_use(config, weights)


def _metadata(weights: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, str]:
    text = json.dumps(facts)
    return {"text": text, "sha256": weights_digest(weights, text), "format": "pt"}


def _replace(directory: RunDir, contents: dict[str, bytes]) -> None:
    """Write all files, then move them to their places; the last is missing from the first move to its own."""
    place = directory.path
    place.mkdir(parents=True, exist_ok=True)
    with scratch_folder(place) as scratch:  # inside, as the folder may be a file system of its own
        for name, content in contents.items():
            write_bytes(scratch / name, content)
        (place / next(reversed(contents))).unlink(missing_ok=True)
        for name in contents:
            os.replace(scratch / name, place / name)


def _may_be_replaced(directory: RunDir, layout: str) -> bool:
    """Whether the folder holds nothing, or an export of this layout and not a model that others stored."""
    place = directory.path
    if place.is_dir() and not set(place.iterdir()) - set(scratch_folders(place)):
        return True
    if layout == "onnx":
        return is_onnx_export(place)
    try:
        with safe_open(directory.weights, "pt") as file:
            metadata = file.metadata() or {}
    except Exception:  # the library has a kind of its own for what it cannot read
        return False
    return {"text", "sha256"} <= metadata.keys() and metadata.get("layout", "pytorch") == layout
