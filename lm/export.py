"""A trained model as a folder that plain PyTorch can read: `python -m lm.evaluate RUN_DIR --export DIR`.

An export holds `model.safetensors`, `config.json`, `tokenizer.json` and `README.md`, its model card, which shows how to
use it without this project. Tensors have the names that they have in a checkpoint; a tied decoder is stored once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lm.cards import known_corpora
from lm.checkpoint import fitting, load_checkpoint
from lm.config import TrainConfig, as_plain, config_from_dict
from lm.errors import CheckpointError, ConfigError
from lm.files import write_atomic
from lm.model import AWDLSTM
from lm.regularization import INACTIVE
from lm.units import NAMES

# The file that makes a folder an export.
_WEIGHTS = "model.safetensors"
_LAYERS = {
    "LSTM": "nn.LSTM({}, {})", "GRU": "nn.GRU({}, {})", "RNN_TANH": "nn.RNN({}, {})",
    "RNN_RELU": 'nn.RNN({}, {}, nonlinearity="relu")',
}  # fmt: skip
_CARD = """\
# {title}

A language model of {layers} {cell} layers, trained on {dataset}: {vocab_size:,} types, embeddings of {emsize} units,
{params:,} parameters{tied}. {penalties} The code follows AWD-LSTM (arXiv 1708.02182).

## Figures

| | {train} | valid | test |
|---|--:|--:|--:|
| perplexity | {train_ppl} | {valid_ppl} | {test_ppl} |
| nats a token | {train_loss} | {valid_loss} | {test_loss} |
{units}| columns that the text was cut into | {eval_columns} | {eval_columns} | {test_columns} |

Perplexity is exp(nats / tokens) in fp32 without dropout, the hidden state carried through each column, `<eos>` counted
as a token. The last layer's activations h on valid: {activation}.

## How it was made

- text: {dataset}{corpus}
{checksums}
- training: {status}, {training}
- command: `{command}`
- code: commit {commit}; {versions}

## Use

```python
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

weights = load_file("model.safetensors")
embedding = nn.Embedding.from_pretrained(weights["encoder.weight"])
layers = [{modules}]
for i, layer in enumerate(layers):
    layer.load_state_dict({{name: weights[f"rnns.{{i}}.{{name}}"] for name in layer.state_dict()}})


@torch.no_grad()
def logits(ids):
    x = embedding(ids)
    for layer in layers:
        x, _ = layer(x)
    return nn.functional.linear(x, weights["{decoder}"], weights["decoder.bias"])


tokenizer = Tokenizer.from_file("tokenizer.json")  # every line of the text ended in <eos>
ids = torch.tensor(tokenizer.encode("<eos> the").ids)
likeliest = logits(ids)[-1].topk(5).indices.tolist()
print([tokenizer.id_to_token(word) for word in likeliest])
```
"""


def is_export(directory: Path) -> bool:
    """Whether a folder holds an export, complete or not."""
    return (directory / _WEIGHTS).is_file()


def load_trained(directory: Path) -> dict[str, Any]:
    """What a run's best checkpoint or an export holds: `config` (plain values), `model` (weights), and of its text
    `corpus_sha256` and, unless it is old, the checksum `vocabulary`.

    Raises:
        CheckpointError: neither is there, or it is damaged or incomplete.
    """
    if not directory.is_dir():
        what = "is a file; give the run directory" if directory.exists() else "no such run directory or export"
        raise CheckpointError(f"{directory}: {what}")
    if not is_export(directory):
        best = directory / "ckpt" / "best.pt"
        if not best.exists() and (directory / "config.json").exists():
            raise CheckpointError(f"{best}: not there: no epoch of this run has ended yet; train on with --resume auto")
        return _best_of_run(best)
    path = directory / _WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        intact = metadata["sha256"] == _digest(weights, metadata["text"])
        text = json.loads(metadata["text"])
    except KeyError as error:
        raise CheckpointError(f"{path}: not an export of this program ({error} is missing)") from None
    except Exception as error:  # the library raises its own kind, and others for what it cannot map or decode
        raise CheckpointError(f"{path}: not readable ({str(error).splitlines()[0]})") from error
    if not intact:
        raise CheckpointError(f"{path}: damaged (its checksum differs)")
    config = _fitting_config(directory / "config.json", weights)
    if config.tied:
        weights["decoder.weight"] = weights["encoder.weight"]
    return text | {"config": as_plain(config), "model": weights}


def _best_of_run(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    with fitting(path):
        trained = {key: checkpoint[key] for key in ("config", "corpus_sha256", "model")}
    if "vocabulary" in checkpoint:
        trained["vocabulary"] = checkpoint["vocabulary"]
    try:
        config_from_dict(trained["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; train again, or use the version that wrote it") from None
    return trained


def _digest(weights: dict[str, Tensor], text: str) -> str:
    """Checksum of all that is read of the file, which has none of its own."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].numpy())
    return digest.hexdigest()


