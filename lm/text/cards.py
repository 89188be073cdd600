"""The corpora known by name: what is published about each, its download, and whether a text is one of them."""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lm.text.reading import count_words, split_lines, split_words, text_of

SPLITS = ("train", "valid", "test")
CARDS_FILE = Path(__file__).with_name("corpora.toml")


@dataclass(frozen=True)
class CorpusCard:
    """What is published about a known corpus; `corpora.toml` explains the fields."""

    name: str
    title: str
    licence: str
    source: str
    files: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    vocab_size: int = 0
    lines: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)


@functools.cache
def _read_cards(path: Path) -> dict[str, CorpusCard]:
    return {name: CorpusCard(name, **card) for name, card in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def known_corpora() -> dict[str, CorpusCard]:
    """The cards of `corpora.toml` by name."""
    return _read_cards(CARDS_FILE)


def file_names() -> list[dict[str, str]]:
    """The file names in use for the three splits, each way of naming as one dictionary."""
    patterns = dict.fromkeys(pattern for card in known_corpora().values() for pattern in card.files)
    return [{split: pattern.replace("train", split) for split in SPLITS} for pattern in patterns]


def text_sha256(texts: dict[str, bytes]) -> dict[str, str]:
    """Checksum of the text of each split."""
    return {split: hashlib.sha256(text).hexdigest() for split, text in texts.items()}


def published_layout(lines: Iterable[str]) -> bytes:
    """Text in the layout of the published PTB and WikiText-2: a space before and after the words of each line."""
    return "".join(f" {' '.join(words)} \n" if (words := split_words(line)) else " \n" for line in lines).encode()


def match_card(texts: dict[str, bytes]) -> tuple[CorpusCard | None, dict[str, bytes]]:
    """The known corpus that `texts` are, byte for byte or but for spacing and line ends, and its published text."""
    cards = [card for card in known_corpora().values() if card.sha256]
    found = text_sha256(texts)
    for card in cards:
        if card.sha256 == found:
            return card, texts
    lines = text_of(texts["train"]).count("\n")
    for card in cards:
        if card.lines["train"] - lines in (0, 1):
            laid_out = {split: published_layout(split_lines(text_of(raw))) for split, raw in texts.items()}
            if card.sha256 == text_sha256(laid_out):
                return card, laid_out
    return None, texts


def mismatch(card: CorpusCard, texts: dict[str, bytes], where: str) -> str:
    """What is wrong with a text that should be the corpus of `card`, for a reader."""
    report = [f"{where} does not hold the published {card.name}; is it damaged, or another preprocessing?"]
    for split, found in text_sha256(texts).items():
        if found != card.sha256[split]:
            tokens = count_words(text_of(texts[split]))
            report.append(f"{split}: expected {card.tokens[split]:,} tokens, sha256 {card.sha256[split]}")
            report.append(f"{split}: found {tokens:,} tokens, sha256 {found}")
    return "\n  ".join(report)
