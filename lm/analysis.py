"""From a study and its ledger to numbers: cells, means over seeds, differences to the baseline.

Coefficients are chosen on valid, claims are made on test: the chosen cell is the one with the lowest mean valid
perplexity, and p values belong to test (to valid only where nothing has been tested). Differences are in nats per
token, cell minus baseline, paired by seed; below 0 is better. For runs on characters or BPE, perplexity and nats are
per word (`lm.units`), so that they stand beside those of words, where a token is a word.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from lm.config import as_plain, with_defaults
from lm.errors import ConfigError
from lm.stats import Difference, Estimate, estimate, paired_difference, pooled_sd, with_holm
from lm.study import Study, identity

# What does not make a cell: the seed, the place of the corpus (its hash is recorded), and a label.
_NO_CELL = {"seed", "data", "preset"}


def _positive_log(value: Any) -> float:
    return math.log(value) if is_number(value) and value > 0 else math.nan


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number (true and false are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def loss_of(record: Mapping[str, Any], split: str) -> float:
    """Nats per word of a split, NaN where there are none."""
    if f"{split}_word_ppl" in record:
        return _positive_log(record[f"{split}_word_ppl"])
    loss = record.get(f"{split}_loss")
    return float(loss) if is_number(loss) else _positive_log(record.get(f"{split}_ppl"))


def ppl_of(loss: float) -> float:
    """Perplexity of a loss in nats."""
    return math.exp(min(loss, 300.0))  # so that its square, in a variance, is a float still


def _activation(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: (record.get("activation") or {}).get(name)


# Value in a ledger record; losses and the gap in nats per word, time in seconds.
METRICS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "valid_loss": lambda record: loss_of(record, "valid"),
    "test_loss": lambda record: loss_of(record, "test"),
    "valid_ppl": lambda record: ppl_of(loss_of(record, "valid")),
    "test_ppl": lambda record: ppl_of(loss_of(record, "test")),
    "train_ppl": lambda record: record.get("train_word_ppl", record.get("train_ppl")),
    "gap": lambda record: loss_of(record, "valid") - _positive_log(METRICS["train_ppl"](record)),
    "valid_bits_per_char": lambda record: record.get("valid_bits_per_char"),
    "test_bits_per_char": lambda record: record.get("test_bits_per_char"),
    "rms": _activation("rms"),
    "mean_abs": _activation("mean_abs"),
    "frac_small": _activation("frac_small"),
    "temporal_rms": _activation("temporal_rms"),
    "best_epoch": lambda record: record.get("best_epoch"),
    "seconds": lambda record: record.get("seconds"),
}


@dataclass(frozen=True)
class Cell:
    """Runs of one configuration: finished ones by seed, (seed, what became of it) of others, the seeds asked for.

    `label` says what differs from the baseline, as `alpha 2`; the baseline's own says all, as `alpha 0, beta 0`.
    """

    values: dict[str, Any]
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    others: tuple[tuple[int, str], ...] = ()
    diverged: bool = False
    asked: frozenset[int] = frozenset()
    estimates: dict[str, Estimate | None] = field(default_factory=dict)
    differences: dict[str, Difference | None] = field(default_factory=dict)
    label: str = ""

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed -> finite value of the metric."""
        found = {seed: METRICS[metric](record) for seed, record in self.runs.items()}
        return {seed: float(value) for seed, value in found.items() if is_number(value)}

    def mean(self, metric: str) -> float | None:
        """Mean of the metric over seeds; None where no run has it."""
        estimate = self.estimates.get(metric)
        return estimate.mean if estimate else None


@dataclass(frozen=True)
class Analysis:
    """A study with its numbers. `split` is what claims are made on; indices point into `cells`."""

    study: Study
    fields: tuple[str, ...]
    cells: tuple[Cell, ...]
    baseline: int | None
    chosen: int | None
    split: str
    noise: float | None
    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        """What perplexity and nats are per: token, or word where the tokens of some runs are no words."""
        return "word" if any(kind_of(_config(record)) != "word" for record in self.records) else "token"

    @property
    def ppl(self) -> str:
        """Perplexity in a heading, with its unit where that is not the token."""
        return "ppl" if self.unit == "token" else "ppl/word"


