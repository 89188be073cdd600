"""An encoded corpus, and its cache: token ids, tokenizer and counts in a folder that is complete or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.cards import SPLITS
from lm.errors import CheckpointError, CorpusError
from lm.subword import Tokenization
from lm.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus. `unk`, `lines`, `words` and `sha256` are per split, as `splits` is."""

    name: str  # "ptb", "wikitext-2", "pydocs", or the folder's name for a corpus of one's own
    source: str  # where the text came from: a folder, a hub repository, the interpreter
    tokenizer: TextTokenizer
    splits: dict[str, np.ndarray]  # int32 (N,), read-only and memory-mapped, in memory where there is no cache
    unk: dict[str, int]  # tokens that became `<unk>` because train lacks them; a literal `<unk>` is not counted
    lines: dict[str, int]
    words: dict[str, int]  # tokens that the text has at the word level: its words and one `<eos>` a line
    sha256: dict[str, str]  # of the text
    path: Path | None  # the cache folder: {train,valid,test}.bin and tokenizer.json; None if it could not be written

    @property
    def vocab_size(self) -> int:
        """Number of types, `<eos>` and `<unk>` included."""
        return self.tokenizer.vocab_size

    def check_vocabulary(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless the checkpoint's model knows the same types by the same ids."""
        if checkpoint.get("vocabulary", mine := self.tokenizer.fingerprint()) != mine:
            raise CheckpointError(
                f"the checkpoint was made with another {self.tokenizer.kind} vocabulary than the text now gives: "
                "install the version of tokenizers that the run's env.json names, and delete data/cache"
            )


def read_cache(folder: Path, name: str, source: str, tokenization: Tokenization) -> Corpus | None:
    """The corpus in a cache folder, None if there is none or it is damaged."""
    if not os.path.isdir(folder):
        return None
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        if meta.pop("sha256") != hashlib.sha256(json.dumps(meta).encode()).hexdigest():
            raise ValueError("meta.json is not as it was written")
        contents = {f"{split}.bin": np.memmap(folder / f"{split}.bin", np.int32, mode="r") for split in SPLITS}
        contents["tokenizer.json"] = (folder / "tokenizer.json").read_bytes()
        for file, content in contents.items():
            if hashlib.sha256(content).hexdigest() != meta["checksums"][file]:
                raise ValueError(f"{file} is not as it was written")
        tokenizer = tokenization.load(folder / "tokenizer.json")
        splits = {split: contents[f"{split}.bin"] for split in SPLITS}
        counts = {"words": {split: len(ids) for split, ids in splits.items()}} | meta["corpus"]  # older: words alone
        return Corpus(name, source, tokenizer, splits, **counts, path=folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CorpusError) as error:
        logger.warning("the token cache %s is damaged (%s): building it anew", folder, error)
        return None


def write_cache(folder: Path, corpus: Corpus) -> None:
    """Put a corpus into a cache folder, which appears complete or not at all; raises `OSError`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        for split, ids in corpus.splits.items():
            (new / f"{split}.bin").write_bytes(ids.tobytes())
        corpus.tokenizer.save(new / "tokenizer.json")
        checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(new.iterdir())}
        counts = {name: getattr(corpus, name) for name in ("unk", "lines", "words", "sha256")}
        meta = {"corpus": counts, "checksums": checksums}
        meta["sha256"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
        (new / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        for path in new.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        # What stands there is damaged, or another process has just written the same.
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, Path(scratch, "old"))
        try:
            os.rename(new, folder)
        except OSError:
            if not folder.is_dir():
                raise
