"""Minimal pairs, how often the grammatical sentence is the likelier: `python -m lm.evaluate RUN_DIR --pairs PATH`.

The format is BLiMP's (Warstadt et al. 2020, arXiv 1912.00582): a set is a `.jsonl` file whose lines are objects with
`sentence_good` and `sentence_bad`, and with `UID` and `linguistics_term`, the names of the set and its phenomenon. A
sentence's probability is that of its tokens and `<eos>`, after another `<eos>` from a zero state. A pair is right if
the good sentence is likelier. Equal probabilities are wrong: where both are read alike, as by `<unk>` for the word that
they differ in, the model has not told them apart.
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lm.base.errors import CorpusError
from lm.nn.model import AWDLSTM
from lm.scoring.tokens import read_independent
from lm.text.reading import read_text, split_lines, split_words
from lm.text.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)
BLIMP_FILE = Path(__file__).with_name("blimp.toml")
# Of intervals.
LEVEL = 0.95


@dataclass(frozen=True)
class PairSet:
    """Pairs of sentences, the good one first, that test one thing."""

    name: str
    phenomenon: str
    pairs: list[tuple[str, str]]


def load_pairs(path: Path) -> list[PairSet]:
    """The sets of a `.jsonl` file, or of all such files of a folder, by phenomenon and name.

    Files of a folder whose first line is no pair are skipped, which is logged.

    Raises:
        CorpusError: there is no set, or a line is no pair.
    """
    found = []
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        lines = split_lines(read_text(file))
        if path.is_dir() and "sentence_good" not in lines[0]:
            logger.info("%s: skipped, holds no pairs", file)
            continue
        found.append(_read_set(file, lines))
    if not found:
        raise CorpusError(f"{path}: holds no .jsonl file of sentence pairs")
    return sorted(found, key=lambda one: (one.phenomenon, one.name))


def _read_set(file: Path, lines: list[str]) -> PairSet:
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            pair = values["sentence_good"], values["sentence_bad"]
            "".join(pair).encode()  # JSON can hold halves of characters, which are no text
        except (ValueError, KeyError, TypeError, RecursionError):
            pair = None, None
        if not all(isinstance(one, str) and split_words(one) and "\n" not in one for one in pair):
            raise CorpusError(
                f"{file}: line {number} is no object with one sentence each as sentence_good and sentence_bad"
            )
        pairs.append(pair)
    name = str(values.get("UID", file.stem))
    return PairSet(name, _phenomena().get(name) or str(values.get("linguistics_term", "")) or "all", pairs)


def _blimp() -> dict[str, Any]:
    return tomllib.loads(BLIMP_FILE.read_text(encoding="utf-8"))


def _phenomena() -> dict[str, str]:
    """The phenomenon of each set of BLiMP."""
    return {name: phenomenon for phenomenon, names in _blimp()["phenomena"].items() for name in names}


@dataclass(frozen=True)
class Answers:
    """What a model makes of the pairs of all sets, one after the other; each array holds a boolean a pair."""

    right: np.ndarray  # the good sentence is the likelier one
    tied: np.ndarray  # both are equally likely
    unknown: np.ndarray  # a word is unknown


def answer_pairs(
    model: AWDLSTM, tokenizer: TextTokenizer, sets: Sequence[PairSet], tokenize: Callable[[str], str]
) -> Answers:
    """Read every sentence of the sets.

    Args:
        model: in evaluation mode; computed in fp32.
        tokenizer: the run's.
        sets: from `load_pairs`.
        tokenize: ordinary English to the corpus's tokenization.
    """
    ids = [tokenizer.encode(tokenize(one) + "\n") for of in sets for pair in of.pairs for one in pair]
    logger.info("%d sets, %s pairs, %s tokens to predict", len(sets), f"{len(ids) // 2:,}", f"{sum(map(len, ids)):,}")
    (nats,) = read_independent(model, ids, tokenizer.eos_id)
    starts = np.cumsum([0, *(len(one) for one in ids[:-1])])
    good, bad = np.add.reduceat(nats, starts).reshape(-1, 2).T
    unk_id = -1 if tokenizer.unk_id is None else tokenizer.unk_id
    lost = np.array([unk_id in one for one in ids]).reshape(-1, 2)
    return Answers(good < bad, good == bad, lost[:, 0] | lost[:, 1])


def parts(sets: Sequence[PairSet]) -> Iterator[tuple[PairSet, slice]]:
    """Every set, and where its pairs are in the arrays of `Answers`."""
    start = 0
    for one in sets:
        yield one, slice(start, start := start + len(one.pairs))


def report(sets: Sequence[PairSet], answers: Answers) -> dict[str, Any]:
    """Accuracies over all pairs (`overall`), of `phenomena` and of `sets`, see `_report`, and what was `published`."""
    total: Counter[str] = Counter()
    phenomena: dict[str, Counter[str]] = {}
    by_set = []
    for one, part in parts(sets):
        right, unknown = answers.right[part], answers.unknown[part]
        counts = Counter(
            pairs=len(one.pairs), right=int(right.sum()), tied=int(answers.tied[part].sum()),
            unknown=int(unknown.sum()), known_right=int((right & ~unknown).sum()),
        )  # fmt: skip
        by_set.append({"set": one.name, "phenomenon": one.phenomenon} | _report(counts))
        phenomena.setdefault(one.phenomenon, Counter()).update(counts)
        total.update(counts)
    whole = {one.name for one in sets} == set(_phenomena())
    return {
        "overall": _report(total),
        "phenomena": [{"phenomenon": name} | _report(counts) for name, counts in phenomena.items()],
        "sets": by_set,
        "published": _blimp()["published"] if whole else [],
    }


def _report(counts: Counter[str]) -> dict[str, Any]:
    """`pairs`, of which `tied` are equally likely and `unknown` hold an unknown word; the `accuracy` in percent with
    its interval, and the same of the pairs without unknown words (`known`; None where there is none)."""
    known = _accuracy(counts["known_right"], counts["pairs"] - counts["unknown"])
    counted = {name: counts[name] for name in ("pairs", "tied", "unknown")}
    return counted | _accuracy(counts["right"], counts["pairs"]) | {f"known_{k}": v for k, v in known.items()}


def _accuracy(right: int, pairs: int) -> dict[str, float | None]:
    """In percent, with Wilson's interval (1927) at 95 %."""
    if not pairs:
        return dict.fromkeys(("accuracy", "low", "high"))
    interval = stats.binomtest(right, pairs).proportion_ci(LEVEL, "wilson")
    return {"accuracy": 100 * right / pairs, "low": float(100 * interval.low), "high": float(100 * interval.high)}


