"""Every measured figure of README.md and of the pages under results/ is recomputed from the committed ledgers.

A page's figures stand in `EXPECTED`, as the text around them with the recomputed values in it: a wrong digit on the
page fails, and so does a figure with a decimal point that no expected text covers, unless it is a setting, or quoted
with its source in the same paragraph or row. Blocks of code show what a command printed, and are left out. `IN_DOCS`
has the figures that pages under docs/ take from ledgers; other figures there are not looked for.
"""

import functools
import json
import math
import re
import tomllib
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy import stats

from lm.scoring import pairs_difference
from lm.tables.published import per_target
from lm.tables.stats import holm

ROOT = Path(__file__).resolve().parent.parent
THREE = {"AR, alpha 2": (2, 0), "TAR, beta 4": (0, 4), "alpha 1 and beta 1": (1, 1)}


@functools.cache
def ledger(study: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "results" / study / "runs.jsonl").read_text().splitlines()]


def runs(alpha: float, beta: float, dropout: float = 0.2, norm: str = "l2", study: str = "ptb-200") -> dict[int, dict]:
    """Seed -> record of one configuration."""
    wanted = {"alpha": alpha, "beta": beta, "ar_norm": norm} | ({"dropout": dropout} if study == "ptb-200" else {})
    return {r["seed"]: r for r in ledger(study) if all(r["config"][name] == value for name, value in wanted.items())}


def values(records: dict[int, dict], metric: str, seeds: tuple[int, ...] = ()) -> list[float]:
    return [record[metric] for seed, record in sorted(records.items()) if not seeds or seed in seeds]


def bracket(low: float, high: float, digits: int) -> str:
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def mean_sd(records: dict[int, dict], metric: str, *, interval: bool = False) -> str:
    """`87.24 ± 0.26`, with `interval` also the 95 % t-interval of the mean."""
    found = values(records, metric)
    text = f"{fmean(found):.2f}" + (f" ± {stdev(found):.2f}" if len(found) > 1 else "")
    if not interval:
        return text
    reach = stats.t.ppf(0.975, len(found) - 1) * stdev(found) / math.sqrt(len(found))
    return f"{text} {bracket(fmean(found) - reach, fmean(found) + reach, 2)}"


def pair(record: dict, valid: str = "valid_ppl", test: str = "test_ppl", sign: str = " / ") -> str:
    return f"{record[valid]:.2f}{sign}{record[test]:.2f}"


def gain(ours: dict, base: dict, split: str) -> float:
    return base[f"{split}_loss"] - ours[f"{split}_loss"]


def activation(records: dict[int, dict], name: str) -> float:
    return fmean(record["activation"][name] for record in records.values())


def percent_less(ours: float, base: float) -> float:
    return 100 * (1 - ours / base)


def only(study: str, index: int = 0) -> dict:
    return ledger(study)[index]


def welch(base: dict[int, dict], ours: dict[int, dict]):
    """Welch's test of what `ours` gains on test over `base`, over all their seeds."""
    return stats.ttest_ind(values(base, "test_loss"), values(ours, "test_loss"), equal_var=False)


def mean_gain(base: dict[int, dict], ours: dict[int, dict]) -> float:
    return fmean(values(base, "test_loss")) - fmean(values(ours, "test_loss"))


def adapted(study: str) -> dict[str, dict[tuple[str, str], float]]:
    """Run -> (split, mode) -> perplexity, from the kept output of lm.evaluate."""
    text = (ROOT / "results" / study / "adapt.txt").read_text()
    found = {}
    for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^(valid|test) +(\S+) +([\d.]+)", block, re.MULTILINE)
        found[re.search(r"runs/[\w-]+/(\w+)", block)[1]] = {(split, mode): float(ppl) for split, mode, ppl in rows}
    return found


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


