"""Where the files of a run or of an export lie."""

from __future__ import annotations

import os
from pathlib import Path


class RunDir:
    """The directory of a run (config.json, ckpt/, ...) or of an export (config.json, model.safetensors, ...)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"  # every value of the configuration
        self.environment = self.path / "env.json"  # versions, machine, commit and command line
        self.tokenizer = self.path / "tokenizer.json"  # in the format of the `tokenizers` library
        self.metrics = self.path / "metrics.jsonl"  # one record per interval and epoch
        self.log = self.path / "train.log"  # the log messages of training
        self.output = self.path / "output.log"  # what a run of a sweep printed, over all its attempts
        self.events = self.path / "tb"  # the folder of TensorBoard's events
        self.last = self.path / "ckpt" / "last.pt"  # the checkpoint that training continues from
        self.best = self.path / "ckpt" / "best.pt"  # the checkpoint with the best valid loss
        self.lock = self.path / "train.lock"  # locked by the process that trains here; every run makes it first of all
        self.run_lock = self.path / "run.lock"  # locked by the process of a sweep's run
        self.sweep_lock = self.path / "sweep.lock"  # locked by the sweep that the run belongs to
        self.result = self.path / "result.json"  # what the run came to, written last
        self.weights = self.path / "model.safetensors"  # of an export, the file that makes a folder one

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def own_files(self) -> tuple[Path, ...]:
        """What a run started anew would replace."""
        checkpoints = (self.last, self.last.with_name("last.prev.pt"), self.best)
        return (self.config, self.environment, self.tokenizer, self.metrics, self.result, *checkpoints)

    @property
    def is_export(self) -> bool:
        """Whether the folder holds an export, complete or not."""
        return self.weights.is_file()

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return self.config.is_file() and not self.is_export
