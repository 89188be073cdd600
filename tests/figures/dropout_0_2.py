"""AR and TAR at dropout 0.2, on all of PTB and elsewhere."""

import math
from statistics import fmean, stdev

from scipy import stats

from lm.tables.stats import holm
from tests.figures.reading import (
    THREE,
    activation,
    adapted,
    bracket,
    gain,
    ledger,
    mean_gain,
    mean_sd,
    pair,
    percent_less,
    runs,
    values,
    welch,
)


def both_views() -> dict[str, tuple[float, tuple[float, float], float, float, tuple[float, float], float]]:
    """Configuration -> gain, Welch's interval and p over all seeds; gain, interval and Holm's p of the held-out two."""
    base, found, p_held = runs(0, 0), {}, []
    for name, coefficients in THREE.items():
        ours = runs(*coefficients)
        over_all = welch(base, ours)
        held = [gain(ours[seed], base[seed], "test") for seed in (1112, 1113)]
        test = stats.ttest_1samp(held, 0)
        p_held.append(float(test.pvalue))
        found[name] = (
            mean_gain(base, ours), tuple(over_all.confidence_interval()), over_all.pvalue,
            fmean(held), tuple(test.confidence_interval()),
        )  # fmt: skip
    return {name: (*row, p) for (name, row), p in zip(found.items(), holm(p_held), strict=True)}


def three_seeds() -> list[str]:
    lines = []
    for name, coefficients in {"no penalty": (0, 0), **THREE}.items():
        found = runs(*coefficients)
        lines.append(
            f"| {name} | 3 | {mean_sd(found, 'valid_ppl', interval=True)} "
            f"| {mean_sd(found, 'test_ppl', interval=True)} | {fmean(values(found, 'train_ppl')):.2f} "
            f"| {activation(found, 'rms'):.3f} "
            f"| {100 * activation(found, 'frac_small'):.1f} % | {activation(found, 'temporal_rms'):.3f} |"
        )
    for name, (all_three, over_all, p, held, interval, p_holm) in both_views().items():
        lines.append(
            f"| {name} | {all_three:.3f} {bracket(*over_all, 3)} | {p:.4f} | {held:.3f} {bracket(*interval, 3)} "
            f"| {p_holm:.3f} |"
        )
    return lines


def own_page() -> str:
    """What results/README.md says of the tests on ptb-200's own page: Welch's over three seeds, adjusted by Holm."""
    p = holm([float(welch(runs(0, 0), runs(*coefficients)).pvalue) for coefficients in THREE.values()])
    return f"adjusted by Holm's method over the three (both together: p = {p[2]:.4f})"


def strengths() -> list[str]:
    """Rows of seed 1111, with gains over the run without a penalty at the same dropout."""
    asked = {f"AR, alpha {a}": (a, 0) for a in (1, 2, 4, 8)} | {f"TAR, beta {b}": (0, b) for b in (1, 2, 4, 8)}
    asked |= {f"alpha {a} and beta {b}": (a, b) for a, b in ((1, 1), (1, 2), (2, 1), (2, 4))}
    asked |= {"L1, alpha 0.8": (0.8, 0, 0.2, "l1"), "elastic, alpha 0.6 (on a GPU)": (0.6, 0, 0.2, "elastic")}
    asked |= {"alpha 1 and beta 1, dropout 0": (1, 1, 0), "alpha 1 and beta 1, dropout 0.4 (on a GPU)": (1, 1, 0.4)}
    lines = []
    for name, what in asked.items():
        ours, base = runs(*what)[1111], runs(0, 0, *what[2:3])[1111]
        # `+ 0` so that a rounded -0.000 is 0.000
        gains = [f"{round(gain(ours, base, split), 3) + 0:.3f}" for split in ("valid", "test")]
        assert ("on a GPU" in name) == (ours["versions"]["device"] == "cuda")
        lines.append(f"| {name} | {' | '.join(gains)} | {pair(ours, sign=' | ')} |")
    at = {dropout: runs(0, 0, dropout)[1111] for dropout in (0, 0.2, 0.4)}
    lines.append(f"{pair(at[0.2])} at 0.2, {pair(at[0])} at 0, and {pair(at[0.4])} at 0.4 (on a GPU)")
    lines.append(f"Training without dropout costs {-gain(at[0], at[0.2], 'test'):.3f} nats on test")
    return lines