def baselines() -> list[str]:
    """Rows of the first table of results/README.md: ours against published."""
    tokens = {"valid": {"wt2": 217646}, "test": {"ptb": 82430, "wt2": 245569}}
    base, wt2 = runs(0, 0), only("wikitext-2-200")
    rows = [
        ("2x200, PTB | 40 | 3", fmean(values(base, "test_ppl")),
         f"{mean_sd(base, 'valid_ppl')} | {mean_sd(base, 'test_ppl', interval=True)}", 87.17),
        ("2x200, PTB | 6 | 1", only("ptb-six")["test_ppl"], pair(only("ptb-six"), sign=" | "), 110.44),
        ("2x650, PTB | 40 | 1", only("ptb-650")["test_ppl"], pair(only("ptb-650"), sign=" | "), 75.96),
    ]  # fmt: skip
    lines, off = [], [100 * (wt2["test_ppl"] / 99.89 - 1)]
    for name, test, ours, published in rows:
        there = per_target(published, tokens["test"]["ptb"], 10)
        off.append(100 * (test / there - 1))
        lines.append(
            f"| {name} | {ours} | {published:.2f} (pytorch/examples README) | {there:.2f} | {off[-1]:+.2f} % |"
        )
    lines.append(f"holds: at most {max(off):.1f} % off")
    valid, test = (per_target(ppl, tokens[split]["wt2"], 10) for split, ppl in (("valid", 105.97), ("test", 100.33)))
    lines.append(
        f"| 2x200, WikiText-2 | 40 | 1 | {pair(wt2, sign=' | ')} | 105.97 / 100.33 (pytorch/examples issue 281) "
        f"| {valid:.2f} / {test:.2f} | {100 * (wt2['test_ppl'] / test - 1):+.2f} % |"
    )
    lines.append(
        f"| 2x200, WikiText-2 | 40 | 1 | {pair(wt2, sign=' | ')} | 99.89 (distiller issue 470) | unknown divisor "
        f"| {100 * (wt2['test_ppl'] / 99.89 - 1):+.2f} % |"
    )
    return lines


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
    differences = [
        stdev([gain(a[seed], b[seed], "valid") for seed in a])
        for i, a in enumerate(configurations)
        for b in configurations[i + 1 :]
    ]
    reach = stats.t.ppf(0.975, 2) * max(differences) / math.sqrt(3)
    return [
        f"standard deviation of up to {sds['valid']:.4f} nats on valid and {sds['test']:.4f} on test",
        f"the difference on valid has a standard deviation of {max(differences):.4f}, which is ±{reach:.3f} for a mean "
        "of three seeds",
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
        f"({100 * activation(base, 'frac_small'):.1f} % without a penalty, n = 3)",
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
        f"together {both[0]:.3f} of {both[1]:.3f} (n = 2"
    )


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


def others() -> list[str]:
    """AWD-LSTM, one cycle, bf16, GPU, and what is computed from quoted figures."""
    awd, (cache,) = only("ptb-awd-lstm"), adapted("ptb-awd-lstm").values()
    cuda = {r["config"]["precision"]: r for r in ledger("cuda")}
    by_seed: dict[int, dict[str, float]] = {}
    for record in ledger("precision"):
        by_seed.setdefault(record["seed"], {})[record["config"]["precision"]] = record["test_loss"]
    differences = [by_seed[seed]["bf16"] - by_seed[seed]["fp32"] for seed in sorted(by_seed)]
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval()
    short = only("min-lr")
    return [
        f"seed 141, valid {awd['valid_ppl']:.2f} / test {awd['test_ppl']:.2f} after {awd['epochs']} epochs",
        f"it averages {fmean(ppl for _, ppl in awd['curve'][-5:]):.2f} over the last five",
        f"the checkpoint has valid {cache['valid', 'cache']:.2f} / test {cache['test', 'cache']:.2f}",
        f"The run took {awd['seconds']:.0f} s",
        f"ends at valid {pair(only('ptb-onecycle'), sign=' / test ')} after {only('ptb-onecycle')['epochs']} epochs",
        f"{fmean(differences):+.4f} nats on test [{low:+.4f}, {high:+.4f}], p = {test.pvalue:.3f}",
        f"The first three seeds alone had shown {fmean(differences[:3]):+.4f}",
        f"ends at {pair(cuda['fp32'])} in fp32 and {pair(cuda['bf16'])} in bf16 on an H100, against "
        f"{pair(runs(0, 0)[1111])} on a CPU",
        f"{pair(short)} from epoch {short['best_epoch']}",
        f"60.3 instead of 57.3 on PTB test, {math.log(60.3 / 57.3):.3f} nats, "
        f"and 70.1 instead of 65.8 on WikiText-2 test, {math.log(70.1 / 65.8):.3f} nats "
        f"or {100 * (70.1 / 65.8 - 1):.1f} %",
    ]


