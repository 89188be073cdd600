"""The cache of an encoded corpus: a folder that is complete or not there, so that a text is encoded once.

    train.bin, valid.bin, test.bin    token ids, read by memory map: never more of them than is used is in memory
    tokenizer.json                    the tokenizer, in the format of the `tokenizers` library
    meta.json                         splits, type of their ids, counts, checksums of the text, definition of the
                                      tokenizer, SHA-256 of the files above, and its own

Every checksum is verified on reading. A damaged folder is reported and replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lm.base.errors import CorpusError
from lm.base.files import file_sha256, read_file, scratch_folder
from lm.text.corpus import Corpus
from lm.text.encoding import Encoding
from lm.text.tokenization import Tokenization

logger = logging.getLogger(__name__)
# In meta.json.
_COUNTS = ("unk", "lines", "words", "sha256")


def is_cache_of(folder: Path, sha256: Mapping[str, str], tokenization: Tokenization) -> bool:
    """Whether a cache folder says that it is of this text and tokenizer, which older ones do not say."""
    try:
        meta = json.loads(read_file(folder / "meta.json"))
        return bool(meta["corpus"]["sha256"] == sha256 and meta["definition"] == tokenization.definition)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def read_cache(folder: Path, name: str, source: str, tokenization: Tokenization) -> Corpus | None:
    """The corpus in a cache folder, None if there is none or it is damaged."""
    if not os.path.isdir(folder):
        return None
    try:
        meta = json.loads(read_file(folder / "meta.json"))
        if meta.pop("sha256") != hashlib.sha256(json.dumps(meta).encode()).hexdigest():
            raise ValueError("meta.json is not as it was written")
        for file, checksum in meta["checksums"].items():
            if file_sha256(folder / file) != checksum:  # a memory map's pages would count as memory of this process
                raise ValueError(f"{file} is not as it was written")
        tokenizer = tokenization.load(folder / "tokenizer.json")
        dtype = np.dtype(meta.get("dtype", "int32"))  # older caches do not say
        # Copy on write, as PyTorch warns of arrays that cannot be written; nobody writes.
        splits: dict[str, np.ndarray] = {
            split: np.memmap(folder / f"{split}.bin", dtype, mode="c") for split in meta["corpus"]["sha256"]
        }
        counts = {"words": {split: len(ids) for split, ids in splits.items()}} | meta["corpus"]  # older: words alone
        return Corpus(name, source, tokenizer, splits, **counts, path=folder, extends=tokenization.given is not None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CorpusError) as error:
        logger.warning("the token cache %s is damaged (%s): building it anew", folder, error)
        return None


def write_cache(folder: Path, encoding: Encoding, tokenization: Tokenization, check: Callable[[], None]) -> None:
    """Encode a corpus into a cache folder, which appears complete or not at all.

    Raises `OSError` where it cannot be written, and what `check` raises, which is called when all is counted.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent) as scratch:
        new = scratch / "new"
        new.mkdir()
        for split in encoding.splits:
            with (new / f"{split}.bin").open("wb") as file:
                for ids in encoding.ids(split):
                    file.write(ids.data)
        check()
        encoding.tokenizer.save(new / "tokenizer.json")
        meta = {
            "dtype": np.dtype(encoding.dtype).name,
            "definition": tokenization.definition,
            "corpus": {name: getattr(encoding.counts, name) for name in _COUNTS},
            "checksums": {path.name: file_sha256(path) for path in sorted(new.iterdir())},
        }
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
