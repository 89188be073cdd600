"""Find or download, verify, encode and cache a corpus.

A corpus is looked for in the folder of `--data`, in `$LM_CORPORA`, in `data/`, and then on the Hugging Face hub. What
its name promises is verified: the text by its published checksum, tokens and types by their published counts.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lm.base.errors import ConfigError, CorpusError
from lm.config.schema import TrainConfig
from lm.text.cards import SPLITS, CorpusCard, file_names, known_corpora, match_card, mismatch, text_sha256
from lm.text.corpus import Corpus
from lm.text.download import download
from lm.text.reading import count_words, read_text, split_lines, text_of
from lm.text.token_cache import read_cache, write_cache
from lm.text.tokenization import Tokenization, tokenization_of

logger = logging.getLogger(__name__)
# What awd-lstm-lm's --data stands at when it is not given.
_DEFAULT_DATASET = "ptb"


@dataclass(frozen=True)
class _Found:
    """A located corpus. `read` yields its splits as UTF-8; `key` stands for that text in the name of the cache.

    `sha256` are the checksums of the splits, None where they are known only once the text is made.
    """

    name: str
    source: str
    key: str
    read: Callable[[], dict[str, bytes]]
    sha256: dict[str, str] | None = None


def load_corpus(
    dataset: str | None,
    data: str | Path | None = None,
    cache_dir: str | Path = Path("data"),
    tokenization: Tokenization = Tokenization(),  # noqa: B008 - frozen
) -> Corpus:
    """Find, verify, encode and cache a corpus.

    Looked for in the folder `data`; else in `$LM_CORPORA/<dataset>`; else in `data/<dataset>`; else on the Hugging
    Face hub. `pydocs` is made from the interpreter. The encoded splits are kept in `cache_dir/cache`, keyed by the
    text and the definition of the tokenizer.

    Args:
        dataset: name of a known corpus, or of a folder in one of those places; None for the folder `data`.
        data: folder with the three split files.
        cache_dir: a cache that cannot be written here is done without, with a warning.
        tokenization: what a token is; published counts are checked at the word level, checksums always.

    Raises:
        ConfigError: neither `dataset` nor `data` is given, or they contradict each other.
        CorpusError: the corpus is missing, unreadable, not text, empty, or not the one its name says.
    """
    found = _find(dataset, data)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", found.name)
    folder = Path(cache_dir) / "cache" / f"{name}-{_cache_key(found.key, tokenization)}"
    read = functools.partial(read_cache, folder, found.name, found.source, tokenization)
    if cached := read():
        return cached
    corpus = _encode(found, tokenization)
    try:
        write_cache(folder, corpus)
    except OSError as error:
        logger.warning("cannot write the token cache %s (%s): going on without it", folder, error.strerror)
        return corpus
    return read() or corpus


def _cache_key(text: str, tokenization: Tokenization) -> str:
    return hashlib.sha256(f"{text}\n{tokenization.definition}".encode()).hexdigest()[:16]


def _text_keys(sha256: Mapping[str, str]) -> tuple[str, str]:
    """What stands for a text with these checksums: where all lines end in \\n, and where not, once read otherwise."""
    key = f"text {sorted(sha256.items())}"
    return key, f"{key}, universal newlines"


def text_in(folder: Path, dataset: str, sha256: Mapping[str, str], tokenization: Tokenization) -> Corpus | None:
    """The corpus in `folder`, named `dataset`, if it is the one with these checksums."""
    try:
        found = _find_files(folder, dataset)
        return (
            load_corpus(dataset, folder, tokenization=tokenization)
            if found and found.key in _text_keys(sha256)
            else None
        )
    except (ConfigError, CorpusError):
        return None


def text_in_cache(
    sha256: Mapping[str, str], tokenization: Tokenization, cache_dir: Path = Path("data")
) -> Corpus | None:
    """The corpus with these checksums out of the token cache, which its text is not needed for."""
    for key in _text_keys(sha256):
        for folder in sorted((cache_dir / "cache").glob(f"[!.]*-{_cache_key(key, tokenization)}")):
            name = folder.name.rpartition("-")[0]
            corpus = read_cache(folder, name, f"the token cache {folder}", tokenization)
            if corpus and corpus.sha256 == sha256:
                return corpus
    return None


def usual_places(dataset: str) -> list[Path]:
    """Folders that a corpus of this name is looked for in, without --data."""
    places = [Path("data", dataset)]
    if os.environ.get("LM_CORPORA"):
        places.insert(0, Path(os.environ["LM_CORPORA"], dataset))
    return places


def configured_corpus(config: TrainConfig) -> Corpus:
    """The corpus of a run's configuration; raises as `load_corpus` does."""
    return load_corpus(config.dataset or None, config.data or None, tokenization=tokenization_of(config))


