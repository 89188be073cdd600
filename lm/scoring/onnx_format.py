"""A trained model as an ONNX graph: `lm.evaluate RUN_DIR --export DIR --format onnx`.

Inputs are `ids` (T, B) and one state a layer and kind (`h0`, `c0`, `h1`, ...; each (B, H)), outputs `logits` (T, B, V)
and the states after the last token, so that a text of any length can be read in windows of any length.

Shapes: T time, B batch, H hidden, V vocabulary.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lm.base.errors import ConfigError
from lm.config.schema import TrainConfig
from lm.config.values import as_plain

MODEL_FILE = "model.onnx"
# The first with all that the graph uses: any runtime of the last years reads it.
_OPSET = 17
_USE = """\
```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("model.onnx")
tokenizer = Tokenizer.from_file("tokenizer.json")  # every line of the text ended in <eos>
state = {{name: np.zeros((1, width), np.float32) for name, width in {widths}.items()}}
ids = np.array(tokenizer.encode("<eos> the").ids)[:, None]  # (T, B): B texts side by side
logits, *after = session.run(None, {{"ids": ids}} | state)
state = dict(zip(state, after))  # for the tokens that follow
print([tokenizer.id_to_token(word) for word in np.argsort(-logits[-1, 0])[:5]])
```
"""


class _Graph(nn.Module):
    """The model in PyTorch's own layers, states as tensors one by one, which is what the exporter takes."""

    def __init__(self, config: TrainConfig, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.kinds = 2 if config.model == "LSTM" else 1
        self.encoder = nn.Embedding.from_pretrained(weights["encoder.weight"])
        self.rnns = nn.ModuleList()
        self.state_widths: dict[str, int] = {}
        for layer in range(config.nlayers):
            prefix = f"rnns.{layer}."
            tensors = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
            rnn = _layer(config.model, tensors["weight_ih_l0"].shape[1], tensors["weight_hh_l0"].shape[1])
            rnn.load_state_dict(tensors)
            self.rnns.append(rnn)
            self.state_widths |= {f"{kind}{layer}": rnn.hidden_size for kind in "hc"[: self.kinds]}
        self.decoder = weights["encoder.weight" if config.tied else "decoder.weight"]
        self.bias = weights["decoder.bias"]

    def forward(self, ids_TB: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x = self.encoder(ids_TB)
        after: list[Tensor] = []
        for layer, rnn in enumerate(self.rnns):
            before = [tensor.unsqueeze(0) for tensor in state[layer * self.kinds : (layer + 1) * self.kinds]]
            x, last = rnn(x, tuple(before) if self.kinds == 2 else before[0])
            after += [tensor.squeeze(0) for tensor in (last if self.kinds == 2 else (last,))]
        # On rows, as a product with the transposed matrix, which would otherwise be stored a second time.
        logits_NV = nn.functional.linear(x.flatten(0, 1), self.decoder, self.bias)
        return logits_NV.view(ids_TB.shape[0], ids_TB.shape[1], -1), *after


def _layer(cell: str, inputs: int, width: int) -> nn.RNNBase:
    if cell.startswith("RNN"):
        return nn.RNN(inputs, width, nonlinearity=cell.removeprefix("RNN_").lower())
    return {"LSTM": nn.LSTM, "GRU": nn.GRU}[cell](inputs, width)


def onnx_files(
    config: TrainConfig, weights: dict[str, Tensor], tokenizer: bytes, trained_on: str
) -> tuple[dict[str, bytes], str]:
    """Name -> content of every file but the model card, and the lines of the card that use them.

    Args:
        config: of the run; the graph carries it as metadata, under `config`.
        weights: under the names of a checkpoint, a tied decoder left out.
        tokenizer: content of `tokenizer.json`, whose checksum the graph carries.
        trained_on: JSON of the corpus, metadata as well.

    Raises:
        ConfigError: the package onnx is missing.
    """
    onnx = _library()
    graph = _Graph(config, weights).eval()
    widths = graph.state_widths
    after = [f"{name}_after" for name in widths]
    example = (torch.zeros(2, 2, dtype=torch.int64), *(torch.zeros(2, width) for width in widths.values()))
    axes = {name: {0: "time", 1: "batch"} for name in ("ids", "logits")}
    axes |= {name: {0: "batch"} for name in (*widths, *after)}
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter is deprecated, but the new one (PyTorch 2.13) makes an LSTM's batch a constant; the states are
        # inputs, so what it warns of, a batch that is a constant of theirs, cannot happen.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph, example, file,  # type: ignore[arg-type]  # this exporter takes a file as well
            input_names=["ids", *widths], output_names=["logits", *after], dynamic_axes=axes,
            opset_version=_OPSET, dynamo=False,
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    facts = {
        "config": json.dumps(as_plain(config)),
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
        "trained_on": trained_on,
    }
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return {MODEL_FILE: model.SerializeToString(), "tokenizer.json": tokenizer}, _USE.format(widths=widths)


def is_onnx_export(folder: Path) -> bool:
    """Whether the graph in a folder is one that `onnx_files` made."""
    if not (folder / MODEL_FILE).is_file():
        return False
    onnx = _library()
    try:
        found = {one.key for one in onnx.load(folder / MODEL_FILE).metadata_props}
    except Exception:  # protobuf has a kind of its own for what it cannot read
        return False
    return {"config", "tokenizer_sha256", "trained_on"} <= found


def _library() -> Any:
    try:
        import onnx
    except ImportError:
        raise ConfigError("--format onnx: needs the package onnx: pip install -r requirements-export.txt") from None
    return onnx
