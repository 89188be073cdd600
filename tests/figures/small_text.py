"""AR and TAR on 60,000 words of PTB."""

import math
from statistics import fmean

from scipy import stats

from lm.config.values import with_defaults
from lm.tables.stats import holm
from tests.figures.reading import activation, bracket, gain, ledger, mean_gain, mean_sd, pair, values, welch

FRESH_NORMS = {"LSTM": "ptb-norms-final", "RNN_RELU": "ptb-norms-relu"}
NORMS = {"no penalty": None, "L1": "l1", "L2": "l2", "elastic": "elastic"}


def sides(study: str) -> tuple[list[dict], list[dict]]:
    """The completed runs of a study without AR and TAR, and those with."""
    found = ledger(study)
    assert all(line["status"] == "completed" for line in found)
    return tuple([r for r in found if bool(r["config"]["alpha"]) == on] for on in (False, True))


def by_seed(study: str) -> list[dict[int, dict]]:
    """The same two sides, seed -> record."""
    return [{r["seed"]: r for r in side} for side in sides(study)]


def setting(config: dict) -> str:
    text = f"dropout {config['dropout']:g}, rate {config['lr']:g}"
    return text + (f", weight decay {config['wdecay']:g}" if config["wdecay"] else "")


def searched(search: str, final: str) -> list[str]:
    """A search, and the seeds that took no part in it: what was best on each side, and what it gains or loses."""
    tried, rows = sides(search), []
    best = [min(side, key=lambda r: r["valid_loss"]) for side in tried]
    fresh = by_seed(final)
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
    gained, p = gained_over(*fresh)
    return [
        *rows,
        f"{runs_} runs and {hours:.1f} hours of one core",
        f"{gained} on test (n = {len(fresh[0])}, Welch, {shown(p)})",
    ]


def pilot() -> list[str]:
    """Six epochs on all of PTB, by two optimizers."""
    found = ledger("ptb-200-pilot")
    rows = []
    for optimizer, name in (("sgd", "SGD"), ("adamw", "AdamW")):
        for r in sorted((r for r in found if r["config"]["optimizer"] == optimizer), key=lambda r: r["valid_loss"]):
            config = r["config"]
            penalties = f"alpha {config['alpha']:g}, beta {config['beta']:g}" if config["alpha"] else "no penalty"
            rows.append(
                f"| {name}, rate {config['lr']:g}, dropout {config['dropout']:g}, {penalties} | {pair(r, sign=' | ')} "
                f"| {r['train_ppl']:.2f} |"
            )
    at = {(r["config"]["optimizer"], r["config"]["lr"], r["config"]["dropout"], r["config"]["alpha"]): r for r in found}
    gains = [
        gain(at[name, rate, 0.2, 2], at[name, rate, 0.2, 0], "test") for name, rate in (("adamw", 8e-3), ("sgd", 20))
    ]
    return [*rows, f"gain {gains[0]:.3f} nats on test with AdamW and cost {-gains[1]:.3f} with SGD"]


def unreadable() -> list[str]:
    """The runs that cannot read their own training text."""
    lost = max(ledger("ptb-60k-budget"), key=lambda r: r["train_ppl"])
    narrow = of_width(400)[1][1]
    return [
        f"has a perplexity of {lost['train_ppl']:,.0f} on train, {pair(lost)} on valid and test",
        f"and seed 1 has {narrow['train_ppl']:,.0f} and {pair(narrow)}",
    ]


def gained_over(base: dict[int, dict], ours: dict[int, dict]) -> tuple[str, float]:
    """What `ours` gains on test over `base` with Welch's interval, and p."""
    test = welch(base, ours)
    return f"{mean_gain(base, ours):.3f} nats {bracket(*test.confidence_interval(), 3)}", float(test.pvalue)


