"""A study's answer in plain words, from its numbers."""

from __future__ import annotations

from collections.abc import Callable

from lm.tables.analysis import Analysis
from lm.tables.configurations import Configuration, on_seeds
from lm.tables.stats import Difference
from lm.tables.text import interval, percent, signed, verdict


def answer(analysis: Analysis) -> str:
    """The study's answer in words: best configuration, difference, seed noise, what became of the activations."""
    planned = len(analysis.study.runs())
    done = sum(len(c.asked & (c.runs.keys() | c.diverged)) for c in analysis.configurations)
    if analysis.chosen is None:
        return "Nothing has run yet." if not analysis.records else "No run has finished with a usable result yet."
    unfinished = "" if done >= planned else f" So far {done} of {planned} runs are finished."
    best = analysis.configurations[analysis.chosen]
    base = analysis.base
    if base is None or not base.runs:
        name = base.label if base else "not in the ledger"
        return f"Best on valid: {best.label}, {_ppl(best)}; the baseline ({name}) has not finished yet.{unfinished}"
    if best is not base:
        best, base = _paired(best, base)
        text = f"Best on valid: {best.label}, {_ppl(best)}, against {_ppl(base)} for the baseline ({base.label})"
        return f"{text}: {_effect(best, analysis)} {_activations(best, base)}{unfinished}"
    text = f"No configuration beats the baseline ({base.label}) on valid; it has {_ppl(base)}."
    if len(analysis.ranking) > 1:
        best, base = _paired(analysis.configurations[analysis.ranking[1]], base)
        text += f" Next to it comes {best.label}, {_ppl(best)}: {_effect(best, analysis)} {_activations(best, base)}"
    elif not analysis.compares:
        seed = "" if len(base.runs) > 1 else " (one seed)"
        quoted = [f"Quoted, {figure['label']}: {_splits(figure.get)}." for figure in analysis.study.quoted]
        text = " ".join([f"Measured: {_ppl(base)}{seed}.", *quoted])
    return text.rstrip() + unfinished


def _paired(*configurations: Configuration) -> list[Configuration]:
    """The configurations with the runs of the seeds that all have."""
    return [
        on_seeds(configuration, set.intersection(*(set(configuration.runs) for configuration in configurations)))
        for configuration in configurations
    ]


def _ppl(configuration: Configuration) -> str:
    seeds = f" (mean of {len(configuration.runs)} seeds)" if len(configuration.runs) > 1 else ""
    return _splits(configuration.mean) + seeds


def _splits(value: Callable[[str], float | None]) -> str:
    """`perplexity valid 1.00 / test 2.00` of the splits that have a value."""
    found = {split: value(f"{split}_ppl") for split in ("valid", "test")}
    return f"perplexity {' / '.join(f'{split} {ppl:.2f}' for split, ppl in found.items() if ppl)}"


def _effect(configuration: Configuration, analysis: Analysis) -> str:
    """The difference on the split that claims are made on, and whether seeds alone could have made it."""
    difference: Difference | None = configuration.differences[analysis.split]
    if difference is None:
        return "no seed has finished in both, so there is no paired difference."
    text = f"{interval(difference)} nats per {analysis.unit} on {analysis.split}"
    text += f" ({percent(difference.mean)} perplexity)"
    if configuration.diverged or (analysis.base and analysis.base.diverged):
        return f"{text}, not tested: a run of one of the two diverged."
    if difference.n > 1:
        text = text.replace("[", "[95 %: ")
        return f"{text}, {verdict(difference)}."
    text += ". This is one seed (n = 1), which cannot tell an effect from seed noise"
    return text + (f"; seeds of this study spread by {analysis.noise:.4f} nats (sd)." if analysis.noise else ".")


def _activations(configuration: Configuration, base: Configuration) -> str:
    parts = []
    for metric, name in (("rms", "activation rms"), ("temporal_rms", "temporal rms")):
        ours, theirs = configuration.mean(metric), base.mean(metric)
        if ours is not None and theirs:
            change = signed(100 * (ours / theirs - 1), 0)
            parts.append(f"{name} went from {theirs:.4f} to {ours:.4f} ({change} %)")
    if (ours := configuration.mean("gap")) is not None and (theirs := base.mean("gap")) is not None:
        parts.append(f"the gap between train and valid from {theirs:.3f} to {ours:.3f} nats")
    return f"Meanwhile {', '.join(parts)}." if parts else ""
