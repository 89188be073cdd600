"""The corpus that a model was trained on, wherever its files lie by now: its checksums decide, not its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm.base.errors import CheckpointError, ConfigError, CorpusError
from lm.base.rundir import RunDir
from lm.config.schema import DataConfig
from lm.text.corpus import Corpus
from lm.text.finding import configured_corpus, load_corpus, text_in, text_in_cache
from lm.text.locating import usual_places
from lm.text.tokenization import tokenization_of


def corpus_of(directory: RunDir, config: DataConfig, trained: dict[str, Any], data: str = "") -> Corpus:
    """The text that the model in `directory` was trained on, encoded with its vocabulary.

    Looked for in `data` alone, if that is given; else where the configuration says, else under its name in the usual
    places, else in the token cache.

    Raises:
        CorpusError: it is in none of them.
        CheckpointError: there is another text instead, or it gives another vocabulary.
    """
    sha256 = trained["corpus_sha256"]
    tokenization = tokenization_of(config)
    name = config.dataset or Path(config.data).name
    problem: Exception
    try:
        corpus = load_corpus(name, data, tokenization=tokenization) if data else configured_corpus(config)
        if corpus.sha256 == sha256:
            corpus.check_vocabulary(trained)
            return corpus
        other = f"{directory}: was trained on another text than that in {corpus.source}"
        problem = CheckpointError(other if data else f"{other}; name the folder of its own by --data DIR")
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


def _not_found(directory: RunDir, config: DataConfig, sha256: dict[str, str], places: Sequence[Path]) -> str:
    before = [f"{config.data} (where it was)"] if config.data else []
    tried = ", ".join([*before, *map(str, places), "the token cache data/cache"])
    return (
        f"{directory}: the text that it was trained on ({config.dataset}, sha256 of train {sha256['train'][:12]}...) "
        f"is not there; tried {tried}\nwhat helps:\n"
        f"  - --data DIR, the folder that its files lie in now\n"
        f"  - the same files in {places[-1]}, or in {places[-1].name} in the folder that the variable LM_CORPORA names"
    )
