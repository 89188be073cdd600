"""The corpus that needs no download: English prose out of the Python interpreter's own documentation.

Read from `pydoc_data.topics` and from the docstrings of the standard library. Source files are parsed, nothing is
imported or run, so that one interpreter always gives one text; another version of Python gives another.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import platform
import re
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lm.base.errors import CorpusError
from lm.text.tokenizer import EOS, UNK

MAX_TYPES = 10_000  # as Penn Treebank has
MIN_COUNT = 2  # in train, so that `<unk>` is learned even where all types would fit
VALID_SHARE = TEST_SHARE = 0.075
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib-dynload"}
TYPOGRAPHIC = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--")
_ABBREVIATION = r"\b(?:e\.g|i\.e|etc|vs|cf)\."
_SENTENCE_END = re.compile(r"(?<=[.!?:])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)(?<!cf\.)[\"')]*\s+(?=[\"'(]?[A-Z])")
_MARKUP = re.compile(r"(?::[a-z:]+:)?`+([^`]+)`+_*|(?<!\w)\*{1,2}(\w[^*\n]*)\*{1,2}(?!\w)")
_BULLET = re.compile(r"^(?:[*\-+o\u2022]|\(?\d+[.)])\s+")
_CODE_LINE = re.compile(r"^\s*(?:>>>|\.\.\.|\.\. |\$ |[|+]|[@#%:])|::=|[=\-~*^\"']{4,}")
_CODE_CHARACTER = re.compile(r"[=<>{}\[\]|\\/@#%^~+_]")
_PLAIN_WORD = re.compile(r"[\"'(]*(?:[A-Za-z]+(?:['-][A-Za-z]+)*|\d[\d.]*|e\.g|i\.e)[\"')]*[.,;:!?]*[\"')]*")
_TOKEN = re.compile(rf"{_ABBREVIATION}|\.\.\.|--|\d[\w.,]*\w|\d|[^\W\d]\w*(?:[-.']\w+)*|[^\w\s]|_")
CLITIC = re.compile(r"(.+?)(n't|'s|'re|'ve|'ll|'d|'m)")


def describe() -> str:
    """Where the text comes from, for a reader."""
    return f"documentation of Python {platform.python_version()} in {_stdlib()}"


def fingerprint() -> str:
    """Changes whenever the text might (this module included), and costs milliseconds where `build` takes seconds."""
    files = "".join(f"{path} {path.stat().st_size}\n" for path in _source_files())
    digest = hashlib.sha256(files.encode() + Path(__file__).read_bytes())
    return f"pydocs {sys.version} {digest.hexdigest()}"


def build() -> dict[str, bytes]:
    """Text of the splits "train", "valid" and "test", one tokenized sentence a line, as UTF-8.

    Lower-cased, punctuation and clitics split off and numbers written N, as in Penn Treebank. Whole documents (a topic,
    a module) go to a split by a hash of their name, a paragraph that several documents share to the first of them. At
    most `MAX_TYPES` types, `<eos>` and `<unk>` included: rarer words, and those that train has less than
    `MIN_COUNT` times, are `<unk>`.

    Raises:
        CorpusError: this interpreter comes without the sources of its standard library.
    """
    sentences: dict[str, list[list[str]]] = {"train": [], "valid": [], "test": []}
    seen: set[str] = set()
    for name, text in _documents():
        for paragraph in _paragraphs(text):
            if paragraph not in seen:
                seen.add(paragraph)
                sentences[split_of(name)] += [words_of(s) for s in _SENTENCE_END.split(paragraph) if is_prose(s)]
    if not all(sentences.values()):
        raise CorpusError(f"pydocs: no documentation in {_stdlib()}; this Python comes without its library's sources")
    counts = Counter(word for words in sentences["train"] for word in words if word not in (EOS, UNK))
    ranked = sorted(
        (word for word, count in counts.items() if count >= MIN_COUNT), key=lambda word: (-counts[word], word)
    )
    kept = set(ranked[: MAX_TYPES - 2])

    def line(words: list[str]) -> str:
        return " ".join(word if word in kept else UNK for word in words) + "\n"

    return {split: "".join(map(line, lines)).encode() for split, lines in sentences.items()}


def split_of(document: str) -> str:
    """The split that a document belongs to by its name, on every machine and in every version."""
    share = int.from_bytes(hashlib.sha256(document.encode()).digest()[:4], "big") / 2**32
    return "valid" if share < VALID_SHARE else "test" if share < VALID_SHARE + TEST_SHARE else "train"


def is_prose(sentence: str) -> bool:
    """Whether a sentence is English rather than code, a signature, a table or a heading."""
    words = sentence.split()
    plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
    return (
        4 <= len(words) <= 80  # longer ones are lists that lost their layout
        and re.search(r"[.!?:][\"')]*$", sentence) is not None
        and re.match(r"[\"'(]*[A-Za-z]", sentence) is not None
        and plain >= 0.75 * len(words)
        and len(_CODE_CHARACTER.findall(sentence)) <= 0.03 * len(sentence)
    )


def words_of(sentence: str) -> list[str]:
    """Tokens of a sentence in the manner of Penn Treebank."""
    words: list[str] = []
    for word in _TOKEN.findall(sentence.lower()):
        if word[0].isdigit():
            words.append("N")
        elif clitic := CLITIC.fullmatch(word):
            words.extend(clitic.groups())
        else:
            words.append(word)
    return words


@functools.cache
def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _source_files() -> list[Path]:
    """Python files of the standard library in a fixed order."""
    files: list[Path] = []
    for folder, folders, names in os.walk(_stdlib()):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("config-"))
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return files


def _documents() -> Iterator[tuple[str, str]]:
    """Pairs of a document's name and its text: the topics, and the docstrings of every module."""
    for path in _source_files():
        name = path.relative_to(_stdlib()).with_suffix("").as_posix()
        try:
            with warnings.catch_warnings(), tokenize.open(path) as file:
                warnings.simplefilter("ignore")  # escape sequences that a later Python will refuse
                tree = ast.parse(file.read())
        except (OSError, SyntaxError, ValueError):
            continue
        if name == "pydoc_data/topics":
            for node in ast.walk(tree):
                if isinstance(node, ast.Dict):
                    topics = ast.literal_eval(node)
                    yield from ((f"topic {topic}", topics[topic]) for topic in sorted(topics))
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        yield name, "\n\n".join(text for text in docstrings if text)


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a docstring that may hold prose, each on one line and without markup."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text).translate(TYPOGRAPHIC)):
        lines = block.splitlines()
        if any(_CODE_LINE.search(line) for line in lines):
            continue
        indents = [len(line) - len(line.lstrip()) for line in lines]
        # A first line that stands out to the left, and no bullet, is the term that the rest defines.
        if len(lines) > 1 and indents[0] < min(indents[1:]) and not _BULLET.match(lines[0].lstrip()):
            lines = lines[1:]
        items: list[str] = []
        for line in map(str.strip, lines):
            if _BULLET.match(line) or not items:
                items.append(_BULLET.sub("", line))
            else:
                items[-1] += f" {line}"
        yield from (_MARKUP.sub(lambda match: next(filter(None, match.groups())), item) for item in items)
