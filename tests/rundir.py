"""What a run directory holds, without what a clock or the process decides, and how two of them differ."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

# Decided by a clock, by the process or by the checkout, not by the computation.
_INCIDENTAL = {"seconds", "tokens_per_s", "peak_rss_mb", "log_position", "git"}


def _without_incidentals(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_incidentals(inner) for key, inner in value.items() if key not in _INCIDENTAL}
    return [_without_incidentals(inner) for inner in value] if isinstance(value, list) else value


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    return [_without_incidentals(json.loads(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def checkpoint(run_dir: Path, name: str) -> dict[str, Any]:
    """All state in a checkpoint: weights, optimizer, averages, generators, progress."""
    return _without_incidentals(torch.load(run_dir / "ckpt" / f"{name}.pt", weights_only=True))


def weights(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """The model in a checkpoint."""
    return checkpoint(run_dir, name)["model"]


def ending(run_dir: Path) -> dict[str, Any]:
    """Everything that a finished run leaves behind."""
    return {
        "last": checkpoint(run_dir, "last"),
        "best": checkpoint(run_dir, "best"),
        "result": _without_incidentals(json.loads((run_dir / "result.json").read_text())),
        "metrics": records(run_dir),
        "files": sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file() and "tb" not in p.parts),
    }


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two endings differ; tensors are compared bit for bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [found for key in ours for found in differences(ours[key], theirs[key], f"{where}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [found for i in range(len(ours)) for found in differences(ours[i], theirs[i], f"{where}[{i}]")]
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [where]
    return [] if ours == theirs else [f"{where}: {str(ours)[:200]} instead of {str(theirs)[:200]}"]


def same(a: Any, b: Any) -> bool:
    """Whether nothing differs."""
    return not differences(a, b)


def event_steps(run_dir: Path, tag: str) -> list[int]:
    """The steps that TensorBoard shows for a tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports each restart
    return [event.step for event in EventAccumulator(str(run_dir / "tb")).Reload().Scalars(tag)]
