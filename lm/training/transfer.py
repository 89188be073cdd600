"""A trained model on another text, as ULMFiT tunes one (Howard and Ruder 2018, arXiv 1801.06146, sec. 3.2).

The vocabulary grows by the words of that text. Those that the model knows keep their ids and weights; new ones follow
them, each with the mean embedding and the mean decoder bias of the old ones, as in fast.ai's code (`match_embeds`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lm.base.errors import ConfigError
from lm.base.names import flag
from lm.config.schema import TrainConfig
from lm.config.values import as_plain, with_defaults
from lm.text.corpus import Corpus

# What has a row a type. A tied decoder's weight is the embedding; the clusters of an adaptive softmax are no types.
_PER_TYPE = ("encoder.weight", "decoder.weight", "decoder.bias")
_ARCHITECTURE = ("model", "emsize", "nhid", "nlayers", "tied", "cutoffs", "tokenizer", "bpe_vocab_size", "lowercase")


def check_tunable(config: TrainConfig, trained: Mapping[str, Any], *, other_text: bool) -> None:
    """Raise ConfigError, naming the flags, unless a model that was `trained` with these values can be tuned so.

    On another text `--vocab-size` and `--min-count` are free: they decide which of its words are added.
    """
    before, now = with_defaults(trained), as_plain(config)
    fixed = _ARCHITECTURE if other_text else (*_ARCHITECTURE, "vocab_size", "min_count")
    if changed := [name for name in fixed if now[name] != before[name]]:
        differences = ", ".join(f"{flag(name)} {before[name]} (now {now[name]})" for name in changed)
        raise ConfigError(
            f"--finetune: the model there was made with {differences}; leave these flags and --preset out, or give its "
            "values"
        )
    if config.average_last and not other_text:
        raise ConfigError("--average-last: fine-tuning averages from its start; leave it out")


def with_new_types(weights: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Weights of a model of `vocab_size` types: the first have the rows of `weights`, all others the mean of these.

    Args:
        weights: of an `AWDLSTM` with at most so many types, by their names.
        vocab_size: V of the result.
    """
    new = vocab_size - len(weights["encoder.weight"])

    def extended(rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.mean(0, keepdim=True).expand(new, *rows.shape[1:])])

    return {name: extended(rows) if name in _PER_TYPE else rows for name, rows in weights.items()}


def known_share(corpus: Corpus, known: int) -> dict[str, float]:
    """How much of train a model knows whose types are the first `known` of the corpus.

    Returns:
        `types` of train, `known_types` and `new_types` among them, and `share_of_tokens`, the part of train's tokens
        that are of known types; a word that became `<unk>` because the vocabulary lacks it is none of them.
    """
    counts = corpus.type_counts("train")
    occurring = counts > 0
    tokens = int(counts[:known].sum()) - corpus.unk["train"]
    return {
        "types": int(occurring.sum()),
        "known_types": int(occurring[:known].sum()),
        "new_types": int(occurring[known:].sum()),
        "share_of_tokens": tokens / int(counts.sum()),
    }