def shown(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def tuned_gain() -> str:
    """What alpha 2 and beta 1 gain over the best settings without them, on seeds that chose nothing."""
    return gained_over(*by_seed("ptb-60k-final"))[0]


def transferred() -> list[str]:
    """The tuned pair of PTB at 200 units on another corpus and at another width, where nothing was tuned."""
    rows, gains, p_values = [], [], []
    for name, study in (("WikiText-2, 2x200", "wikitext-2-60k"), ("PTB, 2x650", "ptb-60k-650")):
        base, ours = by_seed(study)
        assert base.keys() == ours.keys()
        gained, p = gained_over(base, ours)
        cells = [mean_sd(side, "test_ppl", interval=True) for side in (base, ours)]
        cells += [f"{fmean(values(side, 'train_ppl')):.2f}" for side in (base, ours)]
        rows.append(f"| {name} | {len(base)} | {' | '.join(cells)} | {gained.replace(' nats', '')} |")
        gains.append(gained)
        p_values.append(p)
    wt2, wide = (shown(p) for p in holm(p_values))
    base, ours = by_seed("ptb-60k-650")
    on_train = stats.ttest_1samp([gain(ours[seed], base[seed], "train") for seed in base], 0)
    assert {record["best_epoch"] for record in ledger("wikitext-2-60k")} == {4, 5}
    return [
        *rows,
        f"{gains[0]} on WikiText-2 ({wt2}) and {gains[1]} at 650 units ({wide})",
        f"better by {mean_gain(base, ours, 'train_loss'):.3f} nats {bracket(*on_train.confidence_interval(), 3)} "
        "(n = 3, paired)",
        f"{gains[0]} on WikiText-2 and {gains[1]} at 650 units (n = 3 each)",
    ]


def of_norm(lines: list[dict], model: str, norm: str | None, wdecay: float = 0) -> list[dict]:
    """The runs of a network with AR of one norm (None: without AR)."""
    wanted = {"model": model, "wdecay": wdecay}
    return [
        r
        for r in lines
        if wanted.items() <= r["config"].items() and (r["config"]["ar_norm"] if r["config"]["alpha"] else None) == norm
    ]


def zeros(records: list[dict]) -> str:
    """Shares of the activations near 0 and exactly 0, means over runs."""
    shares = [100 * fmean(r["activation"][name] for r in records) for name in ("frac_small", "frac_zero")]
    return " | ".join(f"{share:.1f} %" for share in shares)


def norms() -> list[str]:
    """The search over norms and strengths of AR, and the seeds that took no part in it."""
    tried, rows = ledger("ptb-norms"), []
    fresh = [line for study in FRESH_NORMS.values() for line in ledger(study)]
    for model in ("LSTM", "RNN_RELU"):
        for wdecay in (0, 0.1):
            for name, norm in NORMS.items():
                if not (found := of_norm(tried, model, norm, wdecay)):
                    continue
                best = min(found, key=lambda r: r["valid_loss"])
                label = f"{model}, {name}" + (f", weight decay {wdecay:g}" if wdecay else "")
                alpha = f"{best['config']['alpha']:g}" if norm else ""
                cells = f"| {label} | {len(found)} | {alpha} | {pair(best, sign=' | ')} | {zeros([best])} |"
                rows.append(" ".join(cells.split()))
        for name, norm in NORMS.items():
            if not (again := {r["seed"]: r for r in of_norm(fresh, model, norm)}):
                continue
            rows.append(
                f"| {model}, {name} | {len(again)} | {mean_sd(again, 'valid_ppl')} "
                f"| {mean_sd(again, 'test_ppl', interval=True)} | {zeros(list(again.values()))} |"
            )
            best = min(of_norm(tried, model, norm), key=lambda r: r["valid_loss"])
            chosen = with_defaults(best["config"])
            assert all({**with_defaults(r["config"]), "seed": 1111} == chosen for r in again.values()), name
    return [*rows, *norm_gains(), *norm_gains("RNN_RELU"), *norm_advice()]


def norm_gains(model: str = "LSTM") -> list[str]:
    """What L1 and L2 gain on test over no penalty, and L2 over L1, on seeds that chose nothing."""
    fresh = ledger(FRESH_NORMS[model])
    of = {name: {r["seed"]: r for r in of_norm(fresh, model, norm)} for name, norm in NORMS.items()}
    pairs = (("no penalty", "L1"), ("no penalty", "L2"), ("L1", "L2"))
    gains, p_values = zip(*(gained_over(of[base], of[name]) for base, name in pairs), strict=True)
    unpaired = holm(p_values)
    losses = {name: values(records, "test_loss") for name, records in of.items()}
    paired = holm([float(stats.ttest_rel(losses[name], losses[base]).pvalue) for base, name in pairs])
    found = [f"{text} ({shown(p)})" for text, p in zip(gains, unpaired, strict=True)]
    if model == "LSTM":  # where the page says that both tests agree
        assert [p < 0.05 for p in paired] == [p < 0.05 for p in unpaired]
        return found
    return [*found, "p = {1:.3f}, {2:.3f} and {0:.3f}".format(*paired)]


def norm_advice() -> list[str]:
    """What the search says on common advice."""
    tried = ledger("ptb-norms")

    def best(model: str, norm: str | None, wdecay: float = 0, alphas: tuple[float, ...] = ()) -> dict:
        found = of_norm(tried, model, norm, wdecay)
        return min((r for r in found if not alphas or r["config"]["alpha"] in alphas), key=lambda r: r["valid_loss"])

    def zero(model: str, norm: str | None) -> str:
        return f"{100 * best(model, norm)['activation']['frac_zero']:.1f} %"

    strength = [
        f"{best(model, norm)['config']['alpha'] / 200:.2g} ({norm.upper()})"
        for model in ("LSTM", "RNN_RELU")
        for norm in ("l1", "l2")
    ]
    strongest = best("LSTM", "l2", alphas=(20,))
    coarse, fine = best("LSTM", "l1", alphas=(0.02, 0.2, 2, 20)), best("LSTM", "l1")
    decayed = [gain(best("LSTM", "l1", 0.1), best("LSTM", None, 0.1), split) for split in ("valid", "test")]
    against = gain(best("LSTM", None, 0.1), best("LSTM", None), "test")
    hours = sum(r["seconds"] for r in tried) / 3600
    return [
        f"{len(tried)} runs and {hours:.1f} hours of one core",
        "best per unit: LSTM {}, {}, ReLU {}, {}".format(*strength),
        f"which still gains {gain(strongest, best('LSTM', None), 'test'):.3f} nats on test",
        "valid perplexity with L1: "
        + ", ".join(f"{r['valid_ppl']:.2f} at {r['config']['alpha']:g}" for r in (coarse, fine)),
        f"exact zeros: LSTM {zero('LSTM', 'l1')} with L1; ReLU {zero('RNN_RELU', None)} without a penalty, "
        f"{zero('RNN_RELU', 'l1')} with L1",
        f"L1 gains {decayed[0]:.3f} nats on valid and {decayed[1]:.3f} on test over weight decay alone, which itself "
        f"gains {against:.3f} on test",
    ]


def of_width(units: int) -> tuple[dict[int, dict], dict[int, dict]]:
    """Seed -> record without and with the penalties, at one width of the layers."""
    base, ours = ({r["seed"]: r for r in side if r["config"]["nhid"] == units} for side in sides("ptb-width"))
    return base, ours


def width() -> list[str]:
    """What AR and TAR gain over the width of the layer, and by how much that changes with each doubling."""
    found, rows, doublings, gains, means = sides("ptb-width"), [], [], [], {}
    for units in (100, 200, 400, 800):
        base, ours = of_width(units)
        gained, _ = gained_over(base, ours)
        rows.append(
            f"| {units} | {len(base.keys() & ours.keys())} | {mean_sd(base, 'test_ppl')} | {mean_sd(ours, 'test_ppl')} "
            f"| {activation(base, 'rms'):.3f} | {activation(ours, 'rms'):.3f} | {gained.replace(' nats', '')} |"
        )
        paired = [gain(ours[seed], base[seed], "test") for seed in sorted(base.keys() & ours.keys())]
        doublings += [math.log2(units)] * len(paired)
        gains += paired
        means[units] = mean_gain(base, ours)
    line = stats.linregress(doublings, gains)
    reach = stats.t.ppf(0.975, len(gains) - 2) * line.stderr
    hours = sum(r["seconds"] for side in found for r in side) / 3600
    return [
        *rows,
        f"{line.slope:+.3f} nats {bracket(line.slope - reach, line.slope + reach, 3)} with each doubling",
        f"{sum(map(len, found))} runs, {hours:.1f} hours of one core",
        f"gains {means[100]:.3f} nats at 100 units and {means[800]:.3f} at 800",
    ]
