"""A study's page: README.md, table.csv and the plots, and the same as text and as JSON for a terminal."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable
from typing import Any

from lm.base.files import write_bytes
from lm.base.numbers import is_number
from lm.study.ledger import read_ledger
from lm.study.records import METRICS, show
from lm.study.specification import LEDGER_FILE, load_study
from lm.tables.analysis import Analysis, analyse
from lm.tables.answer import answer
from lm.tables.configurations import Configuration
from lm.tables.plots import draw_plots
from lm.tables.text import aligned, interval, markdown, mean_sd, number, p_text, signed

# Where there is more than one configuration.
_NAMES = "A configuration is named by the values in which it differs from the baseline."
_TEST = (
    "The 95 % t-interval in brackets and *p*, adjusted by Holm's method over the comparisons of this table, are those "
    "of {split}."
)
_UNPAIRED = (
    "*Unpaired* ones are over the same seeds{test}, because some ran on another kind of device than the baseline."
)
_WELCH = " by Welch's t-test"
_AMONG = ", among those that ran with all seeds of the baseline (if none did, with one of them) and diverged on none"
_LESS = ", its difference on test less so, since the same runs give both"
# Heading -> what it shows of the last layer's activations.
_ACTIVATIONS = {
    "rms h": "is the root mean square",
    "mean abs h": "the mean of |h|",
    "near 0": "the share with |h| < 0.01",
    "exactly 0": "the share with h = 0",
    "rms dh": "the root mean square of the change from one step to the next",
}


def columns(analysis: Analysis) -> list[tuple[str, Callable[[Configuration], str]]]:
    """Headings of the table and what each shows of a configuration; columns without any value are left out."""

    def difference(split: str) -> Callable[[Configuration], str]:
        full = split == analysis.split

        def text(configuration: Configuration) -> str:
            if (d := configuration.differences[split]) is None:
                return ""
            remarks = [f"n = {d.n}"] * (d.n < len(configuration.runs)) + ["unpaired"] * (d.welch)
            return (interval(d) if full else signed(d.mean)) + (f" ({', '.join(remarks)})" if remarks else "")

        return text

    def p(configuration: Configuration) -> str:
        d = configuration.differences[analysis.split]
        return p_text(d.p_holm).removeprefix("= ") if d and d.p_holm is not None else ""

    def share(metric: str) -> Callable[[Configuration], str]:
        def text(configuration: Configuration) -> str:
            mean = configuration.mean(metric)
            return "" if mean is None else f"{100 * mean:.1f} %"

        return text

    def minutes(configuration: Configuration) -> str:
        seconds = configuration.mean("seconds")
        return "" if seconds is None else f"{seconds / 60:.1f}"

    ppl = analysis.ppl
    found: list[tuple[str, Callable[[Configuration], str]]] = [
        ("n", lambda c: str(len(c.runs))),
        (f"valid {ppl}", lambda c: mean_sd(c.estimates["valid_ppl"])),
        (f"test {ppl}", lambda c: mean_sd(c.estimates["test_ppl"])),
        ("valid bits/char", lambda c: mean_sd(c.estimates["valid_bits_per_char"], 4)),
        ("test bits/char", lambda c: mean_sd(c.estimates["test_bits_per_char"], 4)),
        ("diff valid", difference("valid")),
        ("diff test", difference("test")),
        ("p", p),
        (f"train {ppl}", lambda c: number(c.mean("train_ppl"), 2)),
        ("gap", lambda c: number(c.mean("gap"), 3)),
        ("rms h", lambda c: number(c.mean("rms"), 4)),
        ("mean abs h", lambda c: number(c.mean("mean_abs"), 4)),
        ("near 0", share("frac_small")),
        ("exactly 0", share("frac_zero")),
        ("rms dh", lambda c: number(c.mean("temporal_rms"), 4)),
        ("min", minutes),
    ]
    kept = {"n", f"valid {ppl}", f"test {ppl}"}
    if not any(configuration.mean("frac_zero") for configuration in analysis.configurations):
        found = [(name, text) for name, text in found if name != "exactly 0"]  # as always without ReLU
    return [
        (name, text)
        for name, text in found
        if name in kept or any(text(configuration) for configuration in analysis.configurations)
    ]


def table(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the configurations, then published figures, marked as quoted; 2 columns of text come first."""
    shown = columns(analysis)
    rows = []
    for i, configuration in enumerate(analysis.configurations):
        places = (("baseline", analysis.baseline), ("chosen", analysis.chosen)) if analysis.compares else ()
        marks = [name for name, at in places if at == i]
        rows.append([", ".join(marks), configuration.label, *(text(configuration) for _, text in shown)])
    for i, figure in enumerate(analysis.study.quoted, start=1):
        texts = {f"{split} {analysis.ppl}": number(figure.get(f"{split}_ppl"), 2) for split in ("valid", "test")}
        rows.append(["quoted", f"{figure['label']} [{i}]", *(texts.get(name, "") for name, _ in shown)])
    return ["", "configuration", *(name for name, _ in shown)], rows


