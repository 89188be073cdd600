"""Studies, runs and published figures side by side: `python -m lm.report --compare A B [C ...]`.

Configurations are matched on the fields that vary in the compared studies, and on the corpus. The first study or run on
the command line is the reference. Its seeds are paired with another's where at least two are the same and ran on the
same kind of device, else Welch's t-test compares the two samples. A published figure is one run: it is held against the
spread of our seeds, as one more draw.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Any

from lm.base.errors import ConfigError
from lm.base.numbers import perplexity
from lm.config.values import as_plain, make_config
from lm.study.records import METRICS, label, show
from lm.study.specification import identity
from lm.tables.configurations import Configuration, unlike_devices, with_estimates
from lm.tables.published import MARKS, NO_PROTOCOL, PUBLISHED, PUBLISHED_FILE, comparable_ppl, load_published
from lm.tables.sources import load_source
from lm.tables.stats import Difference, draw_difference, paired_difference, welch_difference, with_holm
from lm.tables.text import aligned, interval, mean_sd, number, signed, verdict

logger = logging.getLogger(__name__)
_HEADER = (
    "configuration", "source", "verdict", "n", "valid ppl", "test ppl", "on", "diff nats", "diff ppl", "gap",
    "rms h", "rms dh",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One source's part of one matched configuration; `difference` is to the reference, on `split`."""

    source: str
    configuration: Configuration
    dataset: str
    values: dict[str, Any]
    config: dict[str, Any]
    reference: bool = False
    reference_diverged: bool = False
    split: str | None = None
    difference: Difference | None = None
    ppl_difference: float | None = None
    quoted_from: str = ""
    other_protocol: str = ""
    config_differs: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Whether the difference exceeds seed noise, in a few words."""
        if self.reference:
            return "reference"
        if self.other_protocol:
            return f"not the same protocol: {self.other_protocol}"
        if self.configuration.diverged:
            return "diverged on some seed"
        if self.reference_diverged:
            return "the reference diverged on some seed"
        return verdict(self.difference)


def _texts(configuration: Configuration) -> set[Any]:
    return {identity(record.get("corpus_sha256")) for record in configuration.runs.values()}


def compare(names: Sequence[str]) -> list[Row]:
    """Rows of all sources, matched: all rows of one configuration follow each other, in the order of `names`.

    Raises ConfigError for fewer than two different sources, or one that cannot be read.
    """
    if len(set(names)) < max(2, len(names)):
        raise ConfigError("--compare: name at least two different sources")
    sources = {name: load_source(name) for name in names if name != PUBLISHED}
    reference = next(name for name in names if name != PUBLISHED)
    fields = tuple(dict.fromkeys(field for source in sources.values() for field in source.fields))
    groups: dict[Any, dict[str, Row]] = {}
    for name, source in sources.items():
        for configuration, config in zip(source.configurations, source.configs, strict=True):
            values = {field: config.get(field) for field in fields}
            row = Row(name, configuration, source.dataset, values, config, reference=name == reference)
            groups.setdefault((source.dataset, identity(values)), {})[name] = row
    rows: list[Row] = []
    for group in groups.values():
        first = group.get(reference)
        for name in names:
            if name == PUBLISHED:
                rows += _published_rows(next(iter(group.values())), first)
            elif name in group:
                rows.append(_against(group[name], first) if first and name != reference else group[name])
    if PUBLISHED in names and not any(row.quoted_from for row in rows):
        logger.warning("published: no figure for this corpus, preset and configuration in %s", PUBLISHED_FILE)
    differences = with_holm([row.difference for row in rows])
    return [replace(row, difference=d) for row, d in zip(rows, differences, strict=True)]


def _common_split(row: Row, first: Row) -> str | None:
    """Test where both have it, else valid, else None."""
    has = [
        split
        for split in ("test", "valid")
        if row.configuration.mean(f"{split}_loss") and first.configuration.mean(f"{split}_loss")
    ]
    return has[0] if has else None


def _against(row: Row, first: Row) -> Row:
    """The row with its difference to the reference."""
    ours, theirs = row.config, first.config
    skipped = set(row.values) | (
        {"seed"} if max(len(row.configuration.runs), len(first.configuration.runs)) > 1 else set()
    )
    differs = tuple(
        f"{name} {show(theirs[name])} / {show(ours[name])}"
        for name in theirs
        if name in ours and name not in skipped and identity(ours[name]) != identity(theirs[name])
    )
    row = replace(row, config_differs=differs)
    if (split := _common_split(row, first)) is None:
        return row
    a = row.configuration.by_seed(f"{split}_loss")
    b = first.configuration.by_seed(f"{split}_loss")
    common = a.keys() & b.keys()
    difference = None
    if len(common) > 1 and not unlike_devices(row.configuration, first.configuration):
        a, b = ({seed: loss for seed, loss in losses.items() if seed in common} for losses in (a, b))
        difference = paired_difference(a, b)
    if difference is None:
        difference = welch_difference(list(a.values()), list(b.values()))
    other = "" if _texts(row.configuration) == _texts(first.configuration) else "another text, by its corpus_sha256"
    if other or row.configuration.diverged or first.configuration.diverged:
        difference = difference.untested()
    change = fmean(map(perplexity, a.values())) - fmean(map(perplexity, b.values()))
    lost = bool(first.configuration.diverged)
    return replace(
        row, reference_diverged=lost, split=split, difference=difference, ppl_difference=change, other_protocol=other
    )


def _published_rows(row: Row, first: Row | None) -> list[Row]:
    """The published figures of a row's corpus, preset and varying configuration, held against the reference."""
    config = row.config
    rows = []
    for figure in load_published():
        if (figure["dataset"], figure["preset"]) != (row.dataset, config.get("preset")):
            continue
        there = as_plain(make_config(figure["preset"], figure["dataset"], **figure["config"]))
        there = {name: value for name, value in there.items() if name not in NO_PROTOCOL}
        if any(identity(there[name]) != identity(value) for name, value in row.values.items() if name in there):
            continue
        differs = [
            f"{name} {show(value)} there, {show(config[name])} here"
            for name, value in there.items()
            if name in config and identity(config[name]) != identity(value)
        ]
        ppl = comparable_ppl(figure, {"valid": there["eval_batch_size"], "test": there["test_batch_size"]})
        quoted = Row(
            source=f"quoted: {figure['label']}",
            configuration=with_estimates(Configuration(values={}, runs={0: ppl})),
            dataset=row.dataset,
            values=row.values,
            config=config,
            quoted_from=f"{figure['source']} ({MARKS[figure['mark']]}){_divisor_text(figure)}",
            other_protocol="; ".join(([figure["note"]] if "note" in figure else []) + differs),
        )
        rows.append(_quoted_against(quoted, first))
    return rows