def noise() -> list[str]:
    configurations = [runs(*coefficients) for coefficients in ((0, 0), *THREE.values())]
    sds = {s: max(stdev(values(c, f"{s}_loss")) for c in configurations) for s in ("valid", "test")}
    differences = {
        split: max(
            stdev([gain(a[seed], b[seed], split) for seed in a])
            for i, a in enumerate(configurations)
            for b in configurations[i + 1 :]
        )
        for split in ("valid", "test")
    }
    single = {split: stats.t.ppf(0.975, 2) * sd for split, sd in differences.items()}
    return [
        f"standard deviation of up to {sds['valid']:.4f} nats on valid and {sds['test']:.4f} on test",
        *(
            f"| {split} | {sd:.4f} | ±{single[split] / math.sqrt(3):.3f} | ±{single[split]:.3f} |"
            for split, sd in differences.items()
        ),
        f"±{single['valid']:.3f} nats on valid and ±{single['test']:.3f} on test, both gains stand out on test",
    ]


def activations() -> list[str]:
    base = runs(0, 0)
    less = {
        name: [percent_less(activation(runs(*c), m), activation(base, m)) for m in ("rms", "temporal_rms")]
        for name, c in THREE.items()
    }
    ar, tar, both = less.values()
    return [
        f"AR by {ar[0]:.0f} % (rms h) and {ar[1]:.0f} % (rms dh), TAR by {tar[0]:.0f} % and {tar[1]:.0f} %, "
        f"both together by {both[0]:.0f} % and {both[1]:.0f} %",
        f"makes {100 * activation(runs(0.8, 0, 0.2, 'l1'), 'frac_small'):.1f} % of the activations nearly zero "
        f"({100 * base[1111]['activation']['frac_small']:.1f} % without a penalty)",
    ]


def beside_a_cache() -> str:
    """Gains with the cache, on the seeds that selected nothing."""
    found, base, kept = adapted("ptb-200"), runs(0, 0), {}
    for name, coefficients in THREE.items():
        ours = runs(*coefficients)
        for mode in ("none", "cache"):
            logs = [
                math.log(found[base[seed]["id"]]["test", mode] / found[ours[seed]["id"]]["test", mode])
                for seed in (1112, 1113)
            ]
            kept[name, mode] = fmean(logs)
    ar, tar, both = ((kept[name, "cache"], kept[name, "none"]) for name in THREE)
    return (
        f"the cache pointer leaves AR {ar[0]:.3f} of its {ar[1]:.3f} nats, TAR {tar[0]:.3f} of {tar[1]:.3f}, and both "
        f"together {both[0]:.3f} of {both[1]:.3f}"
    )


def adaptation() -> list[str]:
    """Rows of results/ptb-200/adaptation.md, one a run whose output was kept."""
    lines, modes = [], ("none", "cache", "dynamic", "dynamic+cache")
    found = adapted("ptb-200")
    for record in ledger("ptb-200"):
        if (row := found.get(record["id"])) is None:
            continue
        config = record["config"]
        cells = [f"{config[name]:g}" for name in ("alpha", "beta", "dropout")]
        ppl = [f"{row['test', mode]:.2f}" for mode in modes]
        cells += [config["ar_norm"], str(record["seed"]), f"`{record['id']}`", *ppl]
        assert round(record["test_ppl"], 2) == row["test", "none"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def six_epochs() -> str:
    ((run, row),) = adapted("ptb-six").items()
    modes = ("none", "cache", "dynamic", "dynamic+cache")
    return f"| `{run}` | {' | '.join(format(row['test', mode], '.2f') for mode in modes)} |"


def elsewhere() -> list[str]:
    lines, less = [], []
    for study, name in (("wikitext-2-200", "2x200, WikiText-2"), ("ptb-650", "2x650, PTB")):
        base, ours = runs(0, 0, study=study)[1111], runs(1, 1, study=study)[1111]
        rms = [f"{r['activation']['rms']:.3f} | {r['activation']['temporal_rms']:.3f} |" for r in (base, ours)]
        lines.append(f"| {name}, no penalty | {pair(base, sign=' | ')} | | | {rms[0]}")
        gains = " | ".join(f"{gain(ours, base, split):.3f}" for split in ("valid", "test"))
        lines.append(f"| alpha 1 and beta 1 | {pair(ours, sign=' | ')} | {gains} | {rms[1]}")
        less.append(percent_less(ours["test_ppl"], base["test_ppl"]))
    return [*lines, f"{less[0]:.1f} % and {less[1]:.1f} % lower test perplexity"]
