"""A trained model as a library object: `lm.load("runs/ptb")`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lm.base.rundir import RunDir
from lm.config.schema import TrainConfig
from lm.nn.model import AWDLSTM
from lm.scoring.adapt import Adapt
from lm.scoring.corpus import tokenizer_of
from lm.scoring.loading import load_model
from lm.scoring.score import score_text
from lm.scoring.surprisal import surprisal
from lm.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Trained:
    """A trained model with all that it takes to use it; neither its corpus nor its checkpoints are needed any more.

    Text is read as its tokenizer reads the corpus: for `word` the words between white space, lower-cased and split off
    punctuation as the training text was. Every line ends with `<eos>`; what the vocabulary lacks counts as `<unk>`.
    """

    model: AWDLSTM
    """in evaluation mode; `model(tokens_TB, model.initial_state(B))` computes a window"""
    tokenizer: TextTokenizer
    """`encode(text)` gives ids (N,), `text(ids)` the text"""
    config: TrainConfig
    """every value of the run"""

    def score(self, text: str, *, independent: bool = False, adapt: Adapt | None = None) -> dict[str, Any]:
        """Log-probability, perplexity and counts of each line, under `lines`, and of all together, under `total`.

        Args:
            text: lines separated by newlines.
            independent: each line alone, after `<eos>` from a zero state; else the lines are one text, hidden state
                carried from its start to its end, of which the first token is context only, as a split is evaluated.
            adapt: a cache, dynamic evaluation or both, for a running text: see `lm.scoring.adapt`.

        Raises:
            ConfigError: `adapt` stands beside `independent`.
            CorpusError: there is nothing to predict in the text.
        """
        return score_text(self.model, self.tokenizer, text, independent=independent, adapt=adapt)

    def surprisal(
        self,
        text: str | Iterable[str],
        *,
        independent: bool = False,
        per_word: bool = False,
        per_line: bool = False,
        bits: bool = True,
        top: int = 0,
        adapt: Adapt | None = None,
    ) -> list[dict[str, Any]]:
        """A row for each token of a text, see `lm.scoring.surprisal`: a table for `pandas.DataFrame`.

        Args:
            text: lines separated by newlines, or a list of lines.
            independent: as for `score`; here the first token of a running text is scored too, after `<eos>`.
            per_word: sum the tokens of each word.
            per_line: sum the tokens of each line, with their mean and perplexity.
            bits: surprisal and entropy in bits; else in nats.
            top: add the so many likeliest tokens of each prediction, with their probabilities.
            adapt: as for `score`.

        Raises:
            ConfigError: `top` is more than the vocabulary has, or two arguments contradict each other.
            CorpusError: there is no line, or a line of a list holds several.
        """
        lines = surprisal(
            self.model, self.tokenizer, text, independent=independent, per_word=per_word, per_line=per_line,
            bits=bits, top=top, adapt=adapt,
        )  # fmt: skip
        return [row for line in lines for row in line]

    def perplexity(self, text: str) -> float:
        """exp(nats per token) of a text whose lines follow each other; its first token is context only.

        Raises:
            CorpusError: there is nothing to predict in the text.
        """
        return self.score(text)["total"]["ppl"]

    def logprob(self, line: str) -> float:
        """Log-probability in nats of one line and its `<eos>`, after another `<eos>`: to rank sentences by."""
        return self.score(line.removesuffix("\n") + "\n", independent=True)["total"]["logprob"]


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Trained:
    """The model of a run directory (its best checkpoint) or of an export, with its tokenizer.

    >>> import lm
    >>> trained = lm.load("runs/ptb")
    >>> ppl = trained.perplexity("the company said it expects a profit\\nanalysts disagree\\n")
    >>> likelier = max(["the company said", "company the said"], key=trained.logprob)
    >>> tokens_TB = torch.from_numpy(trained.tokenizer.encode("the company said\\n")).long().unsqueeze(1)  # (T, B = 1)
    >>> output = trained.model(tokens_TB, trained.model.initial_state(1))
    >>> logits_TBV = trained.model.decoder(output.after_dropout[-1])

    Args:
        path: what `lm.train --out-dir` or `lm.evaluate --export` wrote.
        device: where the model goes, as PyTorch names it.

    Raises:
        CheckpointError: there is no run or export, or it is damaged or incomplete.
        CorpusError: its `tokenizer.json` is missing or damaged.
    """
    directory = RunDir(path)
    model, config, trained = load_model(directory, torch.device(device))
    return Trained(model, tokenizer_of(directory, trained, model.encoder.num_embeddings), config)
