"""Which files of a folder are the splits of a corpus, by their names.

`train`, `valid` (or `validation`, `dev`) and `test` name a split; `.txt`, `.tokens`, `.jsonl` and `.parquet` a file's
kind, with `.gz` or `.zst` after it where it is compressed. A split is one file (`train.txt`), several with numbers
(`train-00000-of-00002.parquet`), or all files of a folder (`train/`). Known corpora have names of their own
(`wiki.train.tokens`). A folder that holds several sets of names is read by the one that gives most splits.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

from lm.base.errors import CorpusError
from lm.text.formats import EXTENSIONS, in_order

SPLITS = ("train", "valid", "test")
_SPELLINGS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
_NAME = re.compile(
    rf"(?P<before>(?:[a-z]+\.)*)(?P<split>{'|'.join(_SPELLINGS)})(?P<shard>[-_.](?=[^.]*\d)[\w-]+)?(?P<after>{EXTENSIONS})"
)

# How a set of files is named: what stands before and after the split, and whether a split has several, numbered.
_Way = tuple[str, str, bool]
_FOLDERS: _Way = ("", "/", True)


def _parse(name: str) -> tuple[str, _Way] | None:
    """The spelling of the split that a name has, and the way that it is named in; None: it names no split."""
    if name in _SPELLINGS:
        return name, _FOLDERS
    if not (found := _NAME.fullmatch(name)):
        return None
    return found["split"], (found["before"], found["after"], found["shard"] is not None)


def split_files(folder: Path, patterns: list[str]) -> dict[str, list[Path]] | None:
    """The files of each split in `folder`; None if there is no such folder or it holds no file of a split.

    Args:
        folder: where to look.
        patterns: names of files of train that come first, as `wiki.train.tokens`; what stands before `train` in other
            names is no split's.

    Raises:
        CorpusError: train or valid is missing, a split has two sets of files, or the folder cannot be read.
    """
    try:
        there = sorted(name for name in os.listdir(folder) if name not in _SPELLINGS or (folder / name).is_dir())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be read as a folder: {error.strerror}") from error
    known = [way for _, way in filter(None, map(_parse, patterns))]
    prefixes = {"", *(before for before, _, _ in known)}
    ways: dict[_Way, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in there:
        if (found := _parse(name)) and found[1][0] in prefixes:
            ways[found[1]][found[0]].append(name)
    if not ways:
        return None
    preferred = [*known, *sorted(ways.keys() - set(known))]
    best = max(filter(ways.__contains__, preferred), key=lambda way: len({_SPELLINGS[name] for name in ways[way]}))
    splits: dict[str, list[Path]] = {}
    for split in SPLITS:
        # What the best way lacks, another without a name of its own may have: train/ may stand beside valid.txt.
        beside = [way for way in ways if way[0] == best[0]]
        sets = _sets(split, [ways[best]]) or _sets(split, [ways[way] for way in beside])
        if len(sets) > 1:
            raise CorpusError(f"{folder}: {' and '.join(names[0] for names in sets)}: which is {split}?")
        if sets:
            splits[split] = _files([folder / name for name in sets[0]])
    if missing := [split for split in ("train", "valid") if split not in splits]:
        before, after, _ = best
        names = " and ".join(f"{before}{split}{after}" for split in missing)
        raise CorpusError(f"{folder} holds only a part of a corpus: {names} missing")
    return splits


def _sets(split: str, ways: list[dict[str, list[str]]]) -> list[list[str]]:
    """Sets of names that are those of a split, one for each way and spelling."""
    return [names for found in ways for spelling, names in found.items() if _SPELLINGS[spelling] == split]


def _files(found: list[Path]) -> list[Path]:
    """Files in order, or those in the one folder that was found. Raises CorpusError where it holds none, or one of
    those that their names count is missing."""
    if found[0].name not in _SPELLINGS:
        return _complete(in_order(found))
    try:
        inside = [path for path in found[0].iterdir() if re.fullmatch(rf"[^.].*{EXTENSIONS}", path.name)]
    except OSError as error:
        raise CorpusError(f"{found[0]}: cannot be read as a folder: {error.strerror}") from error
    if not inside:
        raise CorpusError(f"{found[0]}: holds no file of text: .txt, .tokens, .jsonl (also .gz, .zst) or .parquet")
    return _complete(in_order(inside))


def _complete(paths: list[Path]) -> list[Path]:
    """Files, of which `train-00000-of-00002.parquet` says that it is one of two. Raises CorpusError for less."""
    totals = [int(found[1]) for path in paths if (found := re.search(r"-of-(\d{1,9})\.", path.name))]
    if totals and len(totals) < max(totals):
        raise CorpusError(f"{paths[0]}: one of {max(totals)} files, of which only {len(totals)} are there")
    return paths
