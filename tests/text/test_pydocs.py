"""The corpus made of the interpreter's documentation."""

import hashlib
import json
import subprocess
import sys

import pytest

from lm.base.errors import CorpusError
from lm.text import pydocs
from lm.text.tokenizer import EOS, UNK


@pytest.fixture(scope="module")
def texts() -> dict[str, bytes]:
    return pydocs.build()


def library(folder, monkeypatch, files: dict[str, str]) -> None:
    """Make `folder` the standard library."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(pydocs, "_stdlib", lambda: folder)


def name_in(split: str) -> str:
    """A module's name whose documents go to `split`."""
    return next(name for name in (f"m{i}" for i in range(1000)) if pydocs.split_of(name) == split)


def small_library(**extra: str) -> dict[str, str]:
    valid, test = (
        f'"""The {word} is returned when all of the words are known.\n"""\n' for word in ("answer", "question")
    )
    return {f"{name_in('valid')}.py": valid, f"{name_in('test')}.py": test, **extra}


def test_the_corpus_is_large_enough_to_train_on_and_within_10_000_types(texts):
    tokens = {split: len(text.split()) + text.count(b"\n") for split, text in texts.items()}
    assert tokens["train"] > 200_000
    assert min(tokens["valid"], tokens["test"]) > 8_000
    types = {word for text in texts.values() for word in text.split()} | {EOS.encode()}
    assert 4_000 < len(types) <= pydocs.MAX_TYPES


def test_every_word_of_valid_and_test_occurs_in_train(texts):
    assert {*texts["valid"].split(), *texts["test"].split()} <= set(texts["train"].split())


def test_the_text_reads_as_penn_treebank_does(texts):
    words = texts["train"].decode().split()
    assert all(word == word.lower() for word in words if word != "N")
    assert {"n't", "'s", "N", UNK, ".", ","} <= set(words)
    assert not any(char.isdigit() and char.isascii() for word in words for char in word[:1])
    assert words.count(UNK) < 0.05 * len(words)


def test_another_process_finds_the_same_text_without_files_or_network_whatever_its_hash_seed(
    texts, environment, tmp_path
):
    variables = {"PYTHONHASHSEED": "1", "LC_ALL": "C", "LM_CORPORA": ""}
    command = [sys.executable, "-m", "lm.corpus", "--dataset", "pydocs", "--json"]
    first, again = (
        subprocess.run(command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert "encoding" in first.stderr
    assert again.stderr == ""  # from the cache
    assert again.stdout == first.stdout
    report = json.loads(first.stdout)
    assert report["dataset"] == "pydocs"
    assert report["sha256"] == {split: hashlib.sha256(text).hexdigest() for split, text in texts.items()}
    assert report["unk"] == dict.fromkeys(texts, 0)


def test_code_is_parsed_but_never_run(tmp_path, monkeypatch):
    trap = f'"""A module that must not be imported by anyone."""\nopen({str(tmp_path / "ran")!r}, "w")\n'
    library(
        tmp_path / "lib",
        monkeypatch,
        small_library(**{f"{name_in('train')}.py": trap, "broken.py": "def", "nul.py": "\0"}),
    )
    assert set(pydocs.build()) == {"train", "valid", "test"}
    assert not (tmp_path / "ran").exists()


def test_a_paragraph_of_several_documents_is_kept_once_so_that_no_split_leaks(tmp_path, monkeypatch):
    shared = '"""This very paragraph is found in many of the modules."""\n'
    files = small_library(**{"a/first.py": shared, f"z/{name_in('test')}.py": shared, "b.py": shared})
    library(tmp_path, monkeypatch, files)
    assert sum(text.count(b"\n") for text in pydocs.build().values()) == 3


def test_only_prose_is_taken_from_a_docstring(tmp_path, monkeypatch):
    source = '''
def fold(items):
    """Fold the items into one value, as the manual says.

    >>> fold([1, 2, 3])
    Six is the answer that you get.

    =====  ==================
    Name   The meaning of it.
    =====  ==================

    fold(items, start=0) -> value

    * The first item is the start.  The others follow it.
    * The second item isn't used, e.g. in 3.14 or 27 cases.

    items
        The words that will be folded into one value.
    """
'''
    monkeypatch.setattr(pydocs, "MIN_COUNT", 1)
    library(tmp_path, monkeypatch, small_library(**{f"{name_in('train')}.py": source}))
    expected = [
        "fold the items into one value , as the manual says .",
        "the first item is the start .",
        "the others follow it .",
        "the second item is n't used , e.g. in N or N cases .",
        "the words that will be folded into one value .",
    ]
    assert pydocs.build()["train"].decode().splitlines() == expected


def test_rare_words_become_unk_and_the_vocabulary_is_bounded(tmp_path, monkeypatch):
    source = '"""Common words are the ones that return.\n\nCommon words are rarely zygomatic.\n"""\n'
    library(tmp_path, monkeypatch, small_library(**{f"{name_in('train')}.py": source}))
    assert (
        pydocs.build()["train"].decode()
        == f"common words are {' '.join([UNK] * 4)} .\ncommon words are {UNK} {UNK} .\n"
    )
    monkeypatch.setattr(pydocs, "MAX_TYPES", 4)
    assert set(pydocs.build()["train"].decode().split()) == {UNK, ".", "are"}


def test_an_interpreter_without_sources_is_refused(tmp_path, monkeypatch):
    library(tmp_path, monkeypatch, {})
    with pytest.raises(CorpusError, match="comes without its library's sources"):
        pydocs.build()


def test_the_fingerprint_follows_the_library(tmp_path, monkeypatch):
    library(tmp_path, monkeypatch, small_library())
    before = pydocs.fingerprint()
    assert pydocs.fingerprint() == before
    library(tmp_path, monkeypatch, {"new.py": "1"})
    assert pydocs.fingerprint() != before


def test_documents_are_split_by_name_in_about_the_stated_shares():
    splits = [pydocs.split_of(f"document {i}") for i in range(4000)]
    for split, share in (("train", 0.85), ("valid", 0.075), ("test", 0.075)):
        assert abs(splits.count(split) / len(splits) - share) < 0.015