def beside_the_lstm_of_words() -> list[str]:
    """A QRNN, and a model of characters."""
    cells = {record["config"]["model"]: record for record in ledger("ptb-qrnn")}
    characters = only("pennchar")
    lines = (ROOT / "results/pennchar/validations.jsonl").read_text().splitlines()
    bits = [f"{json.loads(line)['valid_loss'] / math.log(2):.2f}" for line in lines]
    shown = [pair(cells[name], sign=" / test ") for name in ("QRNN", "LSTM")]
    return [
        f"the QRNN ends at valid {shown[0]}, the LSTM at valid {shown[1]}",
        f"valid {characters['valid_bits_per_char']:.3f} / test {characters['test_bits_per_char']:.3f} bits per "
        f"character after {characters['steps']:,} updates",
        f"On valid it had {bits[0]}, {bits[1]} and {bits[2]} after 250, 500 and 750",
    ]


def speed() -> str:
    """The ranges of the speed table: each page is one measurement of lm.bench."""
    ratios: dict[str, list[float]] = {"gpu": [], "bf16": [], "fp32": []}
    best = []
    for measurement in json.loads((ROOT / "results/speed/speed.json").read_text()):
        for row in measurement["rows"].values():
            kind = "gpu" if "gpu" in row else row["precision"]
            ratios[kind].append(row["ratio"])
            if kind == "fp32":
                best.append(row["plain_seconds_per_step"] / row["gemm_seconds"])
    gpu, bf16, fp32 = (f"{min(of):.2f} to {max(of):.2f}" for of in ratios.values())
    return (
        f"a training step takes plain PyTorch {gpu} times as long on an H100, {bf16} times on two CPUs with bf16, and "
        f"{fp32} times on two CPUs with AVX2 alone. With AVX2 both are in fp32, and a step of nothing but its matrix "
        f"products would reach {min(best):.2f} to {max(best):.2f}"
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


def own_page() -> str:
    """What results/README.md says of the tests on ptb-200's own page: Welch's over three seeds, adjusted by Holm."""
    p = holm([float(welch(runs(0, 0), runs(*coefficients)).pvalue) for coefficients in THREE.values()])
    return f"adjusted by Holm's method over the three (both together: p = {p[2]:.4f})"


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


def digits_autoencoders() -> list[str]:
    """Tables and claims of results/digits/README.md on autoencoders."""
    lines, strengths = digits("autoencoder"), (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    relu = {"inputs": "standardised", "activation": "relu"}

    def mean(metric: str, **where: object) -> float:
        return fmean(picked(lines, metric, **where).values())

    rows = []
    for metric in ("zeros", "missed", "probe_test"):
        for inputs in ("standardised", "raw"):
            for activation in ("relu", "tanh"):
                for code in (16, 64, 256):
                    where = {"inputs": inputs, "activation": activation, "code": code}
                    cells = " | ".join(f"{mean(metric, l1=l1, **where):.1f}" for l1 in strengths)
                    rows.append(f"| {inputs}, {activation}, code {code} | {cells} |")
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
        mean("missed", l1=0.0, code=16, activation=activation, inputs=inputs)
        for activation in ("relu", "tanh")
        for inputs in ("standardised", "raw")
    ]
    near = mean("near_zeros", l1=0.01, inputs="standardised", activation="tanh", code=256)
    tanh = max(100 * line["zeros"] for line in lines if line["activation"] == "tanh")
    best = {code: strongest_probe(lines, code) for code in (16, 64, 256)}
    return [
        *rows,
        f"exact zeros of ReLU codes, L1 0 to 0.1: {ends}",
        f"tanh: at most {tanh:.1f} % exact zeros at any strength, and {near:.1f} % closer to 0 than 0.01",
        "best for a linear probe on valid: " + ", ".join(f"{l1} (code {code})" for code, (l1, *_) in best.items()),
        f"gain of a probe on test by L1, in points: {best[256][1]} (code 256)",
        f"the same gain for code 16: {best[16][1]}",
        f"{added[0]:.1f} points with standardised inputs, {added[1]:.1f} with raw ones; variance missed without L1 "
        f"(code 16): relu {missed[0]:.1f} % and {missed[1]:.1f} %, tanh {missed[2]:.1f} % and {missed[3]:.1f} %",
        adjusted(best[256][2], best[16][2])[0],
    ]


def digits_classifier() -> list[str]:
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


def claims_of_the_subject() -> list[str]:
    """What results/README.md takes from results/digits/README.md, and from the runs with L1 on PTB."""
    zeros, tanh, strengths, probe, small_code, standardised, probe_verdict = digits_autoencoders()[-7:]
    finer, gain_l1, norms, decay, dropout, *verdicts = digits_classifier()[-9:]
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
        f"PTB: {100 * l1['activation']['frac_small']:.1f} % near 0, {100 * activation(runs(0, 0), 'frac_small'):.1f} % "
        "without a penalty",
    ]


