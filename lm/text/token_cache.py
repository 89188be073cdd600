"""The cache of an encoded corpus: a folder that is complete or not there, so that a text is encoded once.

    train.bin, valid.bin, test.bin    token ids, int32, read by memory map
    tokenizer.json                    the tokenizer, in the format of the `tokenizers` library
    meta.json                         counts of the corpus, SHA-256 of the files above, and its own

Every checksum is verified on reading. A damaged folder is reported and replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from lm.base.errors import CorpusError
from lm.base.files import check_regular, read_file, scratch_folder
from lm.text.cards import SPLITS
from lm.text.corpus import Corpus
from lm.text.tokenization import Tokenization

logger = logging.getLogger(__name__)


def read_cache(folder: Path, name: str, source: str, tokenization: Tokenization) -> Corpus | None:
    """The corpus in a cache folder, None if there is none or it is damaged."""
    if not os.path.isdir(folder):
        return None
    try:
        meta = json.loads(read_file(folder / "meta.json"))
        if meta.pop("sha256") != hashlib.sha256(json.dumps(meta).encode()).hexdigest():
            raise ValueError("meta.json is not as it was written")
        for split in SPLITS:
            check_regular(folder / f"{split}.bin")
        splits: dict[str, np.ndarray] = {
            split: np.memmap(folder / f"{split}.bin", np.int32, mode="r") for split in SPLITS
        }
        contents: dict[str, bytes | memoryview] = {f"{split}.bin": ids.data for split, ids in splits.items()}
        contents["tokenizer.json"] = read_file(folder / "tokenizer.json")
        for file, content in contents.items():
            if hashlib.sha256(content).hexdigest() != meta["checksums"][file]:
                raise ValueError(f"{file} is not as it was written")
        tokenizer = tokenization.load(folder / "tokenizer.json")
        counts = {"words": {split: len(ids) for split, ids in splits.items()}} | meta["corpus"]  # older: words alone
        return Corpus(name, source, tokenizer, splits, **counts, path=folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CorpusError) as error:
        logger.warning("the token cache %s is damaged (%s): building it anew", folder, error)
        return None


def write_cache(folder: Path, corpus: Corpus) -> None:
    """Put a corpus into a cache folder, which appears complete or not at all; raises `OSError`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent) as scratch:
        new = scratch / "new"
        new.mkdir()
        for split, ids in corpus.splits.items():
            (new / f"{split}.bin").write_bytes(ids.tobytes())
        corpus.tokenizer.save(new / "tokenizer.json")
        checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(new.iterdir())}
        counts = {name: getattr(corpus, name) for name in ("unk", "lines", "words", "sha256")}
        meta: dict[str, Any] = {"corpus": counts, "checksums": checksums}
        meta["sha256"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
        (new / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        for path in new.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        # What stands there is damaged, or another process has just written the same.
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, scratch / "old")
        try:
            os.rename(new, folder)
        except OSError:
            if not folder.is_dir():
                raise
