"""Trained models read from run directories and exports, verified, with their configuration and corpus.

Both come as one dictionary (`load_trained`), so that nothing above asks which of the two it was. The weights of an
export carry a checksum of their own, and must fit the configuration beside them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lm.base.errors import CheckpointError, ConfigError, is_out_of_memory
from lm.base.files import read_file
from lm.base.rundir import RunDir
from lm.config.schema import TrainConfig
from lm.config.values import as_plain, config_from_dict
from lm.nn.model import AWDLSTM
from lm.scoring.corpus import corpus_of, extended_tokenizer
from lm.text.corpus import Corpus
from lm.training.checkpoint import check_finite, fitting, load_checkpoint


def load_trained(directory: RunDir) -> dict[str, Any]:
    """What a run's best checkpoint or an export holds: `config` (plain values), `model` (weights), and of its text
    `corpus_sha256`, unless it is old the checksum `vocabulary`, and `extends` where that is not of this text alone.

    Raises:
        CheckpointError: neither is there, or it is damaged or incomplete, or a weight is not finite.
    """
    if not directory.path.is_dir():
        what = "is a file; give the run directory" if directory.path.exists() else "no such run directory or export"
        raise CheckpointError(f"{directory}: {what}")
    trained = _read_export(directory) if directory.is_export else _best_of_run(directory)
    path = directory.weights if directory.is_export else directory.best
    with fitting(path):
        check_finite(path, trained["model"])
    return trained


def _best_of_run(directory: RunDir) -> dict[str, Any]:
    path = directory.best
    if not path.parent.exists() and not directory.is_run:
        raise CheckpointError(
            f"{directory}: neither a run directory, with ckpt/best.pt, nor an export of this program (--format pytorch)"
        )
    if not path.exists() and directory.is_run:
        raise CheckpointError(f"{path}: not there: no epoch of this run has ended yet; train on with --resume auto")
    checkpoint = load_checkpoint(path)
    with fitting(path):
        trained = {key: checkpoint[key] for key in ("config", "corpus_sha256", "model")}
    trained |= {key: checkpoint[key] for key in ("vocabulary", "extends") if key in checkpoint}
    try:
        config_from_dict(trained["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; train again, or use the version that wrote it") from None
    return trained


def _read_export(directory: RunDir) -> dict[str, Any]:
    path = directory.weights
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        intact = metadata["sha256"] == weights_digest(weights, metadata["text"])
        text = json.loads(metadata["text"])
    except KeyError as error:
        raise CheckpointError(f"{path}: not an export of this program ({error} is missing)") from None
    except Exception as error:  # the library raises its own kind, and others for what it cannot map or decode
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{path}: not readable ({' '.join(str(error).split())[:300]}); export it again"
        ) from error
    if not intact:
        raise CheckpointError(f"{path}: damaged (its checksum differs); export it again")
    if other := metadata.get("layout"):
        raise CheckpointError(f"{directory}: an export for {other}; give the run, or an export made without --format")
    if (beside := text.pop("beside", None)) is None:
        raise CheckpointError(f"{path}: of a version that did not say what lies beside it; export the run again")
    config = _fitting_config(directory.config, weights, beside["config"])
    _check_tokenizer(directory.tokenizer, beside["tokenizer"])
    weights = {name: tensor.float() for name, tensor in weights.items()}  # some are rounded to bf16
    if config.tied:
        weights["decoder.weight"] = weights["encoder.weight"]
    return text | {"config": as_plain(config), "model": weights}


def values_digest(values: dict[str, Any]) -> str:
    """Checksum of a configuration, whatever its layout in a file and wherever its corpus lies."""
    decisive = {name: value for name, value in values.items() if name not in ("data", "dataset", "preset")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def weights_digest(weights: dict[str, Tensor], text: str) -> str:
    """Checksum of all that is read of the file, which has none of its own."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_tokenizer(path: Path, sha256: str) -> None:
    """Raise CheckpointError if a tokenizer is not the one that was exported; that there is none says who needs it."""
    if not path.exists():
        return
    try:
        found = hashlib.sha256(read_file(path)).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if found != sha256:
        raise CheckpointError(f"{path}: not as it was exported (its checksum differs)")


def _fitting_config(path: Path, weights: dict[str, Tensor], digest: str) -> TrainConfig:
    """The configuration in `path`. Raises CheckpointError unless it describes a model with these weights, and has the
    checksum that they were exported with."""
    values = read_json_object(path)
    try:
        config = config_from_dict(values)
        with torch.device("meta"):
            model = AWDLSTM(len(weights["encoder.weight"]), config)
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the configuration of the model beside it ({error})") from None
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}  # tied ones come once
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        raise CheckpointError(f"{path}: describes another model than the one beside it: names or shapes differ")
    if values_digest(values) != digest:
        raise CheckpointError(f"{path}: not as it was exported: a value that decides what the model computes differs")
    return config


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run or an export. Raises CheckpointError where there is none."""
    try:
        value = json.loads(read_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the run is not finished, or the export incomplete") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def load_model(directory: RunDir, device: torch.device) -> tuple[AWDLSTM, TrainConfig, dict[str, Any]]:
    """Model of a run (its best checkpoint) or of an export, in evaluation mode, its configuration, and what else
    `load_trained` knows of it.

    Raises:
        CheckpointError: no usable weights.
    """
    trained = load_trained(directory)
    config = config_from_dict(trained["config"])
    weights = trained.pop("model")
    with fitting(directory.path), device:  # whatever kernel the run took, this machine takes its own
        model = AWDLSTM(len(weights["decoder.bias"]), dataclasses.replace(config, kernel="auto"))
        model.load_state_dict(weights)
    return model.eval(), config, trained


def load_run(directory: RunDir, device: torch.device, data: str = "") -> tuple[AWDLSTM, TrainConfig, Corpus]:
    """The same with the corpus, from the folder `data` if that is given.

    Raises:
        CheckpointError: no usable weights, or the corpus found is not the one that they were trained on.
        CorpusError: the corpus is not to be found, or a tokenizer that it does not give.
    """
    model, config, trained = load_model(directory, device)
    tokenizer = extended_tokenizer(directory, trained, model.encoder.num_embeddings)
    return model, config, corpus_of(directory, config, trained, data, tokenizer)
