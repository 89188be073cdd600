"""AWD-LSTM at its full size: the short recipe, what AR and TAR are worth in it, and the runs on a GPU side by side."""

import json
import math

from tests.figures.reading import ROOT, adapted, gain, ledger, only, pair


def _ptb() -> tuple[dict, dict]:
    """The records of the recipe and of the same without penalties."""
    by_alpha = {record["config"]["alpha"]: record for record in ledger("ptb-fast") if record["seed"] == 141}
    return by_alpha[3.0], by_alpha[0.0]


def readme() -> list[str]:
    """Rows of the README's table, and its finding."""
    ours, without = _ptb()
    wt2 = only("wikitext-2-fast")
    return [
        f"PTB: 100 epochs of Adam | 1 | {ours['test_ppl']:.2f} | 58.8",
        f"WikiText-2: {wt2['epochs']} epochs | 1 | {wt2['test_ppl']:.2f} | 65.6",
        f"AWD-LSTM goes from {without['test_ppl']:.2f} to {ours['test_ppl']:.2f} on PTB test with alpha 3 and "
        f"beta 1.5, {gain(ours, without, 'test'):.3f} nats",
    ]


def results() -> list[str]:
    """The section of results/README.md and its row of the first table."""
    ours, without = _ptb()
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
    return rows + [
        f"`ptb-fast/`: {pair(ours)} in 100 epochs, published 61.2 / 58.8; "
        f"`wikitext-2-fast/`: {pair(wt2)} in {wt2['epochs']}, published 68.7 / 65.6 (README of awd-lstm-lm); n = 1",
        f"on PTB: valid reached, test {100 * (ours['test_ppl'] / 58.8 - 1):.2f} % above; on WikiText-2 "
        f"{100 * (wt2['valid_ppl'] / 68.7 - 1):.1f} % and {100 * (wt2['test_ppl'] / 65.6 - 1):.1f} % above",
        f"`ptb-fast/`, n = 1: {gain(ours, without, 'test'):.3f} nats on test",
        f"they gain {gain(ours, without, 'valid'):.3f} nats on valid and {gain(ours, without, 'test'):.3f} on test",
        f"62.7 / 60.3 without both against 60.0 / 57.3 with them is {math.log(60.3 / 57.3):.3f} nats on test if the "
        f"latter was fine-tuned, and against 60.7 / 58.8 {math.log(60.3 / 58.8):.3f} if it was not",
        f"ends at a lower perplexity on train as well, {ours['train_ppl']:.2f} against {without['train_ppl']:.2f}",
        f"the last checkpoint has valid {ours['curve'][-1][1]:.2f}, epoch 90 has {ours['valid_ppl']:.2f}",
        f"takes it from {cached[0]['test', 'none']:.2f} to {cached[0]['test', 'cache']:.2f} on test, and the model "
        f"without penalties from {cached[1]['test', 'none']:.2f} to {cached[1]['test', 'cache']:.2f}",
        f"{ours['seconds']:.0f} s and {without['seconds']:.0f} s for PTB and {wt2['seconds']:.0f} s for WikiText-2",
    ]


def side_by_side() -> str:
    """Two runs of PTB that share a GPU, by kernel, and the fastest step of a layer."""
    found = json.loads((ROOT / "results/speed/gpu-lstm.json").read_text())
    mean = {}
    for kernel in ("triton", "native"):
        times = [
            row["ms_an_update"] for row in found["lanes"] if row["kernel"] == kernel and row["runs"] == ["ptb", "ptb"]
        ]
        mean[kernel] = sum(times) / len(times)
    step = {
        kernel: min(
            row["us_a_step"]
            for row in found["tune"]
            if (row["hidden"], row["batch"], row["kernel"]) == (1150, 20, kernel)
        )
        for kernel in ("forward", "backward")
    }
    return (
        f"two runs of PTB that share an H200 take {mean['triton']:.1f} ms an update each with the Triton kernels and "
        f"{mean['native']:.1f} with cuDNN, and a time step of a layer (1150 units, 20 rows) takes "
        f"{step['forward']:.1f} us forward and {step['backward']:.1f} backward"
    )