def _fitting_config(path: Path, weights: dict[str, Tensor]) -> TrainConfig:
    """The configuration in `path`. Raises CheckpointError unless it describes a model with these weights."""
    values = _read_json(path)
    try:
        config = config_from_dict(values)
        with torch.device("meta"):
            model = AWDLSTM(len(weights["encoder.weight"]), config)
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the configuration of the model beside it ({error})") from None
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}  # tied ones come once
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        raise CheckpointError(f"{path}: describes another model than the one beside it: names or shapes differ")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the run is not finished, or the export incomplete") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def export_run(run_dir: Path, directory: Path) -> None:
    """Write the best model of a finished run into `directory`, made or, where it holds an export, overwritten.

    No file changes before all can be written. Killed after that, it leaves an export that is refused as incomplete.

    Raises:
        ConfigError: `directory` holds something else.
        CheckpointError: the run has no usable checkpoint or no result.
    """
    if is_export(run_dir):
        raise ConfigError(f"--export: {run_dir} is an export already; copy the folder")
    if directory.exists() and not is_export(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"--export: {directory} is there and not an export; choose another, or empty it")
    trained = load_trained(run_dir)
    result, environment = _read_json(run_dir / "result.json"), _read_json(run_dir / "env.json")
    config, weights = config_from_dict(trained["config"]), trained["model"]
    if config.tied:
        del weights["decoder.weight"]
    with fitting(run_dir):
        card = _card(directory.resolve().name, config, weights, result, environment)
    text = json.dumps({key: value for key, value in trained.items() if key not in ("config", "model")})
    metadata = {"text": text, "sha256": _digest(weights, text), "format": "pt"}
    try:
        tokenizer = (run_dir / "tokenizer.json").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{run_dir / 'tokenizer.json'}: cannot be read: {error.strerror}") from error
    contents = {
        _WEIGHTS: save(weights, metadata),
        "tokenizer.json": tokenizer,
        "README.md": card.encode(),
        "config.json": (json.dumps(as_plain(config), indent=2) + "\n").encode(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.resolve().parent, prefix=f".{directory.name}.") as scratch:
        for name, content in contents.items():
            write_atomic(Path(scratch, name), lambda file, content=content: file.write(content))
        (directory / "config.json").unlink(missing_ok=True)  # back as the last: until then the export is incomplete
        for name in contents:
            os.replace(Path(scratch, name), directory / name)


def _penalties(config: TrainConfig, result: dict[str, Any]) -> str:
    """What the weights were regularized with, as a sentence; nothing where fine-tuning did not change them."""
    if config.finetune and not result["best_epoch"]:
        return f"The weights are those of {config.finetune}, which fine-tuning did not improve."
    layers = ", over all layers" if config.ar_layers == "all" else ""
    norm = "" if config.ar_norm == "l2" else f" ({config.ar_norm})"
    verb = "Fine-tuned" if config.finetune else "Trained"
    return f"{verb} with AR {config.alpha:g}{norm} and TAR {config.beta:g}{layers} (arXiv 1708.01009)."


def _training(config: TrainConfig, result: dict[str, Any]) -> str:
    source = f"fine-tuned from {config.finetune}, " if config.finetune else ""
    kept = (
        f"weights of epoch {result['best_epoch']} of {result['epochs']}" if result["best_epoch"] else "weights as there"
    )
    averaged = ", averaged" if result["averaged"] else ""
    return f"{source}seed {result['seed']}, {result['steps']:,} updates, {kept}{averaged}"


def _card(
    title: str, config: TrainConfig, weights: dict[str, Tensor], result: dict[str, Any], environment: dict[str, Any]
) -> str:
    """The model card; every figure is one of the run's result.json."""

    def shown(name: str, digits: int) -> str:
        return "not scored" if result.get(name) is None else f"{result[name]:.{digits}f}"

    splits, statistics, corpus = (
        ("train", "valid", "test"),
        result["activation"],
        known_corpora().get(result["dataset"]),
    )
    shapes = [weights[f"rnns.{layer}.weight_ih_l0"].shape[1] for layer in range(config.nlayers)]
    widths = [weights[f"rnns.{layer}.weight_hh_l0"].shape[1] for layer in range(config.nlayers)]
    versions, git = result["versions"], result["git"]
    return _CARD.format(
        title=title, layers=config.nlayers, cell=config.model, vocab_size=len(weights["encoder.weight"]),
        emsize=config.emsize, params=result["params"], tied=", decoder tied to the embedding" if config.tied else "",
        penalties=_penalties(config, result), dataset=result["dataset"], status=result["status"],
        train=f"train, first {config.eval_train_tokens:,} tokens" if config.eval_train_tokens else "train",
        **{f"{split}_ppl": shown(f"{split}_ppl", 2) for split in splits},
        **{f"{split}_loss": shown(f"{split}_loss", 4) for split in splits},
        units="".join(
            f"| {NAMES[unit]} | {' | '.join(shown(f'{split}_{unit}', 4) for split in splits)} |\n"
            for unit in ("word_ppl", "bits_per_char") if f"valid_{unit}" in result
        ),
        eval_columns=config.eval_batch_size, test_columns=config.test_batch_size,
        activation=f"rms {statistics['rms']:.4f}, mean |h| {statistics['mean_abs']:.4f}, "
        f"|h| < {INACTIVE} in {statistics['frac_small']:.1%}, rms of h[t+1] - h[t] {statistics['temporal_rms']:.4f}",
        corpus=f", {corpus.title}; licence: {corpus.licence}" if corpus else "",
        checksums="\n".join(f"  - {split}: sha256 {digest}" for split, digest in result["corpus_sha256"].items()),
        training=_training(config, result),
        command=shlex.join(["python", "-m", "lm.train", *environment["argv"][1:]]),
        commit=f"{git['commit'] or 'unknown'}{', changed since' if git['dirty'] else ''}",
        versions=f"Python {versions['python']}, PyTorch {versions['torch']}, tokenizers {versions['tokenizers']}, "
        f"{versions['gpu'] or versions['cpu']}, {versions['precision']}",
        modules=", ".join(_LAYERS[config.model].format(i, h) for i, h in zip(shapes, widths, strict=True)),
        decoder="encoder.weight" if config.tied else "decoder.weight",
    )  # fmt: skip