def table(report: dict[str, Any]) -> str:
    """A report for a human reader."""
    head = f"{'':42} {'pairs':>6} {'accuracy':>8} {'95 % interval':>14} {'tied':>6}   {'without unknown words'}"
    lines = [head, _line("overall", report["overall"])]
    for phenomenon in report["phenomena"]:
        lines.append(_line(phenomenon["phenomenon"], phenomenon))
        mine = [one for one in report["sets"] if one["phenomenon"] == phenomenon["phenomenon"]]
        lines += [_line(f"  {one['set']}", one) for one in mine]
    if report["published"]:
        figures = ", ".join(f"{one['model']} {one['accuracy']:.1f}" for one in report["published"])
        lines.append(f"published, mean of the 67 sets: {figures}")
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    known = row["pairs"] - row["unknown"]
    text = f"{name[:42]:42} {row['pairs']:6,} {row['accuracy']:8.1f} {_interval(row, ''):>14} {row['tied']:6,}"
    if not known:
        return f"{text}        none"
    return f"{text} {row['known_accuracy']:8.1f} {_interval(row, 'known_'):>14} of {known:,}"


def _interval(row: dict[str, Any], prefix: str) -> str:
    return f"[{row[f'{prefix}low']:.1f}, {row[f'{prefix}high']:.1f}]"
