"""Autoencoders and classifiers on the digits, and the advice that they test."""

from statistics import fmean, stdev

from scipy import stats

from lm.tables.stats import holm
from tests.figures.reading import gain, ledger, runs


def digits(experiment: str) -> list[dict]:
    """The runs of an experiment on the digits, without the line that says how they were run."""
    return [line for line in ledger("digits") if line["experiment"] == experiment][1:]


def picked(lines: list[dict], metric: str, **where: object) -> dict[int, float]:
    """Seed -> 100 times a metric of the lines with these values."""
    return {line["seed"]: 100 * line[metric] for line in lines if where.items() <= line.items()}


def paired_points(ours: dict[int, float], theirs: dict[int, float]) -> tuple[str, float, float]:
    """Mean difference by seed with its 95 % interval, as the page shows it; the interval's lower end; and p."""
    test = stats.ttest_1samp([ours[seed] - theirs[seed] for seed in sorted(ours)], 0)
    low, high = test.confidence_interval()
    mean = fmean(ours.values()) - fmean(theirs.values())
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", low, float(test.pvalue)


def adjusted(*p_values: float) -> list[str]:
    """Verdicts on gains of which none is significant: with p adjusted by Holm's method."""
    return [f"not shown (p = {p:.3f})" for p in holm(p_values)]


def strongest_probe(lines: list[dict], code: int) -> tuple[str, str, float]:
    """The strength of L1 above 0 that is best for a probe on valid, what it gains on test, and p."""
    where = {"inputs": "standardised", "activation": "relu", "code": code}
    valid = {l1: fmean(picked(lines, "probe_valid", l1=l1, **where).values()) for l1 in (1e-4, 1e-3, 1e-2, 1e-1)}
    best = max(valid, key=valid.__getitem__)
    gained = (picked(lines, "probe_test", l1=l1, **where) for l1 in (best, 0.0))
    text, _, p = paired_points(*gained)
    return f"{best:g}", text, p


