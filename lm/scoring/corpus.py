"""The corpus of a model: the one that it was trained on, wherever its files lie by now, or another to tune it on.

Checksums decide which text a corpus is, not its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm.base.errors import CheckpointError, ConfigError, CorpusError
from lm.base.rundir import RunDir
from lm.config.schema import TrainConfig
from lm.config.values import config_from_dict
from lm.text.corpus import Corpus
from lm.text.finding import configured_corpus, encoded, known_text, text_in, text_in_cache
from lm.text.locating import find_in, usual_places
from lm.text.tokenization import tokenization_of
from lm.text.tokenizer import TextTokenizer
from lm.training.transfer import check_tunable


def tokenizer_of(directory: RunDir, trained: dict[str, Any], vocab_size: int) -> TextTokenizer:
    """The tokenizer of the model in `directory`, which has `vocab_size` types; `trained` says what else it must be.

    Raises:
        CorpusError: its `tokenizer.json` is missing or damaged.
        CheckpointError: it belongs to another model.
    """
    tokenizer = tokenization_of(config_from_dict(trained["config"])).load(directory.tokenizer)
    found = tokenizer.fingerprint()
    if tokenizer.vocab_size != vocab_size or trained.get("vocabulary", found) != found:
        raise CheckpointError(f"{directory.tokenizer}: belongs to another model than the one there")
    return tokenizer


def extended_tokenizer(directory: RunDir, trained: dict[str, Any], vocab_size: int) -> TextTokenizer | None:
    """The same, if the model's vocabulary is more than its own corpus gives; None if that gives it."""
    return tokenizer_of(directory, trained, vocab_size) if trained.get("extends") else None


def corpus_to_tune_on(config: TrainConfig, source: RunDir, trained: dict[str, Any]) -> Corpus:
    """The corpus of a run that starts from the model in `source`, read with that model's vocabulary.

    Where it is another text than the model's, the vocabulary is extended by its types.

    Raises:
        ConfigError: the configuration does not fit the model; the message says what differs.
        CorpusError: the corpus is not to be found, or the model's tokenizer is not.
        CheckpointError: it is named as the model's corpus is, and another text or another vocabulary.
    """
    sha256 = known_text(config) or configured_corpus(config).sha256
    other_text = sha256 != trained["corpus_sha256"]
    check_tunable(config, trained["config"], other_text=other_text)
    vocab_size = len(trained["model"]["encoder.weight"])
    if not other_text:
        corpus = configured_corpus(config, extended_tokenizer(source, trained, vocab_size))
        corpus.check_vocabulary(trained)
        return corpus
    before = config_from_dict(trained["config"])
    if config.dataset == before.dataset and config.data in ("", before.data):
        raise CheckpointError(
            f"--finetune: {source} was trained on another text than {config.data or config.dataset} is now; "
            "put its text back, or give the other one as --data DIR, a folder of another name"
        )
    tokenizer = tokenizer_of(source, trained, vocab_size)
    if tokenizer.unk_id is not None:  # to bytes and BPE nothing is unknown
        tokenizer = tokenizer.extended(configured_corpus(config).tokenizer.types)
    return configured_corpus(config, tokenizer)


def corpus_of(
    directory: RunDir,
    config: TrainConfig,
    trained: dict[str, Any],
    data: str = "",
    tokenizer: TextTokenizer | None = None,
) -> Corpus:
    """The text that the model in `directory` was trained on, encoded with `tokenizer`, or the one that it gives.

    Looked for in `data` alone, if that is given; else where the configuration says, else under its name in the usual
    places, else in the token cache.

    Raises:
        CorpusError: it is in none of them.
        CheckpointError: there is another text instead, or it gives another vocabulary.
    """
    sha256 = trained["corpus_sha256"]
    tokenization = tokenization_of(config, tokenizer)
    name = config.dataset or Path(config.data).name
    problem: Exception
    try:
        corpus = encoded(find_in(Path(data), name), tokenization) if data else configured_corpus(config, tokenizer)
        if corpus.sha256 == sha256:
            corpus.check_vocabulary(trained)
            return corpus
        other = f"{directory}: was trained on another text than that in {corpus.source}"
        how = "use the version of Python that it was made with, or " if name == "pydocs" else ""
        problem = CheckpointError(other if data else f"{other}; {how}name the folder of its own by --data DIR")
    except (ConfigError, CorpusError) as error:
        problem = error
    if data:
        raise problem
    places = usual_places(name)
    for place in places:
        if found := text_in(place, name, sha256, tokenization):
            found.check_vocabulary(trained)
            return found
    if found := text_in_cache(sha256, tokenization):
        found.check_vocabulary(trained)
        return found
    if isinstance(problem, CheckpointError):
        raise problem
    raise CorpusError(_not_found(directory, config, sha256, places)) from problem


def _not_found(directory: RunDir, config: TrainConfig, sha256: dict[str, str], places: Sequence[Path]) -> str:
    before = [f"{config.data} (where it was)"] if config.data else []
    tried = ", ".join([*before, *map(str, places), "the token cache data/cache"])
    return (
        f"{directory}: the text that it was trained on ({config.dataset}, sha256 of train {sha256['train'][:12]}...) "
        f"is not there; tried {tried}\nwhat helps:\n"
        f"  - --data DIR, the folder that its files lie in now\n"
        f"  - the same files in {places[-1]}, or in {places[-1].name} in the folder that the variable LM_CORPORA names"
    )
