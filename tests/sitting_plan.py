"""What a sitting (tests/sitting.py) plans: its runs in their order, how long they take, how many epochs fit."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.base.files import ROOT
from lm.study.executors import Job

PTB = "ptb-fast"
WT2 = "wikitext-2-fast-90"
# Study, alpha, beta, seed, the most important first: the recipe, what AR and TAR are worth in it, seeds, other values.
PLAN = [
    (PTB, 3, 1.5, 141), (PTB, 0, 0, 141),
    (WT2, 3, 1.5, 1882), (WT2, 0, 0, 1882),
    (PTB, 3, 1.5, 142), (PTB, 0, 0, 142), (PTB, 3, 1.5, 143), (PTB, 0, 0, 143), (PTB, 2, 1, 141),
    (WT2, 2, 1, 1882), (WT2, 3, 1.5, 1883), (WT2, 0, 0, 1883), (PTB, 2, 1, 142), (PTB, 2, 1, 143), (WT2, 2, 1, 1883),
]  # fmt: skip
START_S = 15.0  # from a process's start to its first update
# Seconds of reading one word of all columns on an H100, by their number (results/ptb-awd-lstm/adapt.txt).
WORD_S = {10: 122e-6, 1: 44e-6}
SHARED = 1.5  # beside another run reading takes longer; a guess
MARGIN = 1.08  # an epoch takes longer while checkpoints are written
MODES = (("none", "cache"), ("dynamic+cache",))  # a command each: the second takes minutes and may be cut off
_TINY = "emsize = 8\nnhid = 12\nnlayers = 2\nbatch_size = 4\nbptt = 7\neval_batch_size = 2\nepochs = 3"


@dataclass(frozen=True)
class Task:
    """A process of the sitting: the training of a run, or with `modes` its scoring."""

    study: str
    job: Job
    modes: tuple[str, ...] = ()

    @property
    def scoring(self) -> list[str]:
        """The command that scores the run, from the repository's root."""
        place = os.path.relpath(self.job.run_dir, ROOT)
        return ["python", "-m", "lm.evaluate", place, "--split", "valid", "test", "--adapt", *self.modes]

    @property
    def figures(self) -> Path:
        """Where the scoring's output goes until it is whole and joins adapt.txt."""
        return self.job.run_dir.path / f"adapt-{len(self.modes)}.new"

    @property
    def scored(self) -> bool:
        """Whether adapt.txt has its figures."""
        adapt = self.job.run_dir.path / "adapt.txt"
        return adapt.exists() and f"$ {' '.join(self.scoring)}\n" in adapt.read_text()


def validation_seconds(valid: int) -> float:
    """Seconds of a validation in ten columns, from the split's tokens."""
    return SHARED * valid / 10 * WORD_S[10]


def epoch_seconds(records: Sequence[dict[str, Any]], targets: int, valid: int) -> float:
    """Seconds of an epoch of `targets` tokens with its validation, from the records of metrics.jsonl.

    The first epoch has the start of everything in it. Where no second has ended, the later half of the speeds tells.
    Raises ValueError if there is none.
    """
    ends = [(record["epoch"], record["seconds"]) for record in records if record["kind"] == "epoch"]
    if len(ends) > 1:
        return (ends[-1][1] - ends[0][1]) / (ends[-1][0] - ends[0][0])
    speeds = [record["tokens_per_s"] for record in records if record["kind"] == "step"]
    if not speeds:
        raise ValueError("no record of an update: the measuring was too short")
    return targets / statistics.median(speeds[len(speeds) // 2 :]) + validation_seconds(valid)


def scoring_seconds(train: int, valid: int, test: int) -> float:
    """Seconds for a run's own last scores and `--adapt none cache` after them, from the splits' tokens."""
    last = train / 10 * WORD_S[10] + test * WORD_S[1]
    adapting = 2 * (valid + test) * WORD_S[1]  # a model that adapts reads them in one column
    return START_S + SHARED * (last + adapting)


def choose_epochs(seconds: float, epoch: float, most: int) -> int:
    """As many epochs as end within `seconds`, at least one and at most `most`."""
    return max(1, min(most, int(seconds / (MARGIN * epoch))))


def with_epochs(text: str, epochs: int) -> str:
    """A study.toml with another number of epochs. Raises ValueError unless it names one, on a line of its own."""
    changed, found = re.subn(r"(?m)^epochs = \d+$", f"epochs = {epochs}", text)
    if found != 1:
        raise ValueError("study.toml: one line `epochs = N` is needed")
    return changed


def tiny_study(text: str) -> str:
    """A study.toml on the corpus `tiny`, in tiny sizes, with the kernel that there is."""
    text = re.sub(r"(?m)^kernel = .*\n", "", text)
    text = re.sub(r'(?m)^dataset = ".*"$', 'dataset = "tiny"', text)
    return re.sub(r"(?m)^epochs = \d+$", _TINY, text)