def sides(study: str) -> tuple[list[dict], list[dict]]:
    """The completed runs of a study without AR and TAR, and those with."""
    found = ledger(study)
    assert all(line["status"] == "completed" for line in found)
    return tuple([r for r in found if bool(r["config"]["alpha"]) == on] for on in (False, True))


def setting(config: dict) -> str:
    return f"dropout {config['dropout']:g}, rate {config['lr']:g}, weight decay {config['wdecay']:g}"


def tuned() -> list[str]:
    """The search on 60,000 words, and the seeds that took no part in it."""
    tried, rows = sides("ptb-60k-budget"), []
    best = [min(side, key=lambda r: r["valid_loss"]) for side in tried]
    fresh = [{r["seed"]: r for r in side} for side in sides("ptb-60k-final")]
    for name, side, chosen, again in zip(("no penalty", "alpha 2, beta 1"), tried, best, fresh, strict=True):
        rows.append(f"| {name} | {len(side)} | {setting(chosen['config'])} | {pair(chosen, sign=' | ')} |")
        rows.append(
            f"| {name} | {len(again)} | {mean_sd(again, 'valid_ppl', interval=True)} "
            f"| {mean_sd(again, 'test_ppl', interval=True)} | {fmean(values(again, 'train_ppl')):.2f} "
            f"| {activation(again, 'rms'):.3f} | {activation(again, 'temporal_rms'):.3f} |"
        )
        assert all({**r["config"], "seed": 1111} == chosen["config"] for r in again.values()), name
        assert chosen["seed"] not in again
    runs_, hours = len(tried[0]) + len(tried[1]), sum(r["seconds"] for side in tried for r in side) / 3600
    lost = max(tried[1], key=lambda r: r["train_ppl"])
    gained, p = tuned_gain()
    return [
        *rows,
        f"{runs_} runs and {hours:.1f} hours of one core",
        f"{gained} on test (n = {len(fresh[0])}, Welch, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})",
        f"has a perplexity of {lost['train_ppl']:,.0f} on train, {pair(lost)} on valid and test",
    ]


def tuned_gain() -> tuple[str, float]:
    """What alpha 2 and beta 1 gain on test over the best settings without them, on seeds that chose nothing, and p."""
    base, ours = ({r["seed"]: r for r in side} for side in sides("ptb-60k-final"))
    test = welch(base, ours)
    return f"{mean_gain(base, ours):.3f} nats {bracket(*test.confidence_interval(), 3)}", float(test.pvalue)


def readme_rows() -> list[str]:
    """The README's table, ours against published per target, and its findings."""
    base, views, awd = runs(0, 0), both_views(), only("ptb-awd-lstm")
    there = {name: per_target(ppl, 82430, 10) for name, ppl in (("40", 87.17), ("6", 110.44), ("650", 75.96))}
    wt2 = per_target(100.33, 245569, 10)
    both = runs(1, 1)
    all_three, over_all, _, held, _, p = views["alpha 1 and beta 1"]
    elsewhere = [
        gain(runs(1, 1, study=study)[1111], runs(0, 0, study=study)[1111], "test")
        for study in ("wikitext-2-200", "ptb-650")
    ]
    return [
        f"| 2x200 LSTM, PTB, 40 epochs | 3 | {mean_sd(base, 'test_ppl', interval=True)} | {there['40']:.2f} |",
        f"| 2x200 LSTM, PTB, 6 epochs | 1 | {only('ptb-six')['test_ppl']:.2f} | {there['6']:.2f} |",
        f"| 2x650 LSTM, PTB, 40 epochs | 1 | {only('ptb-650')['test_ppl']:.2f} | {there['650']:.2f} |",
        f"| 2x200 LSTM, WikiText-2, 40 epochs | 1 | {only('wikitext-2-200')['test_ppl']:.2f} | {wt2:.2f} |",
        f"| 1 | {awd['test_ppl']:.2f} | 58.8",
        f"from {mean_sd(base, 'test_ppl')} to {mean_sd(both, 'test_ppl')} (n = 3)",
        f"{all_three:.3f} nats {bracket(*over_all, 3)}, Welch",
        f"The other two alone give {held:.3f} nats (Holm-adjusted p = {p:.3f})",
        f"gains {elsewhere[0]:.3f} nats on WikiText-2 and {elsewhere[1]:.3f} at 650 units",
        tuned_gain()[0],
        f"Training without it costs {-gain(runs(0, 0, 0)[1111], base[1111], 'test'):.3f} nats on test",
        f"At dropout 0.2 the pair gains {gain(both[1111], base[1111], 'test'):.3f} nats (one seed)",
        f"{100 * activation(runs(0.8, 0, 0.2, 'l1'), 'frac_small'):.1f} % of the activations nearly zero "
        f"({100 * activation(base, 'frac_small'):.1f} % without a penalty)",
    ]


