"""Baselines, full size, speed, minimal pairs, and what presets reach."""

import json
import math
from pathlib import Path
from statistics import fmean

import pytest
from scipy import stats

from lm.tables.published import per_target
from tests.figures.full_size import recipe
from tests.figures.reading import ROOT, adapted, ledger, mean_sd, minutes, only, pair, runs, values


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
        f"60.3 without them on PTB test, 57.3 with, {math.log(60.3 / 57.3):.3f} nats; "
        f"70.1 and 65.8 on WikiText-2 test, {math.log(70.1 / 65.8):.3f} nats "
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


def presets_reach() -> list[str]:
    """What docs/commands.md says that presets reach on PTB, and how long the runs took."""
    base, wide = runs(0, 0), runs(0, 0, study="ptb-650")[1111]
    awd, fast, onecycle = only("ptb-awd-lstm"), recipe(), only("ptb-onecycle")
    slow, quick, on_gpu = (minutes(base[seed]) for seed in (1111, 1112, 1113))
    assert [record["versions"]["threads"] for record in (base[1111], base[1112], onecycle)] == [1, 1, 2]
    return [
        f"| {fmean(values(base, 'test_ppl')):.1f} (n = {len(base)}) | {slow} and {quick} on one thread of an AMD EPYC "
        f"(seeds 1111 and 1112), {on_gpu} on an H100 (seed 1113) |",
        f"| {wide['test_ppl']:.1f} | {minutes(wide)} on an H100 |",
        f"| {awd['test_ppl']:.1f} after {awd['epochs']} of 500 epochs | {minutes(awd)} on an H100 |",
        f"| {fast['test_ppl']:.1f} | {minutes(fast)} on an H200, beside two other runs |",
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
