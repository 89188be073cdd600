"""Where a corpus is: in the folder of `--data`, in `$LM_CORPORA`, in `data/`, and then on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lm.base.errors import ConfigError, CorpusError
from lm.text.cards import CorpusCard, file_patterns, known_corpora, match_card, mismatch, spelt_out
from lm.text.download import downloaded
from lm.text.layout import SPLITS, split_files
from lm.text.sources import CutText, FileText, MemoryText, Text, digest, survey

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """A corpus and its text, which is there, or which `make` downloads or makes for as long as its context is open."""

    name: str
    source: str
    key: str
    """stands for the text in the name of the token cache"""
    texts: Mapping[str, Text] | None = None
    make: Callable[[], AbstractContextManager[Mapping[str, Text]]] | None = None
    sha256: Mapping[str, str] | None = None
    """checksums of the splits; None where they are known only once the text is made"""

    def open(self) -> AbstractContextManager[Mapping[str, Text]]:
        """The texts of the splits. Raises CorpusError where they cannot be had, or are not the published ones."""
        return self.make() if self.make else contextlib.nullcontext(self.texts or {})


def _located(name: str, source: str, texts: Mapping[str, Text]) -> Located:
    digests = {split: survey(text).sha256 for split, text in texts.items()}
    key = f"text {sorted(digests.items())}"
    if any(text.exact for text in texts.values()):
        key += ", cut"
    elif any(survey(text).carriage for text in texts.values()):
        key += ", universal newlines"
    return Located(name, source, key, texts, sha256=digests)


def usual_places(dataset: str) -> list[Path]:
    """Folders that a corpus of this name is looked for in, without --data."""
    places = [Path("data", dataset)]
    if os.environ.get("LM_CORPORA"):
        places.insert(0, Path(os.environ["LM_CORPORA"], dataset))
    return places


def find(dataset: str | None, data: str | Path | None) -> Located:
    """Locate a corpus, as `lm.text.finding.load_corpus` describes; raises as it does."""
    cards = known_corpora()
    if data is not None and not os.path.lexists(data):
        alias = next((name for name, card in cards.items() if Path(data).as_posix() in card.aliases), None)
        if alias is not None:
            if dataset not in (None, alias):
                raise ConfigError(f"--data {data} stands for the corpus {alias}, not for --dataset {dataset}")
            logger.warning("--data %s: no such folder; looking for the corpus %s in the usual places", data, alias)
            dataset = alias
            data = None
    if dataset is not None and not re.fullmatch(r"\w[\w.-]*" if data is None else "[^/]+", dataset):
        raise ConfigError(f"--dataset {dataset!r} is not the name of a corpus; name a folder by --data")
    if dataset == "pydocs":
        if data is not None:
            raise ConfigError("--dataset pydocs is made from the Python interpreter: leave out --data, or --dataset")
        from lm.text import pydocs

        make = functools.partial(_built, pydocs.build)
        return Located("pydocs", pydocs.describe(), pydocs.fingerprint(), make=make)
    if data is not None:
        return find_in(Path(data), dataset)
    if dataset is None:
        raise ConfigError("which corpus? Give --dataset NAME or --data DIR")
    places = usual_places(dataset)
    for place in places:
        if found := files_in(place, dataset):
            return found
    tried = [str(place) for place in places]
    card = cards.get(dataset)
    if card is not None and card.made_from:
        logger.info("%s: no files of its own in %s: made from %s", dataset, ", ".join(tried), card.made_from)
        return _made_from(card, find(card.made_from, None))
    if card is None or not card.hub:
        _refuse(dataset, tried)
    origin = f"{card.hub['id']} at {card.hub['revision']}"
    # The checksums of the card stand for the text, so that what was downloaded once needs no network again.
    key = f"hub {origin} {sorted(card.checksums.items())}"
    make = functools.partial(_downloaded, card, tried)
    return Located(dataset, f"Hugging Face hub, {origin}", key, make=make, sha256=card.sha256 or None)


@contextlib.contextmanager
def _built(build: Callable[[], dict[str, bytes]]) -> Iterator[Mapping[str, Text]]:
    yield {split: MemoryText(split, content) for split, content in build().items()}


def _made_from(card: CorpusCard, other: Located) -> Located:
    """The corpus of `card`, which is another one spelt out."""
    source = f"{other.source}, spelt out"
    if other.texts:
        return _located(card.name, source, spelt_out(other.texts))

    @contextlib.contextmanager
    def make() -> Iterator[Mapping[str, Text]]:
        with other.open() as texts:
            yield spelt_out(texts)

    return Located(card.name, source, f"{other.key}, spelt out", make=make)


def _names(pattern: str) -> str:
    """The files of all splits, from the name of the file of train."""
    return ", ".join(dict.fromkeys(pattern.replace("train", split) for split in SPLITS))


def _refuse(dataset: str | None, tried: list[str], cause: Exception | None = None) -> NoReturn:
    """Say where a corpus was looked for and everything that helps."""
    card = known_corpora().get(dataset or "")
    name = dataset or "NAME"
    reason = f"\nthe hub: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}" if cause else ""
    patterns = [card.whole["file"]] if card and card.whole else file_patterns(card)
    files = "\n".join(f"    {_names(pattern)}" for pattern in patterns)
    remedies = [
        f"--data DIR, a folder with files named in one of these ways (or .jsonl, .parquet, .gz, .zst):\n{files}",
        f"the same files in data/{name}, or in {name} in the folder that the variable LM_CORPORA names",
        "--dataset pydocs, English prose out of the Python interpreter, which needs no download",
    ]
    if card is not None and card.hub:
        remedies.append(f"a network that reaches the Hugging Face hub ({card.hub['id']}), and `pip install datasets`")
    elif card is None:
        remedies.append(f"a corpus known by name: {', '.join(known_corpora())}")
    what = f"corpus {dataset} not found" if dataset else "no corpus found"
    helps = "".join(f"\n  - {remedy}" for remedy in remedies)
    raise CorpusError(f"{what}; tried {', '.join(tried)}{reason}\nwhat helps:{helps}") from cause


def find_in(folder: Path, dataset: str | None) -> Located:
    """The corpus whose files lie in `folder`. Raises CorpusError, with all that helps, where they do not."""
    return files_in(folder, dataset) or _refuse(dataset, [f"{folder} (--data)"])


def files_in(folder: Path, dataset: str | None) -> Located | None:
    """The corpus whose files lie in `folder`; None if there is no such folder or it holds none of the files."""
    expected = known_corpora().get(dataset or "")
    files = split_files(folder, file_patterns(expected))
    if files is None:
        return _find_whole(folder, dataset)
    texts: Mapping[str, Text] = {split: FileText.of(paths) for split, paths in files.items()}
    card, texts = match_card(texts)
    if expected is not None and expected != card:
        if card is not None and card.name == expected.made_from:
            return _made_from(expected, _located(card.name, str(folder), texts))
        if expected.checksums:
            report = mismatch(expected, texts, str(folder))
            raise CorpusError(f"{report}\n  --data DIR without --dataset takes it as it is")
    if expected is not None and not expected.checksums:
        return _located(expected.name, str(folder), texts)
    name = card.name if card else dataset or folder.resolve().name or "corpus"
    if card is None and name in known_corpora():
        name = f"{name}-{survey(texts['train']).sha256[:8]}"
        logger.warning("%s is not the published corpus of that name: calling it %s", folder, name)
    return _located(name, str(folder), texts)


def _find_whole(folder: Path, dataset: str | None) -> Located | None:
    """A known corpus that is one file in `folder`, of which the splits are cut; None if there is none."""
    for card in known_corpora().values():
        if not card.whole or dataset not in (None, card.name):
            continue
        for path in (folder / f"{card.whole['file']}{suffix}" for suffix in ("", ".zip", ".gz")):
            if not path.is_file():
                continue
            size, valid, test = (card.whole[name] for name in ("size", "valid", "test"))
            found = digest(CutText.of(path, 0, size + 1), "md5")
            if found != card.whole["md5"]:
                raise CorpusError(f"{path}: not the published {card.name}: md5 {found}, expected {card.whole['md5']}")
            bounds = {"train": (0, valid), "valid": (valid, test), "test": (test, size)}
            texts = {split: CutText.of(path, *bound) for split, bound in bounds.items()}
            return _located(card.name, str(path), texts)
    return None


@contextlib.contextmanager
def _downloaded(card: CorpusCard, tried: list[str]) -> Iterator[Mapping[str, Text]]:
    logger.info("%s: downloading %s from the Hugging Face hub", card.name, card.hub["id"])
    with contextlib.ExitStack() as stack:
        try:
            texts = stack.enter_context(downloaded(card))
        except Exception as error:  # a network fails in too many ways to list
            _refuse(card.name, [*tried, f"the hub ({card.hub['id']})"], error)
        if not card.is_of(texts):
            raise CorpusError(mismatch(card, texts, f"the hub ({card.hub['id']} at {card.hub['revision']})"))
        yield texts