def judged() -> tuple[dict, list[dict], list[dict]]:
    """What the two models made of the minimal pairs, the report of each, and the record of each run."""
    found = json.loads((ROOT / "results/blimp/wikitext-2-small.json").read_text())
    reports = [found, found["beside"]]
    records = {record["id"]: record for record in ledger("wikitext-2-small")}
    return found, reports, [records[Path(report["run"]).name] for report in reports]


def grammar() -> list[str]:
    """Findings on minimal pairs, that on both models first."""
    found, (with_both, without), (regularized, plain) = judged()
    over_sets = found["difference"]["over_sets"]
    largest = max(abs(row["difference"]) for row in found["difference"]["phenomena"])
    overall = with_both["overall"]
    return [
        f"{over_sets['difference']:.1f} points [{over_sets['low']:.1f}, {over_sets['high']:.1f}]",
        f"{regularized['test_ppl']:.2f} against {plain['test_ppl']:.2f}",
        f"by up to {largest:.1f} points",
        f"{100 * overall['unknown'] / overall['pairs']:.1f} % hold a word",
        f"{overall['known_accuracy']:.1f} % and {without['overall']['known_accuracy']:.1f} %",
    ]


def minutes(record: dict) -> str:
    return f"{record['seconds'] / 60:.0f}"


def presets_reach() -> list[str]:
    """What docs/commands.md says that presets reach on PTB, and how long the runs took."""
    base, wide = runs(0, 0), runs(0, 0, study="ptb-650")[1111]
    awd, onecycle = only("ptb-awd-lstm"), only("ptb-onecycle")
    slow, quick, on_gpu = (minutes(base[seed]) for seed in (1111, 1112, 1113))
    assert [record["versions"]["threads"] for record in (base[1111], base[1112], onecycle)] == [1, 1, 2]
    return [
        f"| {fmean(values(base, 'test_ppl')):.1f} (n = {len(base)}) | {quick} and {slow} on one thread of an AMD EPYC, "
        f"{on_gpu} on an H100 |",
        f"| {wide['test_ppl']:.1f} | {minutes(wide)} on an H100 |",
        f"| {awd['test_ppl']:.1f} after {awd['epochs']} of 500 epochs | {minutes(awd)} on an H100 |",
        f"| {onecycle['test_ppl']:.1f} | {minutes(onecycle)} on two threads of an AMD EPYC |",
    ]


def minutes_of_an_epoch() -> str:
    on_cpu = [r for r in ledger("ptb-200") if r["versions"]["device"] == "cpu" and r["versions"]["threads"] == 1]
    found = [record["seconds"] / 60 / record["epochs"] for record in on_cpu]
    return f"an epoch took {min(found):.0f} to {max(found):.0f} minutes on one thread"


def large_vocabulary() -> str:
    row = json.loads((ROOT / "results/speed/full-size.json").read_text())["train LSTM"]
    epochs_a_day = row["tokens_per_cpu_s"] * row["threads"] * 86_400 / row["train_tokens"]
    assert epochs_a_day == pytest.approx(1 / 3, abs=0.04)
    return f"takes {row['peak_mb']:,} MB of memory"


