"""The directory of a run, and whether an earlier start has finished the run there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.base.errors import CheckpointError, ConfigError
from lm.base.files import read_file, same_place
from lm.base.numbers import is_number
from lm.base.rundir import RunDir
from lm.config.schema import RunOptions, TrainConfig
from lm.config.values import as_plain, config_id, run_name, with_defaults
from lm.text.finding import known_text
from lm.text.layout import SPLITS
from lm.text.units import NAMES, summary
from lm.training.places import check_copy, check_new

OTHER_TEXT = "that run was trained on another text than the one found now; give its text by --data, or train anew"


def choose_run_dir(config: TrainConfig, options: RunOptions) -> RunDir:
    """The run directory.

    Raises ConfigError or CheckpointError when it is that of the run to fine-tune, or an export, or holds what a new run
    would replace, when --resume names a checkpoint of another run or none, and when --save cannot be written.
    """
    run_dir = _choose(config, options)
    if not options.resume:
        check_new(run_dir, resume=False)
    if options.save and not options.dry_run:
        check_copy(Path(options.save), run_dir)
    return run_dir


def _choose(config: TrainConfig, options: RunOptions) -> RunDir:
    usual = RunDir(options.out_dir or Path("runs", run_name(config)))
    if options.resume not in ("", "auto"):
        return _run_of(Path(options.resume), options.out_dir)
    if usual.is_export:
        if not options.resume:
            raise ConfigError(f"--out-dir: {usual} holds an export, which stays as it is; choose another")
        raise _no_state(usual)
    if config.finetune and same_place(usual.path, config.finetune):
        raise ConfigError(f"--out-dir: {usual} is the run to fine-tune, which stays as it is; choose another")
    return usual


def _run_of(checkpoint: Path, out_dir: str) -> RunDir:
    """The directory of the run that a checkpoint lies in; `out_dir` is what --out-dir says, if anything."""
    if export := next((place for place in (checkpoint, checkpoint.parent) if RunDir(place).is_export), None):
        raise _no_state(export)
    if RunDir(checkpoint).is_run:
        raise ConfigError(f"--resume: {checkpoint} is a run directory; give --out-dir {checkpoint} --resume auto")
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: no such checkpoint")
    home = RunDir(checkpoint.absolute().parent.parent)
    if not home.is_run:
        raise CheckpointError(f"--resume: {checkpoint} does not lie in the ckpt folder of a run directory")
    if out_dir and not same_place(out_dir, home):
        raise ConfigError(f"--resume: {checkpoint} belongs to the run in {home}, not to --out-dir {out_dir}")
    return home


def _no_state(export: RunDir | Path) -> CheckpointError:
    return CheckpointError(
        f"--resume: {export} is an export, without the state that training continues from; "
        f"to train its model further: --finetune {export} --out-dir DIR"
    )


def read_result(run_dir: RunDir, config: TrainConfig) -> dict[str, Any] | None:
    """Content of result.json, if it is of this very configuration; None where there is none, or it is damaged."""
    try:
        result = json.loads(read_file(run_dir.result))
        return result if with_defaults(result["config"]) == as_plain(config) and _is_whole(result, config) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _is_whole(result: dict[str, Any], config: TrainConfig) -> bool:
    """Whether the values are of the kinds that a run writes, so that they can stand in a ledger."""
    figures = [f"{split}_{unit}" for split in SPLITS for unit in (*NAMES, "loss")]
    needed = ["best_epoch", "epochs", "seconds"]
    if result["status"] == "completed":
        needed += ["valid_loss", "valid_ppl"]
    return (
        (result["id"], result["seed"]) == (config_id(config), config.seed)
        and isinstance(result["dataset"], str)
        and all(isinstance(result.get(name) or {}, dict) for name in ("activation", "versions", "git"))
        and all(result.get(name) is None or is_number(result[name]) for name in figures)
        and all(is_number(result[name]) for name in needed)
    )


def finished_result(run_dir: RunDir, config: TrainConfig, *, tested: bool) -> dict[str, Any] | None:
    """The result in the directory, if the run is complete, and scored on test where `tested` asks for it."""
    result = read_result(run_dir, config)
    try:
        if result is None or result["status"] != "completed":
            return None
        if tested and result["test_loss"] is None and "test" in (result.get("corpus_sha256") or SPLITS):
            return None
        summary(result)  # needs the figures that a damaged one lacks
    except (LookupError, TypeError):  # it is computed again
        return None
    return result


def check_text(run_dir: RunDir, result: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise CheckpointError if a result is of another text than the one that its run would read now."""
    if not is_of_text(result, known_text(config)):
        raise CheckpointError(f"--resume: {run_dir} is complete, but {OTHER_TEXT}")


def is_of_text(result: Mapping[str, Any], text: Mapping[str, str] | None) -> bool:
    """Whether a result or ledger line is of the text with these checksums (`known_text`), as far as both are known."""
    return text is None or result.get("corpus_sha256") in (None, text)