def unfinished(analysis: Analysis) -> list[str]:
    """One line a configuration and fate: what failed, diverged, or has not run."""
    lines = []
    for configuration in analysis.configurations:
        fates: dict[str, list[str]] = {}
        for seed, fate in configuration.others:
            fates.setdefault(" ".join(fate.split()), []).append(str(seed))
        for fate, seeds in fates.items():
            lines.append(f"{configuration.label}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}: {fate}")
    return lines


def provenance(analysis: Analysis) -> str:
    """The command that makes these figures, and the code, machine and time that made them."""
    study = analysis.study
    records = analysis.records
    commits = set()
    for git in filter(None, (record.get("git") for record in records)):
        changed = " with uncommitted changes" if git.get("dirty") else ""
        commits.add(str(git.get("commit") or "unknown")[:12] + changed)
    versions = [record.get("versions") or {} for record in records]
    machine = []
    for key, form in (("gpu", "{}"), ("cpu", "{}"), ("threads", "threads a run: {}"), ("torch", "PyTorch {}")):
        values = sorted({str(v[key]) for v in versions if v.get(key) is not None})
        machine += [form.format(" and ".join(values))] if values else []
    seconds = math.fsum(sorted(r["seconds"] for r in records if is_number(r.get("seconds"))))
    setting = [f"corpus {study.dataset}"] + ([f"preset {study.preset}"] if study.preset else [])
    setting += [f"{name} {show(value)}" for name, value in study.flags.items() if name not in study.configurations[0]]
    lines = [f"Reproduce: `{study.command}` without `{LEDGER_FILE}` ({', '.join(setting)})."]
    if records:
        commit = ", ".join(sorted(commits)) or "not recorded"
        lines.append(f"Commit: {commit}. Machine: {', '.join(machine) or 'not recorded'}.")
        lines.append(f"Cost: {seconds / 3600:.2f} hours of computing in all, number of runs: {len(records)}.")
    return "\n".join(lines)


def below_table(analysis: Analysis) -> list[str]:
    """Sources of the quoted figures, what has no result, and warnings."""
    lines = []
    for i, figure in enumerate(analysis.study.quoted, start=1):
        protocol = f"; protocol: {figure['protocol']}" if figure.get("protocol") else ""
        lines.append(f"[{i}] quoted, not measured here: {figure['label']}, from {figure['source']}{protocol}")
    lines += [f"without a result: {line}" for line in unfinished(analysis)]
    return lines + list(analysis.notes)


def readme(analysis: Analysis, plots: list[tuple[str, str]]) -> str:
    """The study's page; `plots` are pairs of file name and caption."""
    study = analysis.study
    blocks = [
        f"# {study.title}",
        study.question,
        f"**Answer.** {answer(analysis)}",
        markdown(*table(analysis), 2).rstrip(),
    ]
    blocks += ["\n".join(f"- {line}" for line in below_table(analysis)), provenance(analysis)]
    blocks += [_NAMES if analysis.compares else "", how_to_read(analysis)]
    blocks += [f"![{caption}]({file})\n\n{caption}" for file, caption in plots]
    blocks += ["Generated by `python -m lm.report` from `study.toml` and `runs.jsonl`; not edited by hand."]
    return "\n\n".join(block for block in blocks if block) + "\n"


