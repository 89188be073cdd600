"""A known corpus from the Hugging Face hub, at the revision that its card names."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from lm.text.cards import SPLITS, CorpusCard, published_layout

HUB_TIMEOUT_S = 10


def download(card: CorpusCard) -> dict[str, bytes]:
    """Text of the parquet files of the card's hub repository, in the published layout and not yet verified.

    An absolute path as `hub.id` is a folder in the layout of a repository. Any exception may come out of the network.
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
        return {split: published_layout(rows[split][column]) for split in SPLITS}
