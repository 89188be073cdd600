"""What is said about activation penalties, held against the runs of results/digits.

Accuracies are in percent. Verdicts on gains follow from t-tests of differences paired by seed, adjusted by Holm's
method over the claims of an experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from lm.tables.stats import Difference, holm, paired_difference
from lm.tables.text import SIGNIFICANT, p_text

Runs = Sequence[dict[str, Any]]


def of(runs: Runs, **values: Any) -> list[dict[str, Any]]:
    """The runs with these values."""
    return [run for run in runs if all(run.get(name) == value for name, value in values.items())]


def mean(runs: Runs, metric: str, **values: Any) -> float:
    """Mean of a metric over the runs with these values."""
    return fmean(run[metric] for run in of(runs, **values))


def strengths(runs: Runs) -> list[float]:
    """Strengths of L1 that were tried, the weakest first."""
    return sorted({run["l1"] for run in runs})


def best_l1(runs: Runs, **values: Any) -> float:
    """The strength above 0 whose codes a linear probe reads best on valid; of equal ones the weaker."""
    return max(strengths(runs)[1:], key=lambda l1: mean(runs, "probe_valid", l1=l1, **values))


def gain(ours: Runs, theirs: Runs, metric: str) -> Difference:
    """100 times the mean difference of a metric, paired by seed, with its interval."""
    found = paired_difference(*({run["seed"]: 100 * run[metric] for run in runs} for runs in (ours, theirs)))
    assert found is not None, "every experiment uses the same seeds throughout"
    return found


def probe_gain(runs: Runs, code: int) -> Difference:
    """What the best L1 gains a probe on test, for ReLU codes of this size on standardised inputs."""
    where = {"inputs": "standardised", "activation": "relu", "code": code}
    return gain(of(runs, l1=best_l1(runs, **where), **where), of(runs, l1=0.0, **where), "probe_test")


def points(difference: Difference) -> str:
    """`+0.52 [+0.10, +0.94]`."""
    text = f"{difference.mean:+.2f}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{difference.low:+.2f}, {difference.high:+.2f}]"


def verdicts(*differences: Difference) -> list[str]:
    """Whether each gain is there, by p adjusted by Holm's method over all of them."""
    found = []
    for difference, adjusted in zip(differences, holm([d.p for d in differences]), strict=True):
        if adjusted is None:
            found.append("not shown: too few seeds")
        elif adjusted < SIGNIFICANT:
            found.append("holds" if difference.mean > 0 else "does not hold")
        else:
            found.append(f"not shown (p {p_text(adjusted)})")
    return found