IN_DOCS = {
    "docs/commands.md": presets_reach(), "docs/studies.md": [minutes_of_an_epoch()],
    "docs/text.md": [large_vocabulary()],
}  # fmt: skip
EXPECTED = {
    "README.md": readme_rows(),
    "results/README.md": [
        *baselines(), *three_seeds(), *strengths(), *noise(), *activations(), own_page(), beside_a_cache(),
        *elsewhere(), *tuned(), *others(), *beside_the_lstm_of_words(), speed(), *claims_of_the_subject(), grammar()[0],
    ],
    "results/blimp/README.md": grammar(),
    "results/ptb-200/adaptation.md": [*adaptation(), six_epochs()],
    "results/digits/README.md": [*digits_autoencoders(), *digits_classifier()],
}  # fmt: skip
# Figures that others published -> the source that stands in the same paragraph or row.
QUOTED = {
    "61.2": "awd-lstm-lm", "58.8": "awd-lstm-lm", "60.3": "Merity et al. 2018", "57.3": "Merity et al. 2018",
    "70.1": "Merity et al. 2018", "65.8": "Merity et al. 2018", "87.17": "pytorch/examples",
    "69.8": "Warstadt et al. 2020", "1.175": "awd-lstm-lm",
}  # fmt: skip
# Coefficients, dropouts, thresholds and versions.
SETTINGS = {
    "0.0001", "0.0004", "0.001", "0.002", "0.004", "0.008", "0.01", "0.016", "0.02", "0.03", "0.032", "0.05", "0.1",
    "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "3.11",
}  # fmt: skip
_FIGURE = re.compile(r"(?<![\w.-])\d+\.\d+(?!\.?\w)")


def blocks(page: str) -> list[str]:
    """Paragraphs, list items and table rows of a page, each on one line, without code and addresses."""
    text = re.sub(r"^```.*?^```", "\n", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\n(?=\||- )", "\n\n", text)
    return [" ".join(block.split()) for block in text.split("\n\n") if block.strip()]


@pytest.mark.parametrize(
    ("page", "expected"), [(page, text) for page, texts in (EXPECTED | IN_DOCS).items() for text in texts]
)
def test_a_page_says_what_the_ledgers_give(page, expected):
    assert any(expected in block for block in blocks(page))


@pytest.mark.parametrize("page", EXPECTED)
def test_a_page_has_no_figure_that_is_neither_recomputed_nor_quoted_with_its_source(page):
    left = []
    for block in blocks(page):
        rest = block
        for expected in sorted(EXPECTED[page], key=len, reverse=True):
            rest = rest.replace(expected, "")
        rest = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+|\b\d{4}\.\d{5}\b|sec\. [\d., ]+", "", rest)
        for figure in _FIGURE.findall(rest):
            source = QUOTED.get(figure)
            if figure not in SETTINGS and (source is None or source not in block):
                left.append(f"{figure} in: {block[:100]}")
    assert not left


def test_the_page_on_minimal_pairs_has_the_table_of_the_committed_scores():
    found, reports, records = judged()
    names = [
        f"{report['run']}: AR {record['config']['alpha']:g}, TAR {record['config']['beta']:g}"
        for report, record in zip(reports, records, strict=True)
    ]
    page = (ROOT / "results/blimp/README.md").read_text()
    assert pairs_difference.table(names, reports, found["difference"]) in page


@pytest.mark.parametrize(
    ("study", "records"),
    [
        ("min-lr", [runs(0, 0, 0)[1111]]),
        ("cuda", [runs(0, 0)[1111]]),
        ("quick/ptb", [runs(0, 0), runs(1, 1)]),
        ("quick/wikitext-2", [runs(0, 0, study="wikitext-2-200"), runs(1, 1, study="wikitext-2-200")]),
    ],
)
def test_a_study_quotes_another_of_this_repository_as_its_ledger_has_it(study, records):
    rows = tomllib.loads((ROOT / "results" / study / "study.toml").read_text())["quoted"]
    own = [(row["valid_ppl"], row["test_ppl"]) for row in rows if "of this repository" in row["source"]]
    by_seed = [record if 1111 in record else {1111: record} for record in records]
    assert own == [
        tuple(round(fmean(values(found, f"{split}_ppl")), 2) for split in ("valid", "test")) for found in by_seed
    ]


def test_the_penalties_cost_perplexity_in_the_first_three_epochs():
    base = dict(runs(0, 0)[1111]["curve"])
    for coefficients in THREE.values():
        ours = dict(runs(*coefficients)[1111]["curve"])
        assert all(ours[epoch] > base[epoch] for epoch in (1, 2, 3))
        assert ours[40] < base[40]


def test_what_was_still_improving_was_not_at_its_lowest_rate():
    for record in (runs(0, 0, 0.4)[1111], runs(1, 1, 0.4)[1111]):
        assert np.all(np.diff([ppl for _, ppl in record["curve"][-4:]]) < 0)


def test_the_pair_gains_nothing_at_a_dropout_of_0_4():
    assert gain(runs(1, 1, 0.4)[1111], runs(0, 0, 0.4)[1111], "test") < 0