def corpus_name(dataset: str | None, data: str | None) -> str:
    """Name that `load_corpus` will give the corpus, without encoding or downloading it, and raises as it does.

    Where neither --dataset nor --data is given it is that of awd-lstm-lm's default, ptb.
    """
    if not (dataset or data):
        return _DEFAULT_DATASET
    if dataset in known_corpora() and not data:
        return dataset
    return _find(dataset or None, data or None).name


def known_text(config: TrainConfig) -> dict[str, str] | None:
    """SHA-256 of the splits that a run would read now; None where its corpus is not there, or is yet to be made."""
    try:
        return _find(config.dataset or None, config.data or None).sha256
    except CorpusError:
        return None


def _find(dataset: str | None, data: str | Path | None) -> _Found:
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

        return _Found("pydocs", pydocs.describe(), pydocs.fingerprint(), pydocs.build)
    if data is not None:
        return _find_files(Path(data), dataset) or _refuse(dataset, [f"{data} (--data)"])
    if dataset is None:
        raise ConfigError("which corpus? Give --dataset NAME or --data DIR")
    places = usual_places(dataset)
    for place in places:
        if found := _find_files(place, dataset):
            return found
    tried = [str(place) for place in places]
    card = cards.get(dataset)
    if card is None or not card.hub:
        _refuse(dataset, tried)
    origin = f"{card.hub['id']} at {card.hub['revision']}"
    # The checksums of the card stand for the text, so that what was downloaded once needs no network again.
    key = f"hub {origin} {sorted(card.sha256.items())}"
    return _Found(
        dataset, f"Hugging Face hub, {origin}", key, functools.partial(_read_hub, card, tried), card.sha256 or None
    )


def _refuse(dataset: str | None, tried: list[str], cause: Exception | None = None) -> NoReturn:
    """Say where a corpus was looked for and everything that helps."""
    card = known_corpora().get(dataset or "")
    name = dataset or "NAME"
    reason = f"\nthe hub: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}" if cause else ""
    files = "\n".join(f"    {', '.join(names.values())}" for names in file_names())
    remedies = [
        f"--data DIR, a folder with three files named in one of these ways:\n{files}",
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


def _find_files(folder: Path, dataset: str | None) -> _Found | None:
    """The corpus whose files lie in `folder`; None if there is no such folder or it holds none of the files."""
    try:
        there = set(os.listdir(folder))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be read as a folder: {error.strerror}") from error
    names = max(file_names(), key=lambda way: len(there & set(way.values())))
    missing = [name for name in names.values() if name not in there]
    if len(missing) == len(names):
        return None
    if missing:
        raise CorpusError(f"{folder} holds only a part of a corpus: {' and '.join(missing)} missing")
    card, texts = match_card({split: read_text(folder / name) for split, name in names.items()})
    expected = known_corpora().get(dataset or "")
    if expected is not None and expected != card:
        raise CorpusError(f"{mismatch(expected, texts, str(folder))}\n  --data DIR without --dataset takes it as it is")
    digests = text_sha256(texts)
    name = card.name if card else dataset or folder.resolve().name or "corpus"
    if card is None and name in known_corpora():
        name = f"{name}-{digests['train'][:8]}"
        logger.warning("%s is not the published corpus of that name: calling it %s", folder, name)
    key = _text_keys(digests)[any(b"\r" in text for text in texts.values())]
    return _Found(name, str(folder), key, lambda: texts, digests)


def _read_hub(card: CorpusCard, tried: list[str]) -> dict[str, bytes]:
    logger.info("%s: downloading %s from the Hugging Face hub", card.name, card.hub["id"])
    try:
        texts = download(card)
    except Exception as error:  # a network fails in too many ways to list
        _refuse(card.name, [*tried, f"the hub ({card.hub['id']})"], error)
    if text_sha256(texts) != card.sha256:
        raise CorpusError(mismatch(card, texts, f"the hub ({card.hub['id']} at {card.hub['revision']})"))
    return texts


def _encode(found: _Found, tokenization: Tokenization) -> Corpus:
    raw = found.read()
    logger.info("%s: encoding the text of %s", found.name, found.source)
    texts = {split: text_of(raw[split]) for split in SPLITS}
    tokenizer = tokenization.train(texts["train"])
    corpus = Corpus(
        name=found.name,
        source=found.source,
        tokenizer=tokenizer,
        splits={split: tokenizer.encode(text) for split, text in texts.items()},
        unk={split: tokenizer.unknown(text).total() for split, text in texts.items()},
        lines={split: len(split_lines(text)) for split, text in texts.items()},
        words={split: count_words(text) for split, text in texts.items()},
        sha256=text_sha256(raw),
        path=None,
    )
    if (card := known_corpora().get(found.name)) and card.sha256 and tokenizer.kind == "word":
        counts = (corpus.vocab_size, {split: len(ids) for split, ids in corpus.splits.items()})
        if counts != (card.vocab_size, card.tokens):
            raise CorpusError(f"{found.name}: types and tokens {counts}, published {card.vocab_size, card.tokens}")
    return corpus
