"""From a study and its ledger to numbers: configurations, means over seeds, differences to the baseline.

Coefficients are chosen on valid (`rank_on_valid`), claims are made on test: p values belong to test (to valid only
where nothing has been tested). Differences are in nats per token (per word for runs on characters or BPE),
configuration minus baseline, paired by seed where both ran on one kind of device; below 0 is better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from lm.base.errors import ConfigError
from lm.base.numbers import is_number
from lm.config.values import as_plain
from lm.study.records import config_of, configuration_name, loss_of, show
from lm.study.specification import Study, identity
from lm.tables.configurations import Configuration, difference_by_seed, unlike_devices, with_estimates
from lm.tables.stats import pooled_sd, with_holm

# What does not make a configuration: the seed, the place of the corpus (its hash is recorded), and a label.
_IDENTICAL = {"seed", "data", "preset"}
# What a study often varies together, and shows as one.
_DROPOUTS = ("dropout", "dropouth", "dropouti")


@dataclass(frozen=True)
class Analysis:
    """A study with its numbers. Claims are made on `split`; indices, best first, point into `configurations`."""

    study: Study
    fields: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    baseline: int | None
    ranking: tuple[int, ...]
    split: str
    noise: float | None
    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def compares(self) -> bool:
        """Whether there is more than one configuration."""
        return len(self.configurations) > 1

    @property
    def chosen(self) -> int | None:
        """The best configuration on valid."""
        return self.ranking[0] if self.ranking else None

    @property
    def base(self) -> Configuration | None:
        """The baseline, if it is among the configurations."""
        return None if self.baseline is None else self.configurations[self.baseline]

    @property
    def unit(self) -> str:
        """What perplexity and nats are per: token, or word where the tokens of some runs are no words."""
        return "word" if any(config_of(record)["tokenizer"] != "word" for record in self.records) else "token"

    @property
    def ppl(self) -> str:
        """Perplexity in a heading, with its unit where that is not the token."""
        return "ppl" if self.unit == "token" else "ppl/word"


def rank_on_valid(configurations: Sequence[Configuration], baseline: int | None) -> list[int]:
    """Indices of configurations, best first: by the valid loss less the baseline's, paired by seed.

    A configuration takes part if it has every seed of the baseline, for one good seed is no mean of three; where none
    but the baseline has, all do that share one. Before the baseline has run, configurations are ranked by their mean
    loss. One that diverged on some seed has no finite mean, however good its other seeds are.
    """
    means = {
        i: mean
        for i, configuration in enumerate(configurations)
        if (mean := configuration.mean("valid_loss")) is not None and not configuration.diverged
    }
    if baseline is None or baseline not in means:
        return sorted(means, key=means.__getitem__)
    pairs = {i: d for i in means if (d := configurations[i].differences["valid"])}
    full = {i: d for i, d in pairs.items() if d.n == len(configurations[baseline].runs)}
    losses = {baseline: 0.0} | {i: d.mean for i, d in (full or pairs).items()}
    return sorted(losses, key=losses.__getitem__)


def analyse(study: Study, records: Sequence[dict[str, Any]]) -> Analysis:
    """Group the ledger's records into configurations and compare every configuration with the baseline.

    The result does not depend on the order of the records; of two runs of one configuration and seed the last counts.
    Raises ConfigError for a record without a seed.
    """
    notes = []
    own = [r for r in records if study.dataset in (r.get("dataset", study.dataset), config_of(r).get("dataset"))]
    if strange := [record for record in own if type(_seed(record)) is not int]:
        raise ConfigError(f"{study.ledger}: the line with the id {strange[0]['id']} has no seed; restore or delete it")
    if len(own) < len(records):
        notes.append(f"{len(records) - len(own)} ledger lines of another corpus than {study.dataset} are left out.")
    if len({identity(r["corpus_sha256"]) for r in own if r.get("corpus_sha256")}) > 1:
        notes.append("The runs read different texts under one corpus name (corpus_sha256): do not compare them.")
    twins = _twins(study, own)
    for first, others in twins.items():
        notes.append(f"{first} is the value of {' and '.join(others)} as well, in every configuration.")
    fields, configurations = _configurations(study, own, hidden=set(chain(*twins.values())))
    configurations = [with_estimates(configuration) for configuration in configurations]
    wanted = _usual(study) | study.baseline
    matches = [i for i, configuration in enumerate(configurations) if _agrees(configuration.values, wanted)]
    baseline = max(matches, key=lambda i: len(configurations[i].runs), default=None)
    base_values = {} if baseline is None else configurations[baseline].values
    configurations = [
        replace(configuration, label=configuration_name(configuration.values, base_values))
        for configuration in configurations
    ]
    if baseline is not None:
        notes += _unlike_devices(configurations, configurations[baseline])
    for split in ("valid", "test"):
        differences = with_holm(
            [
                difference_by_seed(c, configurations[baseline], f"{split}_loss") if baseline not in (None, i) else None
                for i, c in enumerate(configurations)
            ]
        )
        configurations = [
            replace(c, differences=c.differences | {split: d}) for c, d in zip(configurations, differences, strict=True)
        ]
    split = "test" if any(configuration.mean("test_loss") is not None for configuration in configurations) else "valid"
    return Analysis(
        study=study,
        fields=fields,
        configurations=tuple(configurations),
        baseline=baseline,
        ranking=tuple(rank_on_valid(configurations, baseline)),
        split=split,
        noise=pooled_sd(configuration.by_seed(f"{split}_loss").values() for configuration in configurations),
        records=tuple(own),
        notes=tuple(notes),
    )


def _unlike_devices(configurations: Sequence[Configuration], baseline: Configuration) -> list[str]:
    """A note a seed with which the baseline ran on another device than other configurations."""
    notes = []
    for seed in baseline.runs:
        if others := [c.label for c in configurations if seed in unlike_devices(c, baseline)]:
            notes.append(
                f"Seed {seed}: the baseline and {'; '.join(others)} ran on different kinds of device (CPU, GPU), where "
                "one seed draws different initial weights and masks. They are no pairs, so these differences are "
                "unpaired."
            )
    return notes


def _usual(study: Study) -> dict[str, Any]:
    """What a run of the study has in fields that its grid does not name, but a search may vary.

    The flags alone may make no run, so it is the baseline's. Only their file knows the checksum of word vectors.
    """
    usual = as_plain(study.config(**study.baseline))
    del usual["init_vectors_sha256"]
    return usual


def _seed(record: Mapping[str, Any]) -> int:
    return record.get("seed", config_of(record).get("seed"))


def _agrees(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether `values` has what `wanted` says of the fields that both name."""
    return all(identity(values[name]) == identity(wanted[name]) for name in values.keys() & wanted.keys())