def autoencoder_claims(runs: Runs) -> list[tuple[str, str, str]]:
    """Claim, what was measured, verdict."""
    _, weakest, *_, strongest = strengths(runs)
    codes = sorted({run["code"] for run in runs})
    relu = {"inputs": "standardised", "activation": "relu"}
    zeros = {code: [100 * mean(runs, "zeros", code=code, l1=l1, **relu) for l1 in strengths(runs)] for code in codes}
    rises = all(values[0] < max(values) == values[-1] for values in zeros.values())
    tanh = max(run["zeros"] for run in of(runs, activation="tanh"))
    near = mean(runs, "near_zeros", activation="tanh", l1=1e-2, inputs="standardised", code=codes[-1])
    narrow, wide = probe_gain(runs, codes[0]), probe_gain(runs, codes[-1])
    features, _ = verdicts(wide, narrow)
    best = {code: best_l1(runs, code=code, **relu) for code in codes}
    inside = all(weakest < l1 < strongest for l1 in best.values())
    acts = {
        inputs: mean(runs, "zeros", l1=1e-2, inputs=inputs, activation="relu", code=codes[-1])
        - mean(runs, "zeros", l1=0.0, inputs=inputs, activation="relu", code=codes[-1])
        for inputs in ("standardised", "raw")
    }
    missed = {
        activation: [100 * mean(runs, "missed", l1=0.0, code=codes[0], activation=activation, inputs=i) for i in acts]
        for activation in ("relu", "tanh")
    }
    worse = [raw > 1.1 * standardised for standardised, raw in missed.values()]
    return [
        (
            "L1 makes activations sparse",
            "exact zeros of ReLU codes, L1 0 to 0.1: "
            + ", ".join(f"{values[0]:.1f} % to {values[-1]:.1f} % (code {code})" for code, values in zeros.items()),
            "holds" if rises else "depends on code and strength",
        ),
        (
            "ReLU goes well with L1, for it allows exact zeros",
            f"tanh: at most {100 * tanh:.1f} % exact zeros at any strength, and {100 * near:.1f} % closer to 0 than "
            f"0.01 at L1 0.01 (code {codes[-1]})",
            "holds" if tanh < min(values[-1] for values in zeros.values()) / 100 else "does not hold",
        ),
        (
            "0.0001 to 0.1 on a log scale is where to look",
            "best above 0 for a linear probe on valid: "
            + ", ".join(f"{l1:g} (code {code})" for code, l1 in best.items()),
            "holds" if inside else "depends on the size of the code",
        ),
        (
            "In autoencoders, sparse codes are better features",
            f"gain of a probe on test by L1, in points: {points(wide)} (code {codes[-1]})",
            features,
        ),
        (
            "An over-complete layer needs it more",
            f"the same gain for code {codes[0]}: {points(narrow)}",
            "holds" if features == "holds" and wide.mean > narrow.mean else "not shown",
        ),
        (
            "Inputs should be standardised",
            f"zeros that L1 0.01 adds (code {codes[-1]}): {100 * acts['standardised']:.1f} points with standardised "
            f"inputs, {100 * acts['raw']:.1f} with raw ones; variance missed without L1 (code {codes[0]}): "
            + ", ".join(f"{name} {here:.1f} % and {there:.1f} %" for name, (here, there) in missed.items()),
            "holds" if all(worse) else "depends on the activation" if any(worse) else "does not hold",
        ),
    ]


def classifier_claims(runs: Runs) -> list[tuple[str, str, str]]:
    """Claim, what was measured, verdict; runs of the classifier."""
    test = {method: of(runs, split="test", method=method) for method in methods(runs)}
    alone = {method: gain(test[method], test["nothing"], "accuracy") for method in ("L1", "L2 of activations")}
    over_l2 = gain(test["L1"], test["L2 of activations"], "accuracy")
    beside = {name: gain(test[f"{name} + L1"], test[name], "accuracy") for name in ("weight decay", "dropout")}
    error, norm, *next_to = verdicts(alone["L1"], over_l2, *beside.values())
    only_l1 = [r for r in of(runs, split="valid", l2=0.0, weight_decay=0.0, dropout=0.0) if r["l1"]]
    by_strength = {l1: [100 * r["accuracy"] for r in of(only_l1, l1=l1)] for l1 in strengths(only_l1)}
    coarse = max((1e-4, 1e-3, 1e-2, 1e-1), key=lambda l1: fmean(by_strength[l1]))
    finest = max(by_strength, key=lambda l1: fmean(by_strength[l1]))
    finer = fmean(by_strength[finest]) - fmean(by_strength[coarse])
    noise = stdev(by_strength[coarse]) if len(by_strength[coarse]) > 1 else 0.0
    return [
        (
            "A finer grid in the best decade helps",
            f"valid accuracy of L1: {fmean(by_strength[coarse]):.2f} % at {coarse:g}, "
            f"{fmean(by_strength[finest]):.2f} % at {finest:g}; sd over seeds {noise:.2f}",
            "holds" if finer > noise else "not shown: less than the sd over seeds",
        ),
        ("L1 lowers the error on unseen data", f"gain on test, in points: {points(alone['L1'])}", error),
        (
            "L1 is the norm to choose",
            f"gain of L2 of activations: {points(alone['L2 of activations'])}; of L1 over L2: {points(over_l2)}",
            norm,
        ),
        *(
            (
                f"L1 helps next to {name}",
                f"gain over {name} alone, in points: {points(difference)}",
                shown,
            )
            for (name, difference), shown in zip(beside.items(), next_to, strict=True)
        ),
    ]


def methods(runs: Runs) -> list[str]:
    """The classifier's methods, in the order in which they were tested."""
    return list(dict.fromkeys(run["method"] for run in of(runs, split="test")))
