"""What `lm.bench` measured as a line of text, and as a table and plots in a folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from lm.base.errors import ConfigError
from lm.base.files import write_bytes


def text(label: str, row: dict[str, Any]) -> str:
    """One measurement as a line."""
    gemm = ""
    if "gemm_seconds" in row:
        gemm = f"products alone {row['gemm_seconds'] * 1e3:7.1f} ms ({row['gemm_ratio']:.2f} x)   "
    peak, plain_peak = _peaks(row)
    return (
        f"{label:22} {row['seconds_per_step'] * 1e3:7.1f} ms {row['tokens_per_s']:8,} tokens/s in {row['precision']}   "
        f"plain in fp32 {row['plain_seconds_per_step'] * 1e3:7.1f} ms {row['plain_tokens_per_s']:8,} tokens/s   "
        f"{row['ratio']:5.2f} x   {gemm}peak {peak:,} MB, plain {plain_peak:,} MB"
    )


def _peaks(row: dict[str, Any]) -> tuple[int, int]:
    """Peak memory in MB of both programs, on the GPU if that is where they ran."""
    name = "peak_gpu_mb" if "gpu" in row else "peak_rss_mb"
    return row[name], row[f"plain_{name}"]


def read_measurements(folder: Path) -> list[dict[str, Any]]:
    """What `speed.json` in `folder` holds so far. Raises ConfigError if it is none of ours: it would be replaced."""
    path = folder / "speed.json"
    try:
        measured = json.loads(path.read_bytes())
        if not all(isinstance(row, dict) for one in measured for row in one["rows"].values()):
            raise TypeError("no measurements")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"--table: {path}: cannot be added to: {error}") from None
    return measured


def measurement(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Today's, from rows by their label."""
    return {"date": time.strftime("%Y-%m-%d"), "rows": rows}


def write_table(folder: Path, measured: list[dict[str, Any]]) -> None:
    """Write measurements, the newest last: `speed.json`, README.md with a table for each, and a plot of the newest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "speed.json", (json.dumps(measured, indent=1) + "\n").encode())
    lines = [
        "# Speed of a training step\n",
        f"Each measurement is one `python -m lm.bench --table {folder}`, on a GPU with `--device cuda`. The two "
        "programs alternate in turns; figures are medians over turns. *Ratio* is plain PyTorch's time over ours: above "
        "1, ours is faster. Plain PyTorch runs as it comes; on a CPU ours also keeps freed memory and, in fp32, asks "
        "for large pages (`lm/base/memory.py`), a part of the gain that any program could have.\n",
        "*Products alone* are the step's matrix products, at their shapes, with nothing else. Their GFLOP/s show what "
        "a CPU gives, and decide most of the ratio: virtual machines of one name have CPUs of several generations. "
        "Where bf16 products gain less over fp32, so do we. *Kernel* is what computes our LSTM (`--kernel`): native is "
        "PyTorch's own, on a GPU cuDNN's. *Phases* are those of our step: the masks of weight drop, "
        "the forward pass without them, and so on (`lm/training/phases.py`), on a CPU of all steps, those with cold "
        "caches at the start of a turn too, on a GPU of the last of each turn: *rest*, what "
        "they leave of the step, can come out below 0.",
    ]
    plotted: set[str] = set()
    for one in reversed(measured):
        lines += ["", *_section(one)]
        name = _plot_name(one["rows"])
        if name not in plotted:  # the newest of its kind
            plotted.add(name)
            lines += ["", f"![tokens per second]({name})"]
    write_bytes(folder / "README.md", ("\n".join(lines) + "\n").encode())
    newest = measured[-1]["rows"]
    _plot(folder / _plot_name(newest), newest)


def _plot_name(rows: dict[str, dict[str, Any]]) -> str:
    return "speed-gpu.png" if "gpu" in next(iter(rows.values())) else "speed.png"


def _section(one: dict[str, Any]) -> list[str]:
    rows = one["rows"]
    first = next(iter(rows.values()))
    gpu = "gpu" in first
    machine = first["gpu"] if gpu else f"{first['cpu']}, {first['threads']} threads"
    digits = 2 if gpu else 0
    columns = ["", "kernel", "ms a step", "tokens/s", "plain: tokens/s", "ratio"]
    if products := "gemm_seconds" in first:  # older measurements on GPUs lack them
        columns += ["products alone: ms", "GFLOP/s", "step / products"]
    columns += ["peak MB", "plain: peak MB"]
    lines = [
        f"## {one['date']}\n",
        f"{machine}, PyTorch {first['torch']}; ours in {first['precision']}, plain in fp32; {first['turns']} turns.\n",
        "| " + " | ".join(columns) + " |",
        f"|---|---|{'--:|' * (len(columns) - 2)}",
    ]
    for label, row in rows.items():
        entries = [label, row["kernel"], f"{row['seconds_per_step'] * 1e3:.{digits}f}", f"{row['tokens_per_s']:,}"]
        entries += [f"{row['plain_tokens_per_s']:,}", f"{row['ratio']:.2f}"]
        if products:
            rate = row["gemm_gflop"] / row["gemm_seconds"]
            entries += [f"{row['gemm_seconds'] * 1e3:.{digits}f}", f"{rate:,.0f}", f"{row['gemm_ratio']:.2f}"]
        lines.append("| " + " | ".join([*entries, *(f"{peak:,}" for peak in _peaks(row))]) + " |")
    return [*lines, *_phases(rows, digits)]


def _phases(rows: dict[str, dict[str, Any]], digits: int) -> list[str]:
    """Table of the milliseconds of each phase, of measurements that tell masks from the forward pass."""
    names = list(next(iter(rows.values())).get("phases", {}))
    if "masks" not in names:
        return []
    lines = ["", "| ms | " + " | ".join(names) + " |", f"|---|{'--:|' * len(names)}"]
    for label, row in rows.items():
        entries = [f"{row['phases'][name] * 1e3:.{digits}f}" for name in names]
        lines.append("| " + " | ".join([label, *entries]) + " |")
    return lines


def _plot(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    from lm.base.plotting import new_figure, save_png  # matplotlib takes half a second to import

    figure = new_figure((8, 0.55 * len(rows) + 1.2))
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    for shift, key, label in ((-0.2, "tokens_per_s", "this project"), (0.2, "plain_tokens_per_s", "plain PyTorch")):
        bars = axes.barh(places + shift, [row[key] for row in rows.values()], 0.38, label=label)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set_yticks(places, rows)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.12)
    axes.set_xlabel("tokens per second of training")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)