def _divisor_text(figure: dict[str, Any]) -> str:
    """What was converted, for a figure whose loss was divided by tokens; else nothing."""
    if figure.get("divisor") != "tokens":
        return ""
    published = [f"{figure[f'{split}_ppl']:.2f} on {split}" for split in ("valid", "test") if f"{split}_ppl" in figure]
    return f", published as {' and '.join(published)} per token, shown per target"


def _quoted_against(quoted: Row, first: Row | None) -> Row:
    if first is None or (split := _common_split(quoted, first)) is None:
        return quoted
    single = quoted.configuration.estimated(f"{split}_loss").mean
    sample = list(first.configuration.by_seed(f"{split}_loss").values())
    difference = draw_difference(single, sample)
    if quoted.other_protocol or first.configuration.diverged:
        difference = difference.untested()
    change = quoted.configuration.estimated(f"{split}_ppl").mean - first.configuration.estimated(f"{split}_ppl").mean
    lost = bool(first.configuration.diverged)
    return replace(quoted, reference_diverged=lost, split=split, difference=difference, ppl_difference=change)


def compare_text(rows: Sequence[Row]) -> str:
    """The comparison as a table for a terminal, with sources of quoted figures and differing configurations below.

    Configurations that only one source has are left out, unless there are no others.
    """
    groups = [list(group) for _, group in groupby(rows, key=lambda row: (row.dataset, identity(row.values)))]
    matched = [group for group in groups if len(group) > 1]
    several = len({row.dataset for row in rows}) > 1
    lines: list[list[str]] = []
    below: dict[str, None] = {}  # in order, each once
    for group in matched or groups:
        name = (f"{group[0].dataset}: " if several else "") + label(group[0].values)
        lines += [[name if row is group[0] else "", *_line(row)] for row in group]
        for row in group:
            for seed, fate in row.configuration.others:
                if fate != "not run":
                    below[f"{row.source}, {label(row.values)}, without a result: seed {seed}: {fate}"] = None
            if row.quoted_from:
                below[f"{row.source}: from {row.quoted_from}; not measured here"] = None
            if row.config_differs:
                below[f"{row.source} against the reference: {'; '.join(row.config_differs)} (reference / it)"] = None
    if len(matched) < len(groups):
        left = len(groups) - len(matched)
        shown = "left out" if matched else "shown alone"
        below[f"configurations without a counterpart in another source, {shown}: {left}"] = None
    if any(row.config["tokenizer"] != "word" for row in rows):
        below["perplexity and nats are per word, for runs on characters or BPE too"] = None
    below[
        "diff: source minus reference (below 0: the source is better), 95 % interval; p adjusted by Holm's method"
    ] = None
    return aligned(_HEADER, lines, 3) + "\n" + "".join(f"{line}\n" for line in below)


def _line(row: Row) -> list[str]:
    found = row.configuration
    change = row.ppl_difference
    return [
        row.source, row.verdict, "1" if row.quoted_from else str(len(found.runs)),
        mean_sd(found.estimates.get("valid_ppl")), mean_sd(found.estimates.get("test_ppl")),
        row.split or "", interval(row.difference),
        "" if change is None else signed(change, 2),
        number(found.mean("gap"), 3), number(found.mean("rms"), 4), number(found.mean("temporal_rms"), 4),
    ]  # fmt: skip


def compare_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The comparison as one object."""
    return {
        "rows": [
            {
                "config": row.values, "dataset": row.dataset, "source": row.source, "reference": row.reference,
                "quoted_from": row.quoted_from or None, "other_protocol": row.other_protocol or None,
                "split": row.split,
                "difference": asdict(row.difference) if row.difference else None,
                "ppl_difference": row.ppl_difference, "verdict": row.verdict,
                "config_differs": list(row.config_differs), "unfinished": dict(row.configuration.others),
                **{name: asdict(e) if (e := row.configuration.estimates.get(name)) else None for name in METRICS},
            }
            for row in rows
        ]
    }  # fmt: skip
