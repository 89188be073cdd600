"""A known corpus from the Hugging Face hub, at the revision that its card names."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lm.text.cards import CorpusCard, published_layout
from lm.text.layout import SPLITS
from lm.text.sources import FileText, Text

HUB_TIMEOUT_S = 10


@contextmanager
def downloaded(card: CorpusCard) -> Iterator[dict[str, Text]]:
    """Text of the parquet files of the card's hub repository, in the published layout and not yet verified.

    It lies in a temporary folder. An absolute path as `hub.id` is a folder in the layout of a repository. Any exception
    may come out of the network.
    """
    import datasets  # takes most of a second, and only a download needs it
    import huggingface_hub

    repo = card.hub["id"]
    folder = card.hub["folder"]
    column = card.hub["column"]
    if os.path.isabs(repo):
        base = repo
        names = [path.relative_to(repo).as_posix() for path in Path(repo).rglob("*.parquet")]
    else:
        # One request without retries, so that a refused network is found out in seconds; `load_dataset` tries for 20 s.
        info = huggingface_hub.dataset_info(repo, revision=card.hub["revision"], timeout=HUB_TIMEOUT_S)
        base = f"hf://datasets/{repo}@{card.hub['revision']}"
        names = [file.rfilename for file in info.siblings or ()]
    files: dict[str, list[str]] = {}
    for split, hub_split in zip(SPLITS, ("train", "validation", "test"), strict=True):
        pattern = re.compile(rf"{re.escape(folder)}/(.*[/-])?{hub_split}([/-].*)?\.parquet")
        files[split] = [f"{base}/{name}" for name in sorted(names) if pattern.fullmatch(name)]
        if not files[split]:
            raise FileNotFoundError(f"{repo} has no parquet file for {hub_split} in {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        rows = datasets.load_dataset("parquet", data_files=files, columns=[column], cache_dir=scratch)
        texts: dict[str, Text] = {}
        for split in SPLITS:
            path = Path(scratch, f"{split}.txt")
            with path.open("w", encoding="utf-8", newline="") as file:
                for batch in rows[split].iter(1000):
                    # WikiText's rows are its lines as they stand, but for blank ones; PTB's are without their spaces.
                    file.writelines(row if row.endswith("\n") else published_layout([row]) for row in batch[column])
            texts[split] = FileText.of([path])
        yield texts