def how_to_read(analysis: Analysis) -> str:
    """A list of what the table's headings and words mean, of those that it holds."""
    shown = {name for name, _ in columns(analysis)}
    one = max(len(configuration.runs) for configuration in analysis.configurations) == 1
    train = "*train* is without dropout" if f"train {analysis.ppl}" in shown else ""
    first = "One seed" if one else "*Perplexity* is the mean ± sd over n seeds"
    lines = ["; ".join(filter(None, (first, train))) + "."]
    lines += [_differences(analysis)] if "diff valid" in shown else []
    lines += [_choice(analysis)] if analysis.compares and analysis.chosen is not None else []
    lines += ["*gap* = valid loss - ln(train perplexity), in nats."] if "gap" in shown else []
    said = [f"*{name}* {text}" for name, text in _ACTIVATIONS.items() if name in shown]
    lines += [f"Of the last layer's activations h, {', '.join(said)}."] if said else []
    lines += ["*min* is minutes a run, whatever else the machine did meanwhile."] if "min" in shown else []
    wrap = textwrap.TextWrapper(120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(map(wrap.fill, lines))


def _differences(analysis: Analysis) -> str:
    """What the differences are; only two seeds or more give an interval."""
    found = [d for configuration in analysis.configurations for d in configuration.differences.values() if d]
    tested = any(d.p is not None for d in found)
    text = f"*Differences* are to the baseline, in nats per {analysis.unit}, paired by seed; below 0 is better."
    text += f" {_TEST.format(split=analysis.split)}" if tested else ""
    return f"{text} {_UNPAIRED.format(test=_WELCH if tested else '')}" if any(d.welch for d in found) else text


def _choice(analysis: Analysis) -> str:
    """How the configuration marked *chosen* was chosen, and what that flatters."""
    several = analysis.base is not None and len(analysis.base.runs) > 1
    if analysis.base is not None and analysis.base.diverged:
        return "*Chosen* is the configuration with the lowest loss on valid; the baseline diverged on some seed."
    text = f"*Chosen* is the configuration with the lowest difference on valid{_AMONG if several else ''}."
    if analysis.chosen == analysis.baseline:
        return text
    flattered = "Its difference on valid is flattered by that choice"
    return f"{text} {flattered}{_LESS if analysis.split == 'test' else ''}."


def configuration_values(analysis: Analysis, index: int) -> dict[str, Any]:
    """All numbers of a configuration, flat, unrounded; absent ones are None."""
    configuration = analysis.configurations[index]
    values: dict[str, Any] = {"baseline": index == analysis.baseline, "chosen": index == analysis.chosen}
    values |= {
        "n": len(configuration.runs),
        "seeds": " ".join(map(str, configuration.runs)),
        "unfinished": len(configuration.others),
    }
    for metric in METRICS:
        found = configuration.estimates[metric]
        values |= {f"{metric}_mean": found.mean if found else None, f"{metric}_sd": found.sd if found else None}
    for split, difference in configuration.differences.items():
        for part in ("mean", "n", "low", "high", "p", "p_holm", "welch"):
            values[f"diff_{split}_{part}"] = getattr(difference, part, None)
    return values


def table_csv(analysis: Analysis) -> str:
    """Every number of every configuration, and the quoted figures; six significant digits."""
    rows = []
    for i, configuration in enumerate(analysis.configurations):
        own = {name: show(configuration.values[name]) for name in analysis.fields if name in configuration.values}
        rows.append({"configuration": configuration.label, **own, **configuration_values(analysis, i)})
    for figure in analysis.study.quoted:
        ppl = {f"{split}_ppl_mean": figure.get(f"{split}_ppl") for split in ("valid", "test")}
        rows.append({"configuration": figure["label"], "quoted_from": figure["source"], **ppl})
    names = ["configuration", *analysis.fields, *configuration_values(analysis, 0), "quoted_from"]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(names)), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else _inert(v) for k, v in row.items()})
    return out.getvalue()


def _inert(value: Any) -> Any:
    """A value of table.csv; text that a spreadsheet would compute is marked as text by an apostrophe."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def report(path: str) -> Analysis:
    """Write README.md, table.csv and the plots of one study.

    Raises ConfigError for a bad study, and OSError, naming the file, where one cannot be written.
    """
    study = load_study(path)
    analysis = analyse(study, read_ledger(study.ledger))
    plots = draw_plots(analysis, study.path)
    for name, text in (("table.csv", table_csv(analysis)), ("README.md", readme(analysis, plots))):
        write_bytes(study.path / name, text.encode())
    return analysis


def report_text(analysis: Analysis) -> str:
    """What is printed: title, answer, table, what is missing, and how to reproduce it."""
    below = "".join(f"{line}\n" for line in below_table(analysis))
    title = analysis.study.title
    return f"{title}\n{answer(analysis)}\n\n{aligned(*table(analysis), 2)}\n{below}{provenance(analysis)}\n"


def report_json(analysis: Analysis) -> dict[str, Any]:
    """The same as one object."""
    study = analysis.study
    configurations = [
        {"config": configuration.values, **configuration_values(analysis, i)}
        for i, configuration in enumerate(analysis.configurations)
    ]
    return {
        "study": str(study.path), "title": study.title, "question": study.question, "dataset": study.dataset,
        "preset": study.preset, "answer": answer(analysis), "claims_on": analysis.split,
        "configurations": configurations,
        "quoted": list(study.quoted), "unfinished": unfinished(analysis), "notes": list(analysis.notes),
    }  # fmt: skip
