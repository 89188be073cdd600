"""AWD-LSTM at its full size: the short recipe, what AR and TAR are worth in it, and the runs on a GPU side by side."""

import json
import math
from statistics import fmean

from tests.figures.reading import ROOT, adapted, gain, only, pair, runs, values
from tests.figures.small_text import by_seed, of_width
from tests.gpu_page import lane_rows


def recipe(alpha: float = 3, beta: float = 1.5) -> dict:
    """The record of the short recipe on PTB, with the recipe's penalties or others."""
    return runs(alpha, beta, study="ptb-fast")[141]


def readme() -> list[str]:
    """Rows of the README's table, and its finding."""
    ours, without = recipe(), recipe(0, 0)
    wt2 = only("wikitext-2-fast")
    return [
        f"PTB: 100 epochs of Adam | 1 | {ours['test_ppl']:.2f} | 58.8",
        f"WikiText-2: {wt2['epochs']} epochs | 1 | {wt2['test_ppl']:.2f} | 65.6",
        f"AWD-LSTM goes from {without['test_ppl']:.2f} to {ours['test_ppl']:.2f} on PTB test with alpha 3 and "
        f"beta 1.5, {gain(ours, without, 'test'):.3f} nats",
    ]


def results() -> list[str]:
    """The section of results/README.md and its row of the first table."""
    ours, without = recipe(), recipe(0, 0)
    wt2 = only("wikitext-2-fast")
    rows = [
        f"| {name} | {record['epochs']} | {pair(record, sign=' | ')} | {record['train_ppl']:.2f} | "
        f"{record['activation']['rms']:.3f} | {record['activation']['temporal_rms']:.3f} |"
        for name, record in (
            ("PTB, alpha 3 and beta 1.5", ours),
            ("PTB, no penalty", without),
            ("WikiText-2, alpha 3 and beta 1.5", wt2),
        )
    ]
    cached = [adapted("ptb-fast")[record["id"]] for record in (ours, without)]
    (wide,) = adapted("wikitext-2-fast").values()
    curves = [dict(record["curve"]) for record in (ours, without)]
    by_epoch = {epoch: math.log(curves[1][epoch] / curves[0][epoch]) for epoch in (20, 70, 100)}
    gaps = [record["valid_loss"] - record["train_loss"] for record in (without, ours)]
    ratios = [record["activation"]["rms"] for record in (without, ours)]
    assert all(abs(ours[f"{split}_ppl"] / there - 1) < 0.002 for split, there in (("valid", 61.2), ("test", 58.8)))
    assert (ours["averaged"], without["averaged"], wt2["averaged"]) == (True, True, False)
    by_optimizer = (
        (runs(0, 0), runs(1, 1)), by_seed("ptb-60k-final"), by_seed("ptb-60k-650"), of_width(800),
        ({141: without}, {141: ours}),
    )  # fmt: skip
    assert all(on["train_ppl"] > off["train_ppl"] for off, on in zip(*map(dict.values, of_width(800)), strict=True))
    on_train = [fmean(values(side, "train_ppl")) for two in by_optimizer for side in two]
    return rows + [
        "`ptb-200/`, SGD, the pair: {:.2f} and {:.2f}; AdamW: `ptb-60k-final/` {:.2f} and {:.2f}, `ptb-60k-650/` "
        "{:.2f} and {:.2f}, `ptb-width/` with 800 units {:.2f} and {:.2f}; Adam: `ptb-fast/`, n = 1, {:.2f} and "
        "{:.2f}".format(*on_train),
        f"`ptb-fast/`: {pair(ours)} in 100 epochs, published 61.2 / 58.8; "
        f"`wikitext-2-fast/`: {pair(wt2)} in {wt2['epochs']}, published 68.7 / 65.6 (README of awd-lstm-lm); n = 1",
        "on PTB within 0.2 % on both splits; on WikiText-2 "
        f"{100 * (wt2['valid_ppl'] / 68.7 - 1):.1f} % and {100 * (wt2['test_ppl'] / 65.6 - 1):.1f} % above",
        f"`ptb-fast/`, n = 1: {gain(ours, without, 'test'):.3f} nats on test",
        f"they gain {gain(ours, without, 'valid'):.3f} nats on valid and {gain(ours, without, 'test'):.3f} on test",
        f"(60.0 / 57.3) that is {math.log(60.3 / 57.3):.3f} nats on test, beside the one not fine-tuned (60.7 / 58.8) "
        f"{math.log(60.3 / 58.8):.3f}",
        f"{by_epoch[20]:.3f} nats on valid after 20 epochs, {by_epoch[70]:.3f} after 70, {by_epoch[100]:.3f} after 100 "
        f"(the gain of {gain(ours, without, 'valid'):.3f} is between the best checkpoints, of epochs "
        f"{ours['best_epoch']} and {without['best_epoch']})",
        f"with penalties is {gain(ours, without, 'train'):.3f} nats better, on valid "
        f"{gain(ours, without, 'valid'):.3f}, and the gap between the two grows from {gaps[0]:.3f} to "
        f"{gaps[1]:.3f} nats",
        f"PTB {cached[0]['valid', 'cache']:.2f} / {cached[0]['test', 'cache']:.2f} (window 500",
        f"WikiText-2 {wide['valid', 'cache']:.2f} / {wide['test', 'cache']:.2f} (3785, 0.1279, 0.662; weights "
        f"rounded to bf16, alone {wide['valid', 'none']:.2f} / {wide['test', 'none']:.2f})",
        f"from {cached[1]['test', 'none']:.2f} to {cached[1]['test', 'cache']:.2f} only",
        f"PTB test has {cached[0]['test', 'dynamic']:.2f} (alpha 3 and beta 1.5",
        f"which are {(ratios[0] / ratios[1]) ** 2:.1f} times as large without penalties",
        f"{ours['seconds']:.0f} s and {without['seconds']:.0f} s for PTB and {wt2['seconds']:.0f} s for WikiText-2",
    ]


def side_by_side() -> str:
    """How much faster runs that share a GPU train with the Triton LSTM."""
    lanes = json.loads((ROOT / "results/speed/gpu-lstm.json").read_text())["lanes"]
    ratios = [float(ratio) for *_, ratio in lane_rows(lanes)]
    return f"train {min(ratios):.1f} to {max(ratios):.1f} times as fast as with cuDNN"