def _rank(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A sort key for configurations: numbers by size, everything else as text."""
    return [("", v) if is_number(v) else ("text", show(v)) for v in values.values()]


def _twins(study: Study, records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """A dropout of the grid that varies -> later ones of the grid that always have its value."""
    rows = [*study.configurations, *map(config_of, records)]
    by_values: dict[Any, list[str]] = defaultdict(list)
    for name in (name for name in study.configurations[0] if name in _DROPOUTS):
        by_values[tuple(identity(row.get(name)) for row in rows)].append(name)
    return {first: others for values, (first, *others) in by_values.items() if others and len(set(values)) > 1}


def _varying(study: Study, records: Sequence[dict[str, Any]], hidden: Set[str]) -> tuple[str, ...]:
    """The grid's fields, then what else differs between runs that agree in these (an edited [flags], a random search).

    A field that follows from the grid's fields is left out, and so are those of the grid that are `hidden`.
    """
    declared = tuple(name for name in study.configurations[0] if name not in hidden)
    found: dict[Any, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        config = config_of(record)
        group = found[tuple(identity(config.get(name)) for name in declared)]
        for name, value in config.items():
            group[name].add(identity(value))
    extra = {name for group in found.values() for name, seen in group.items() if len(seen) > 1}
    return declared + tuple(sorted(extra - _IDENTICAL - set(declared)))


def _configurations(
    study: Study, records: Sequence[dict[str, Any]], hidden: Set[str]
) -> tuple[tuple[str, ...], list[Configuration]]:
    """Fields that make the configurations, and these: those asked for in the study's order, then others by value."""
    fields = _varying(study, records, hidden)
    usual = _usual(study)
    grouped: dict[Any, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for record in records:
        config = config_of(record)
        values = {name: config.get(name) for name in fields}
        grouped.setdefault(identity(values), (values, []))[1].append(record)
    groups = sorted(grouped.values(), key=lambda group: _rank(group[0]))
    known = [name for name in fields if name in usual | study.configurations[0]]

    def key(values: Mapping[str, Any]) -> Any:
        return identity([values[name] for name in known])

    left = defaultdict(list)
    for group in groups:
        left[key(group[0])].append(group)
    configurations = []
    for asked, seeds in zip(study.configurations, study.configuration_seeds, strict=True):
        wanted = usual | asked
        here = left.pop(key(wanted), [])
        empty = {name: wanted[name] for name in known}
        configurations += [_configuration(*group, seeds) for group in here] or [_configuration(empty, [], seeds)]
    return fields, configurations + [_configuration(*group, ()) for group in groups if key(group[0]) in left]


def _configuration(values: dict[str, Any], records: Sequence[dict[str, Any]], seeds: Sequence[int]) -> Configuration:
    runs = {}
    others = {}
    for record in records:
        seed = _seed(record)
        status = record.get("status", "unknown")
        if status == "completed" and math.isfinite(loss_of(record, "valid")):
            runs[seed] = record
        else:
            reason = record.get("error") or ("no finite valid loss" if status == "completed" else "")
            others[seed] = f"{status}: {reason}" if reason else status
    for seed in seeds:
        others.setdefault(seed, "not run")
    unfinished = tuple(sorted((seed, fate) for seed, fate in others.items() if seed not in runs))
    return Configuration(dict(values), dict(sorted(runs.items())), unfinished, frozenset(seeds))
