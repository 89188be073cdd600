"""Hidden states and word vectors as files: `lm.generate RUN_DIR --features FILE --out X.npz`, `--embeddings FILE`.

Shapes: N tokens of a text, H units of the layer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lm.base.errors import ConfigError, CorpusError
from lm.base.files import write_atomic
from lm.base.process import show
from lm.nn.model import AWDLSTM
from lm.scoring.reading import read
from lm.text.batching import batchify
from lm.text.given import given_text, warn_of_unknown
from lm.text.reading import split_lines
from lm.text.tokenizer import TextTokenizer
from lm.text.vectors import write_vectors

_SUFFIXES = (".npz", ".parquet")


def add_vector_flags(parser: argparse.ArgumentParser) -> None:
    """`--features` and what belongs to it, and `--embeddings`."""
    group = parser.add_argument_group("vectors")
    group.add_argument(
        "--features",
        metavar="FILE",
        help="write the hidden state after each token of FILE (-: standard input) into --out; with --independent each "
        "line alone",
    )
    group.add_argument("--layer", type=int, metavar="N", help="layer, 1 the first, 0 the embedding (default: the last)")
    group.add_argument("--out", type=Path, metavar="FILE", help="what --features writes: a name in .npz or .parquet")
    group.add_argument("--embeddings", type=Path, metavar="FILE", help="write word vectors, in word2vec's text format")


def check_vector_flags(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for a combination that makes no sense."""
    if arguments.features is None:
        for name in ("layer", "out"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name}: is for --features FILE")
    elif arguments.out is None:
        raise ConfigError("--features: name the file to write by --out")
    elif arguments.out.suffix not in _SUFFIXES:
        raise ConfigError(f"--out: the file's name must end in {' or '.join(_SUFFIXES)}; got {arguments.out}")


@torch.no_grad()
def hidden_states(model: AWDLSTM, lines: Sequence[np.ndarray], layer: int, eos_id: int, *, independent: bool) -> Tensor:
    """The layer's output (N, H) in fp32 after each token of all lines, on the CPU.

    Args:
        model: in evaluation mode.
        lines: token ids of each line.
        layer: 1 the first; 0 the embedding.
        eos_id: what comes before a line.
        independent: each line alone, after `<eos>` from a zero state; else the state is carried from line to line.
    """

    def outputs(ids: np.ndarray) -> Tensor:
        """Of one text from a zero state; the last token of what `read` is given is no input."""
        columns_NB = batchify(np.append(ids, eos_id), 1, model.decoder.bias.device)
        found = [
            model.encoder(window.tokens_TB) if layer == 0 else output.raw[layer - 1]
            for window, output in read(model, columns_NB)
        ]
        return torch.cat(found)[:, 0].float().cpu()

    with model.exact():
        if independent:
            return torch.cat([outputs(np.append(eos_id, line))[1:] for line in lines])
        return outputs(np.concatenate(lines))


def write_features(
    path: Path, model: AWDLSTM, tokenizer: TextTokenizer, text: str, layer: int | None, *, independent: bool
) -> tuple[int, int]:
    """Write line and position (both from 1), word and vector of every token of a text; returns their number and size.

    Args:
        path: `.npz` has these four arrays, `.parquet` these columns.
        model: in evaluation mode.
        tokenizer: the run's.
        text: lines separated by newlines.
        layer: as `hidden_states` has it; None: the last.
        independent: as there.

    Raises:
        ConfigError: there is no such layer.
        CorpusError: the text is empty.
        OSError: the file cannot be written.
    """
    layers = len(model.rnns)
    if layer is not None and not 0 <= layer <= layers:
        raise ConfigError(f"--layer: must be from 0 to {layers}, the layers of this model; got {layer}")
    lines = [tokenizer.encode(line + "\n") for line in split_lines(text)]
    if not lines:
        raise CorpusError("an empty text has no hidden states")
    vectors = hidden_states(
        model, lines, layers if layer is None else layer, tokenizer.eos_id, independent=independent
    ).numpy()
    columns = {
        "line": np.repeat(np.arange(1, len(lines) + 1, dtype=np.int32), [len(line) for line in lines]),
        "position": np.concatenate([np.arange(1, len(line) + 1, dtype=np.int32) for line in lines]),
        "word": np.array(tokenizer.decode(np.concatenate(lines))),
    }
    write_atomic(path, lambda file: _write(file, path.suffix, columns, vectors))
    return vectors.shape


def _write(file: BinaryIO, suffix: str, columns: dict[str, np.ndarray], vectors: np.ndarray) -> None:
    if suffix == ".npz":
        arrays: dict[str, Any] = columns | {"vector": vectors}
        np.savez(file, **arrays)
        return
    import pyarrow  # comes with datasets, and takes half a second to import
    import pyarrow.parquet

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    pyarrow.parquet.write_table(pyarrow.table(columns | {"vector": values}), file)


def write_asked(arguments: argparse.Namespace, model: AWDLSTM, tokenizer: TextTokenizer) -> None:
    """Write what `--features` and `--embeddings` ask for, and print the names of the files."""
    report: dict[str, Any] = {"run": str(arguments.run_dir)}
    if arguments.features is not None:
        text = given_text(arguments.features)
        warn_of_unknown(tokenizer, text)
        tokens, size = write_features(
            arguments.out, model, tokenizer, text, arguments.layer, independent=arguments.independent
        )
        report |= {"features": str(arguments.out), "tokens": tokens, "size": size}
    if arguments.embeddings is not None:
        weight = model.encoder.weight.detach().float().cpu().numpy()
        write_vectors(arguments.embeddings, tokenizer.types, weight)  # which `lm.train --init-vectors` can start from
        report["embeddings"] = str(arguments.embeddings)
    written = [report[name] for name in ("features", "embeddings") if name in report]
    show(json.dumps(report) + "\n" if arguments.json else "".join(f"{path}\n" for path in written))
