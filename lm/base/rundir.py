"""Where the files of a run or of an export lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, init=False)
class RunDir:
    """The directory of a run (config.json, ckpt/, ...) or of an export (config.json, model.safetensors, ...)."""

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "path", Path(path))

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def config(self) -> Path:
        """Every value of the configuration."""
        return self.path / "config.json"

    @property
    def environment(self) -> Path:
        """Versions, machine, commit and command line."""
        return self.path / "env.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, in the format of the `tokenizers` library."""
        return self.path / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        """One record per interval and epoch."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """The log messages of training."""
        return self.path / "train.log"

    @property
    def output(self) -> Path:
        """What a run of a sweep printed, over all its attempts."""
        return self.path / "output.log"

    @property
    def events(self) -> Path:
        """The folder of TensorBoard's events."""
        return self.path / "tb"

    @property
    def last(self) -> Path:
        """The checkpoint that training continues from."""
        return self.path / "ckpt" / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best valid loss."""
        return self.path / "ckpt" / "best.pt"

    @property
    def lock(self) -> Path:
        """The file that the process which trains here has locked; every run makes it first of all."""
        return self.path / "train.lock"

    @property
    def own_files(self) -> tuple[Path, ...]:
        """What a run started anew would replace."""
        checkpoints = (self.last, self.last.with_name("last.prev.pt"), self.best)
        return (self.config, self.environment, self.tokenizer, self.metrics, self.result, *checkpoints)

    @property
    def result(self) -> Path:
        """What the run came to, written last."""
        return self.path / "result.json"

    @property
    def weights(self) -> Path:
        """The weights of an export, the file that makes a folder one."""
        return self.path / "model.safetensors"

    @property
    def is_export(self) -> bool:
        """Whether the folder holds an export, complete or not."""
        return self.weights.is_file()

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return self.config.is_file() and not self.is_export