def autoencoders() -> list[str]:
    """Tables and claims of results/digits/README.md on autoencoders."""
    lines, strengths = digits("autoencoder"), (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    relu = {"inputs": "standardised", "activation": "relu"}

    def mean(metric: str, **where: object) -> float:
        return fmean(picked(lines, metric, **where).values())

    rows = []
    for metric in ("zeros", "missed", "probe_test"):
        for inputs in ("standardised", "raw"):
            for unit in ("relu", "tanh"):
                for code in (16, 64, 256):
                    where = {"inputs": inputs, "activation": unit, "code": code}
                    cells = " | ".join(f"{mean(metric, l1=l1, **where):.1f}" for l1 in strengths)
                    rows.append(f"| {inputs}, {unit}, code {code} | {cells} |")
    ends = ", ".join(
        f"{mean('zeros', l1=0.0, code=code, **relu):.1f} % to {mean('zeros', l1=0.1, code=code, **relu):.1f} % "
        f"(code {code})"
        for code in (16, 64, 256)
    )
    added = [
        mean("zeros", l1=0.01, inputs=inputs, activation="relu", code=256)
        - mean("zeros", l1=0.0, inputs=inputs, activation="relu", code=256)
        for inputs in ("standardised", "raw")
    ]
    missed = [
        mean("missed", l1=0.0, code=16, activation=unit, inputs=inputs)
        for unit in ("relu", "tanh")
        for inputs in ("standardised", "raw")
    ]
    near = mean("near_zeros", l1=0.01, inputs="standardised", activation="tanh", code=256)
    tanh = max(100 * line["zeros"] for line in lines if line["activation"] == "tanh")
    best = {code: strongest_probe(lines, code) for code in (16, 64, 256)}
    return [
        *rows,
        f"exact zeros of ReLU codes, L1 0 to 0.1: {ends}",
        f"tanh: at most {tanh:.1f} % exact zeros at any strength, and {near:.1f} % closer to 0 than 0.01",
        "best above 0 for a linear probe on valid: "
        + ", ".join(f"{l1} (code {code})" for code, (l1, *_) in best.items()),
        f"gain of a probe on test by L1, in points: {best[256][1]} (code 256)",
        f"the same gain for code 16: {best[16][1]}",
        f"{added[0]:.1f} points with standardised inputs, {added[1]:.1f} with raw ones; variance missed without L1 "
        f"(code 16): relu {missed[0]:.1f} % and {missed[1]:.1f} %, tanh {missed[2]:.1f} % and {missed[3]:.1f} %",
        adjusted(best[256][2], best[16][2])[0],
    ]


def classifier() -> list[str]:
    """Table and claims of results/digits/README.md on the classifier."""
    lines = digits("classifier")
    tested = {line["method"]: line for line in lines if line["split"] == "test"}
    gains = {
        method: paired_points(picked(lines, "accuracy", method=method), picked(lines, "accuracy", method="nothing"))
        for method in tested
        if method != "nothing"
    }
    p = dict(zip(gains, holm([p for *_, p in gains.values()]), strict=True))
    rows = []
    for method, setting in tested.items():
        found = list(picked(lines, "accuracy", method=method).values())
        chosen = ", ".join(f"{n} {setting[n]:g}" for n in ("l1", "l2", "weight_decay", "dropout") if setting[n])
        shown = "" if method == "nothing" else "< 0.001" if p[method] < 0.001 else f"{p[method]:.3f}"
        cells = [
            method, chosen, str(len(found)), f"{fmean(found):.2f} ± {stdev(found):.2f}",
            gains[method][0] if method in gains else "", shown,
            f"{fmean(picked(lines, 'nats', method=method).values()) / 100:.3f}",
            f"{fmean(picked(lines, 'zeros', method=method).values()):.1f} %",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    alone = [
        r for r in lines if r["split"] == "valid" and r["l1"] and not (r["l2"] or r["weight_decay"] or r["dropout"])
    ]
    valid = {l1: list(picked(alone, "accuracy", l1=l1).values()) for l1 in sorted({r["l1"] for r in alone})}
    coarse = max((1e-4, 1e-3, 1e-2, 1e-1), key=lambda l1: fmean(valid[l1]))
    finest = max(valid, key=lambda l1: fmean(valid[l1]))
    over = {
        pair: paired_points(picked(lines, "accuracy", method=pair[0]), picked(lines, "accuracy", method=pair[1]))
        for pair in (
            ("L1", "L2 of activations"), ("weight decay + L1", "weight decay"), ("dropout + L1", "dropout"),
        )
    }  # fmt: skip
    return [
        *rows,
        f"valid accuracy of L1: {fmean(valid[coarse]):.2f} % at {coarse:g}, {fmean(valid[finest]):.2f} % at "
        f"{finest:g}; sd over seeds {stdev(valid[coarse]):.2f}",
        f"gain on test, in points: {gains['L1'][0]}",
        f"gain of L2 of activations: {gains['L2 of activations'][0]}; of L1 over L2: "
        f"{over['L1', 'L2 of activations'][0]}",
        *(
            f"gain over {name} alone, in points: {over[f'{name} + L1', name][0]}"
            for name in ("weight decay", "dropout")
        ),
        *adjusted(gains["L1"][2], *(p for *_, p in over.values())),
    ]


def claims() -> list[str]:
    """What results/README.md takes from results/digits/README.md, and from the runs with L1 on PTB."""
    zeros, tanh, strengths, probe, small_code, standardised, probe_verdict = autoencoders()[-7:]
    finer, gain_l1, norms, decay, dropout, *verdicts = classifier()[-9:]
    l1, l2, base = runs(0.8, 0, 0.2, "l1")[1111], runs(2, 0)[1111], runs(0, 0)[1111]
    gains = [gain(ours, base, "test") for ours in (l1, l2)]
    return [
        f"exact zeros of ReLU codes, L1 0 to 0.1: {zeros.rpartition('), ')[2]}",
        tanh.partition(", and")[0],
        strengths,
        f"gain of a probe: {probe.rpartition(': ')[2]}",
        f"{small_code.rpartition(': ')[2]} (code 16)",
        f"(code 16), standardised and raw: {standardised.rpartition('(code 16): ')[2]}",
        probe_verdict,
        finer,
        f"gain: {gain_l1.rpartition(': ')[2]}",
        f"gain of L1 over L2: {norms.rpartition(': ')[2]}",
        *(text.replace(", in points", "") for text in (decay, dropout)),
        *verdicts,
        f"PTB, seed 1111: L1 gains {gains[0]:.3f} nats on test, AR with the mean square {gains[1]:.3f}",
        "PTB, seed 1111: {:.1f} % near 0, {:.1f} % without a penalty".format(
            *(100 * record["activation"]["frac_small"] for record in (l1, base))
        ),
        f"PTB, dropout 0.2, n = 1: {gains[0]:.3f} nats on test",
    ]
