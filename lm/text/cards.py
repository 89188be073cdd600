"""The corpora known by name: what is published about each, its download, and whether a text is one of them."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm.text.reading import count_words, split_lines, split_words
from lm.text.sources import RewrittenText, Text, digest, survey

CARDS_FILE = Path(__file__).with_name("corpora.toml")


@dataclass(frozen=True)
class CorpusCard:
    """What is published about a known corpus; `corpora.toml` explains the fields."""

    name: str
    title: str
    licence: str
    source: str
    files: list[str] = field(default_factory=list)
    whole: dict[str, Any] = field(default_factory=dict)
    made_from: str = ""
    aliases: list[str] = field(default_factory=list)
    tokenizer: str = "word"
    vocab_size: int = 0
    lines: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    sha1: dict[str, str] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)

    @property
    def checksums(self) -> dict[str, str]:
        """Of the splits, by the algorithm `algorithm`; empty where none is published."""
        return self.sha256 or self.sha1

    @property
    def algorithm(self) -> str:
        """What the checksums are made with, as `hashlib` names it."""
        return "sha256" if self.sha256 else "sha1"

    def is_of(self, texts: Mapping[str, Text]) -> bool:
        """Whether the splits have the published checksums; those of other lengths are not read for it."""
        return (
            texts.keys() == self.checksums.keys()
            and all(survey(text).lines == self.lines[split] for split, text in texts.items())
            and all(_checksum(text, self.algorithm) == self.checksums[split] for split, text in texts.items())
        )


def _checksum(text: Text, algorithm: str) -> str:
    return survey(text).sha256 if algorithm == "sha256" else digest(text, algorithm)


@functools.cache
def _read_cards(path: Path) -> dict[str, CorpusCard]:
    return {name: CorpusCard(name, **card) for name, card in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def known_corpora() -> dict[str, CorpusCard]:
    """The cards of `corpora.toml` by name."""
    return _read_cards(CARDS_FILE)


def file_patterns(first: CorpusCard | None = None) -> list[str]:
    """Names of the file of train in use, those of the corpus `first` before others."""
    cards = [*filter(None, [first]), *known_corpora().values()]
    return list(dict.fromkeys(pattern for card in cards for pattern in card.files))


def published_layout(lines: Iterable[str]) -> str:
    """Text in the layout of the published PTB and WikiText: a space before and after the words of each line."""
    return "".join(f" {' '.join(words)} \n" if (words := split_words(line)) else " \n" for line in lines)


def _laid_out(block: str) -> str:
    return published_layout(split_lines(block))


def _spelt_out(block: str) -> str:
    return published_layout(" ".join("_".join(split_words(line))) for line in split_lines(block))


def spelt_out(texts: Mapping[str, Text]) -> dict[str, Text]:
    """The characters of a corpus of words as the words of another: `i s _ a`, as in Mikolov's `ptb.char.train.txt`."""
    return {split: RewrittenText(text, _spelt_out) for split, text in texts.items()}


def match_card(texts: Mapping[str, Text]) -> tuple[CorpusCard | None, Mapping[str, Text]]:
    """The known corpus that `texts` are, byte for byte or but for spacing and line ends, and its published text."""
    cards = [card for card in known_corpora().values() if card.checksums]
    for card in cards:
        if card.is_of(texts):
            return card, texts
    lines = survey(texts["train"])
    for card in cards:
        if lines.carriage == "\r" or card.lines["train"] - lines.lines in (0, 1):
            laid_out = {split: RewrittenText(text, _laid_out) for split, text in texts.items()}
            if card.is_of(laid_out):
                return card, laid_out
    return None, texts


def mismatch(card: CorpusCard, texts: Mapping[str, Text], where: str) -> str:
    """What is wrong with a text that should be the corpus of `card`, for a reader."""
    report = [f"{where} does not hold the published {card.name}; is it damaged, or another preprocessing?"]
    for split, published in card.checksums.items():
        expected = f"{split}: expected {card.tokens[split]:,} tokens, {card.algorithm} {published}"
        if split not in texts:
            report += [expected, f"{split}: not there"]
        elif (found := _checksum(texts[split], card.algorithm)) != published:
            tokens = sum(map(count_words, texts[split].blocks()))
            report += [expected, f"{split}: found {tokens:,} tokens, {card.algorithm} {found}"]
    return "\n  ".join(report)
