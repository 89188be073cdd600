"""AR and TAR on 60,000 words of PTB."""

from statistics import fmean

from tests.figures.reading import activation, bracket, ledger, mean_gain, mean_sd, pair, values, welch


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