def kind_of(config: Mapping[str, Any]) -> str:
    """Tokenizer of a configuration; older ones do not name theirs."""
    return config.get("tokenizer", "word")


def label(values: Mapping[str, Any]) -> str:
    """A configuration in words, as `alpha 2, beta 1`."""
    return ", ".join(f"{name} {show(value)}" for name, value in values.items()) or "all runs"


def cell_name(values: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """A cell by what `base`, the baseline, does not have or has another value of; the baseline by all it has."""
    other = {name: v for name, v in values.items() if name not in base or identity(v) != identity(base[name])}
    return label(other or values)


def show(value: Any) -> str:
    """A configuration value as a user writes it: 1.0 as 1, true, 10,20."""
    if isinstance(value, (list, tuple)):
        return ",".join(show(item) for item in value) or "none"
    if not is_number(value):
        return str(value).lower() if isinstance(value, bool) or value is None else str(value)
    return f"{value:.6g}"


def with_estimates(cell: Cell) -> Cell:
    """The cell with an estimate of every metric."""
    return replace(cell, estimates={metric: estimate(cell.by_seed(metric).values()) for metric in METRICS})


def analyse(study: Study, records: Sequence[dict[str, Any]]) -> Analysis:
    """Group the ledger's records into cells and compare every cell with the baseline.

    The result does not depend on the order of the records, but for two runs of one cell and seed: the last counts.
    Raises ConfigError for a record without a seed.
    """
    notes = []
    own = [r for r in records if study.dataset in (r.get("dataset", study.dataset), _config(r).get("dataset"))]
    if strange := [record for record in own if type(_seed(record)) is not int]:
        raise ConfigError(f"{study.ledger}: the line with the id {strange[0]['id']} has no seed; restore or delete it")
    if len(own) < len(records):
        notes.append(f"{len(records) - len(own)} ledger lines of another corpus than {study.dataset} are left out.")
    if len({identity(r["corpus_sha256"]) for r in own if r.get("corpus_sha256")}) > 1:
        notes.append("The runs read different texts under one corpus name (corpus_sha256): do not compare them.")
    twins = _twins(study, own)
    for first, others in twins.items():
        notes.append(f"{first} is the value of {' and '.join(others)} as well, in every cell.")
    fields, cells = _cells(study, own, hidden=set(chain(*twins.values())))
    cells = [with_estimates(cell) for cell in cells]
    wanted = _usual(study) | study.baseline
    matches = [i for i, cell in enumerate(cells) if _agrees(cell.values, wanted)]
    baseline = max(matches, key=lambda i: len(cells[i].runs), default=None)
    base_values = {} if baseline is None else cells[baseline].values
    cells = [replace(cell, label=cell_name(cell.values, base_values)) for cell in cells]
    for split in ("valid", "test"):
        base = cells[baseline].by_seed(f"{split}_loss") if baseline is not None else {}
        differences = with_holm(
            [
                paired_difference(c.by_seed(f"{split}_loss"), base) if i != baseline else None
                for i, c in enumerate(cells)
            ]
        )
        cells = [replace(c, differences=c.differences | {split: d}) for c, d in zip(cells, differences, strict=True)]
    # A cell that diverged on some seed has no finite mean, however good its other seeds are.
    eligible = [i for i, cell in enumerate(cells) if cell.mean("valid_ppl") is not None and not cell.diverged]
    split = "test" if any(cell.mean("test_loss") is not None for cell in cells) else "valid"
    return Analysis(
        study=study,
        fields=fields,
        cells=tuple(cells),
        baseline=baseline,
        chosen=min(eligible, key=lambda i: cells[i].mean("valid_ppl"), default=None),
        split=split,
        noise=pooled_sd(cell.by_seed(f"{split}_loss").values() for cell in cells),
        records=tuple(own),
        notes=tuple(notes),
    )


def _config(record: Mapping[str, Any]) -> dict[str, Any]:
    return with_defaults(record.get("config") or {})  # an older line lacks younger fields


def _usual(study: Study) -> dict[str, Any]:
    """What a run of the study has in fields that its grid does not name, but a search may vary."""
    return as_plain(study.config())


def _seed(record: Mapping[str, Any]) -> int:
    return record.get("seed", _config(record).get("seed"))


def _agrees(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether `values` has what `wanted` says of the fields that both name."""
    return all(identity(values[name]) == identity(wanted[name]) for name in values.keys() & wanted.keys())


def _rank(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A sort key for configurations: numbers by size, everything else as text."""
    return [("", v) if is_number(v) else ("text", show(v)) for v in values.values()]


def _twins(study: Study, records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Field of the grid that varies -> later fields of the grid that always have its value."""
    rows = [*study.cells, *map(_config, records)]
    by_values: dict[Any, list[str]] = defaultdict(list)
    for name in study.cells[0]:
        by_values[tuple(identity(row.get(name)) for row in rows)].append(name)
    return {first: others for values, (first, *others) in by_values.items() if others and len(set(values)) > 1}


def _varying(study: Study, records: Sequence[dict[str, Any]], hidden: Set[str]) -> tuple[str, ...]:
    """The grid's fields, then what else differs between runs that agree in these (an edited [flags], a random search).

    A field that follows from the grid's fields is left out, and so are those of the grid that are `hidden`.
    """
    declared = tuple(name for name in study.cells[0] if name not in hidden)
    found: dict[Any, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        config = _config(record)
        group = found[tuple(identity(config.get(name)) for name in declared)]
        for name, value in config.items():
            group[name].add(identity(value))
    extra = {name for group in found.values() for name, seen in group.items() if len(seen) > 1}
    return declared + tuple(sorted(extra - _NO_CELL - set(declared)))


def _cells(study: Study, records: Sequence[dict[str, Any]], hidden: Set[str]) -> tuple[tuple[str, ...], list[Cell]]:
    """Fields that make the cells, and the cells: those asked for in the study's order, then further ones by value."""
    fields, usual = _varying(study, records, hidden), _usual(study)
    grouped: dict[Any, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for record in records:
        values = {name: _config(record).get(name) for name in fields}
        grouped.setdefault(identity(values), (values, []))[1].append(record)
    left = sorted(grouped.values(), key=lambda group: _rank(group[0]))
    cells = []
    for asked, seeds in zip(study.cells, study.cell_seeds, strict=True):
        wanted = usual | asked
        here = [group for group in left if _agrees(group[0], wanted)]
        left = [group for group in left if not _agrees(group[0], wanted)]
        empty = {name: wanted[name] for name in fields if name in wanted}
        cells += [_cell(*group, seeds) for group in here] or [_cell(empty, [], seeds)]
    return fields, cells + [_cell(*group, ()) for group in left]


def _cell(values: dict[str, Any], records: Sequence[dict[str, Any]], seeds: Sequence[int]) -> Cell:
    runs, others = {}, {}
    for record in records:
        seed, status = _seed(record), record.get("status", "unknown")
        if status == "completed" and math.isfinite(loss_of(record, "valid")):
            runs[seed] = record
        else:
            reason = record.get("error") or ("no finite valid loss" if status == "completed" else "")
            others[seed] = f"{status}: {reason}" if reason else status
    for seed in seeds:
        others.setdefault(seed, "not run")
    unfinished = tuple(sorted((seed, fate) for seed, fate in others.items() if seed not in runs))
    diverged = any(fate.startswith("diverged") for _, fate in unfinished)
    return Cell(dict(values), dict(sorted(runs.items())), unfinished, diverged, frozenset(seeds))
