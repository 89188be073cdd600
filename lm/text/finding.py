"""Find or download, verify, encode and cache a corpus.

A corpus is looked for in the folder of `--data`, in `$LM_CORPORA`, in `data/`, and then on the Hugging Face hub. What
its name promises is verified: the text by its published checksum, tokens and types by their published counts.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lm.base.errors import CorpusError
from lm.config.schema import TrainConfig
from lm.text.cards import known_corpora
from lm.text.corpus import Corpus
from lm.text.encoding import Encoding
from lm.text.locating import Located, files_in, find
from lm.text.token_cache import is_cache_of, read_cache, write_cache
from lm.text.tokenization import Tokenization, tokenization_of
from lm.text.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)
# What awd-lstm-lm's --data stands at when it is not given.
_DEFAULT_DATASET = "ptb"


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
        data: folder with the files of the splits; test may be missing.
        cache_dir: a cache that cannot be written here is done without, with a warning.
        tokenization: what a token is; counts are checked for the level that they are published for, checksums always.

    Raises:
        ConfigError: neither `dataset` nor `data` is given, or they contradict each other.
        CorpusError: the corpus is missing, unreadable, not text, empty, or not the one its name says.
    """
    return encoded(find(dataset, data), tokenization, cache_dir)


def encoded(found: Located, tokenization: Tokenization, cache_dir: str | Path = Path("data")) -> Corpus:
    """A corpus that was found, verified and encoded, or out of the cache; as `load_corpus`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", found.name)
    key = hashlib.sha256(f"{found.key}\n{tokenization.definition}".encode()).hexdigest()[:16]
    folder = Path(cache_dir) / "cache" / f"{name}-{key}"
    read = functools.partial(read_cache, folder, found.name, found.source, tokenization)
    if cached := read():
        return cached
    _hint_level(found.name, tokenization)
    with found.open() as texts:
        logger.info("%s: encoding the text of %s", found.name, found.source)
        if "test" not in texts:
            logger.warning("%s: %s has no test split: there will be no test figures", found.name, found.source)
        encoding = Encoding(texts, tokenization)
        check = functools.partial(_check_counts, found.name, tokenization, encoding)
        try:
            write_cache(folder, encoding, tokenization, check)
        except OSError as error:
            logger.warning("cannot write the token cache %s (%s): going on without it", folder, error.strerror)
        else:
            if corpus := read():
                return corpus
        splits = {split: np.concatenate(list(encoding.ids(split))) for split in encoding.splits}
        check()
        counts = encoding.counts
        return Corpus(
            found.name, found.source, encoding.tokenizer, splits,
            counts.unk, counts.lines, counts.words, counts.sha256, path=None, extends=tokenization.given is not None,
        )  # fmt: skip


def _hint_level(name: str, tokenization: Tokenization) -> None:
    """Say which --tokenizer the published figures of a corpus are for, where it is not words."""
    card = known_corpora().get(name)
    if card and card.tokenizer not in ("word", tokenization.kind):
        logger.warning("%s: published figures are per %s: --tokenizer %s", name, card.tokenizer, card.tokenizer)


def _check_counts(name: str, tokenization: Tokenization, encoding: Encoding) -> None:
    """Raise CorpusError if the corpus has others than the published counts, where those are of this tokenization."""
    card = known_corpora().get(name)
    if card is None or not card.tokens or tokenization != Tokenization(card.tokenizer, tokenization.bpe_vocab_size):
        return
    found = (encoding.tokenizer.vocab_size, encoding.counts.tokens)
    if found != (card.vocab_size, card.tokens):
        raise CorpusError(f"{name}: types and tokens {found}, published {card.vocab_size, card.tokens}")


def text_in(folder: Path, dataset: str, sha256: Mapping[str, str], tokenization: Tokenization) -> Corpus | None:
    """The corpus in `folder`, named `dataset`, if it is the one with these checksums."""
    try:
        found = files_in(folder, dataset)
        return encoded(found, tokenization) if found and found.sha256 == sha256 else None
    except CorpusError:
        return None


def text_in_cache(sha256: Mapping[str, str], tokenization: Tokenization) -> Corpus | None:
    """The corpus with these checksums out of the token cache, which its text is not needed for."""
    for folder in sorted(Path("data/cache").glob("[!.]*")):
        if is_cache_of(folder, sha256, tokenization):
            name = folder.name.rpartition("-")[0]
            if corpus := read_cache(folder, name, f"the token cache {folder}", tokenization):
                return corpus
    return None


def configured_corpus(config: TrainConfig, tokenizer: TextTokenizer | None = None) -> Corpus:
    """The corpus of a run's configuration, read with `tokenizer` or its own; raises as `load_corpus` does."""
    tokenization = tokenization_of(config, tokenizer)
    return load_corpus(config.dataset or None, config.data or None, tokenization=tokenization)


def corpus_place(dataset: str | None, data: str | None) -> tuple[str, str]:
    """Name that `load_corpus` will give the corpus, and the folder, if any, where it is found under that name.

    Nothing is encoded or downloaded; raises as `load_corpus`. Where neither --dataset nor --data is given it is
    awd-lstm-lm's default, ptb. A known corpus may lie in a folder of another name.
    """
    if not (dataset or data):
        return _DEFAULT_DATASET, ""
    if dataset in known_corpora() and not data:
        return dataset, ""
    found = find(dataset or None, data or None)
    return found.name, data or ("" if found.name == dataset else found.source)


def known_text(config: TrainConfig) -> Mapping[str, str] | None:
    """SHA-256 of the splits that a run would read now; None where its corpus is not there, or is yet to be made."""
    try:
        return find(config.dataset or None, config.data or None).sha256
    except CorpusError:
        return None
