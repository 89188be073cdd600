"""What tests.full_size measured, as a page; and the bounds that memory is held to."""

from __future__ import annotations

from typing import Any

Rows = dict[str, dict[str, Any]]
# MB that a row's memory may have, at any size.
BOUNDS = {
    "encode words": 1000, "encode bytes": 1000, "encode large": 1000, "decoder with cutoffs": 2000, "decoder": 2000,
}  # fmt: skip
LABELS = {
    "encode words": "words, as many as WikiText-103 has",
    "encode bytes": "bytes, as many as enwik8 has",
    "encode large": "2 GB of words",
    "train QRNN": "WikiText-103: QRNN, 4 layers of 2500 units, `--cutoffs`",
    "train LSTM": "WikiText-103: LSTM, 3 layers of 1150 units, `--batch-size 60 --cutoffs`",
    "train bytes": "enwik8: LSTM, 3 layers of 1840 units",
    "decoder with cutoffs": "`--cutoffs 2800 20000 76000`",
    "decoder": "one softmax",
}
_DAY_S = 86_400


def exceeded(rows: Rows) -> list[str]:
    """The bounds that rows do not keep."""
    return [
        f"{name}: {rows[name]['peak_mb']:,} MB, allowed {most:,}"
        for name, most in BOUNDS.items()
        if name in rows and rows[name]["peak_mb"] > most
    ]


def table(heads: str, rows: list[tuple[object, ...]]) -> list[str]:
    """A table whose first column is text; heads are separated by `|`."""
    lines = [f"| {heads} |", f"|---|{'--:|' * heads.count('|')}"]
    return lines + [f"| {' | '.join(f'{c:,}' if isinstance(c, int) else str(c) for c in row)} |" for row in rows]


def encoding_row(label: str, row: dict[str, Any]) -> tuple[object, ...]:
    """Cells of a text."""
    tokens = " / ".join(f"{count:,}" for count in row["tokens"].values())
    return label, row["text_mb"], row["types"], tokens, f"{row['cpu_seconds']:.0f}", row["peak_mb"], row["cache_mb"]


def training_row(label: str, row: dict[str, Any]) -> tuple[object, ...]:
    """Cells of a model; a day of all threads is extrapolated from CPU seconds."""
    day = row["tokens_per_cpu_s"] * row["threads"] * _DAY_S
    return (
        label, row["parameters"], f"{row['batch_size']} x {row['bptt']}", row["timed_updates"], row["tokens_per_s"],
        row["tokens_per_cpu_s"], row["peak_mb"], f"{day / 1e6:.0f}M", f"{day / row['train_tokens']:.2f}",
    )  # fmt: skip


def decoder_row(label: str, row: dict[str, Any]) -> tuple[object, ...]:
    """Cells of a decoder."""
    return label, f"{row['cpu_seconds_per_step']:.1f}", row["peak_mb"]


def about(rows: Rows) -> str:
    """Machine and moment."""
    every = list(rows.values())
    loads = [load for row in every for load in row["load"]]
    commits = sorted({row["commit"][:8] for row in every if row["commit"]})
    scale = every[0]["scale"]
    return (
        f"{every[0]['cpu']}, {every[0]['threads']} threads, PyTorch {every[0]['torch']}, "
        f"{' and '.join(sorted({row['date'] for row in every}))}, commit {' and '.join(commits)}"
        f"{'' if scale == 1 else f'; a trial at {scale:g} of the size'}. Load average {min(loads):.0f} to "
        f"{max(loads):.0f}: other programs used the CPUs as well, so rates by the clock do not compare between rows; "
        "those by CPU seconds vary less."
    )


def page(rows: Rows) -> str:
    """The page of what was measured so far."""

    def part(start: str, cells: Any) -> list[tuple[object, ...]]:
        return [cells(LABELS[name], row) for name, row in rows.items() if name.startswith(start)]

    lines = [
        "# At the size of WikiText-103 and enwik8", "",
        "`python -m tests.full_size --out results/speed` makes texts of these sizes from made-up words and characters, "
        "drawn by Zipf's law, and runs the commands on them. Time and memory do not depend on what the words mean; "
        "perplexities of such texts say nothing and are left out. All figures are in full-size.json.", "",
        about(rows), "",
        "## Encoding", "",
        "`lm.corpus` on a text that it has not seen. Peak MB is the largest resident set of the process; allowed are "
        "1,000, whatever the size.", "",
        *table("text | MB | types | tokens | CPU s | peak MB | cache MB", part("encode", encoding_row)), "",
        "## Training", "",
        "`lm.train` with the command lines of awd-lstm-lm (its defaults for the LSTM on words) and windows of fixed "
        "length, then `lm.evaluate`. Rates are means over the updates after the first; peak MB is that of the whole "
        "process, checkpoints and scoring included. The last two columns are extrapolated: tokens a CPU second, on all "
        "CPUs, for 24 hours without validation.", "",
        *table("| parameters | batch x window | updates | tokens/s | tokens a CPU second | peak MB | tokens in 24 h | "
               "epochs in 24 h", part("train", training_row)), "",
        "## Decoder", "",
        "Loss and gradients of 267,735 words, 400 units and 60 x 70 targets drawn by Zipf's law. Peak MB is the "
        "largest resident set above that before the decoder was made; allowed are 2,000, and the matrix and its "
        "gradient are 857.", "",
        *table("| CPU s a step | peak MB", part("decoder", decoder_row)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
