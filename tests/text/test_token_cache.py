"""The cache of encoded splits: memory maps, damage, full disks, and processes that write it at once."""

import hashlib
import json
import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from lm.text.finding import load_corpus
from lm.text.layout import SPLITS
from tests.text.toy import TOY, TOY_TOKENS, write

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_splits_are_memory_maps_of_the_smallest_type_and_never_written_back(tmp_path):
    for corpus in (load_corpus(None, write(tmp_path / "own", TOY)), load_corpus(None, tmp_path / "own")):
        assert corpus.path.parent == Path("data/cache")
        for ids in corpus.splits.values():
            assert isinstance(ids, np.memmap)
            assert (ids.dtype, ids.ndim, ids.mode) == (np.uint16, 1, "c")
    write(tmp_path / "many", TOY | {"train": "".join(f"w{i}\n" for i in range(1 << 16))})
    assert load_corpus(None, tmp_path / "many").splits["train"].dtype == np.uint32


def test_the_second_load_is_from_the_cache_and_equal(tmp_path, caplog):
    caplog.set_level(logging.INFO, "lm")
    folder = write(tmp_path / "own", TOY | {"valid": "an unknown word\n"})
    first = load_corpus(None, folder, tmp_path / "data")
    assert ["encoding the text" in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    written = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.path.iterdir()}
    second = load_corpus(None, folder, tmp_path / "data")
    assert not caplog.records
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.path.iterdir()} == written
    assert second.tokenizer.types == first.tokenizer.types
    for split in SPLITS:
        assert np.array_equal(second.splits[split], first.splits[split])
    for name in ("name", "source", "unk", "lines", "sha256", "path"):
        assert getattr(second, name) == getattr(first, name)
    assert second.unk["valid"] == 3


def test_another_text_or_tokenizer_gets_another_cache(tmp_path, monkeypatch):
    folder = write(tmp_path / "own", TOY)
    first = load_corpus(None, folder)
    write(folder, {"valid": " the mat sat . \n \n"})
    second = load_corpus(None, folder)
    assert second.tokenizer.decode(second.splits["valid"])[1] == "mat"
    monkeypatch.setattr("lm.text.words.WordTokenizer.DEFINITION", "another")
    assert len({first.path, second.path, load_corpus(None, folder).path}) == 3


def test_a_cache_that_does_not_count_words_yet_is_read_as_it_is(tmp_path, warnings_logged):
    folder = write(tmp_path / "own", TOY)
    first = load_corpus(None, folder)
    meta = json.loads((first.path / "meta.json").read_text())
    del meta["corpus"]["words"], meta["sha256"]
    meta["sha256"] = hashlib.sha256(json.dumps(meta).encode()).hexdigest()
    (first.path / "meta.json").write_text(json.dumps(meta))
    again = load_corpus(None, folder)
    assert (again.words, again.path, warnings_logged()) == (TOY_TOKENS, first.path, [])
    assert first.words == TOY_TOKENS


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    "bit flipped": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "other json": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json", "train.bin", "test.bin"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_rebuilt_with_one_warning(tmp_path, warnings_logged, name, damage):
    folder = write(tmp_path / "own", TOY)
    before = load_corpus(None, folder)
    expected = {path.name: path.read_bytes() for path in before.path.iterdir()}
    damage(before.path / name)
    after = load_corpus(None, folder)
    assert [message for message in warnings_logged() if "is damaged" in message] == warnings_logged()
    assert len(warnings_logged()) == 1
    assert {path.name: path.read_bytes() for path in after.path.iterdir()} == expected
    assert np.array_equal(after.splits["train"], np.frombuffer(expected["train.bin"], np.uint16))
    assert [path.name for path in before.path.parent.iterdir()] == [before.path.name]
    load_corpus(None, folder)
    assert len(warnings_logged()) == 1


def test_a_changed_figure_in_the_cache_is_found_out(tmp_path, warnings_logged):
    folder = write(tmp_path / "own", TOY)
    path = load_corpus(None, folder).path / "meta.json"
    meta = json.loads(path.read_text())
    meta["corpus"]["unk"]["test"] += 1
    path.write_text(json.dumps(meta))
    assert load_corpus(None, folder).unk["test"] == 0
    assert "meta.json is not as it was written" in warnings_logged()[0]


@pytest.mark.parametrize("place", ["data", "data/cache"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, warnings_logged, place):
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("in the way")
    corpus = load_corpus(None, write(tmp_path / "own", TOY))
    assert corpus.path is None
    assert len(corpus.splits["train"]) == TOY_TOKENS["train"]
    assert ["cannot write the token cache" in message for message in warnings_logged()] == [True]


def test_a_full_disk_leaves_no_cache_behind(tmp_path, monkeypatch, warnings_logged):
    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    assert load_corpus(None, write(tmp_path / "own", TOY)).path is None
    assert "No space left on device" in warnings_logged()[0]
    assert list(Path("data/cache").iterdir()) == []


def load_when_told(folder: Path, start: multiprocessing.Event, results: multiprocessing.Queue) -> None:
    start.wait()
    corpus = load_corpus(None, folder)
    results.put([ids.tolist() for ids in corpus.splits.values()])


def test_processes_that_build_one_cache_at_once_all_get_the_corpus(tmp_path):
    folder = write(tmp_path / "own", TOY | {"train": "".join(f"w{i} x\n" for i in range(3000))})
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=load_when_told, args=(folder, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    loaded = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    expected = [ids.tolist() for ids in load_corpus(None, folder).splits.values()]
    assert loaded == [expected] * len(processes)
    assert len(list(Path("data/cache").iterdir())) == 1
