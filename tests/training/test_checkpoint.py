"""Checkpoints: round trips, detected damage, and the one before."""

import os

import pytest
import torch

from lm.base.errors import CheckpointError
from lm.base.files import write_atomic
from lm.training.checkpoint import fitting, load_checkpoint, load_latest, save_checkpoint

STATE = {"weights": torch.arange(1000.0), "nested": {"text": "a", "number": 1.5, "list": [1, 2]}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ckpt" / "last.pt"
    save_checkpoint(path, STATE)
    return path


def test_a_checkpoint_comes_back_as_it_was(path):
    state = load_checkpoint(path)
    assert torch.equal(state["weights"], STATE["weights"])
    assert state["nested"] == STATE["nested"]
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_flipped_bit_anywhere_is_detected(path):
    save_checkpoint(path, {"weights": torch.arange(20.0)})
    good = path.read_bytes()
    for position in (*range(0, len(good), 11), *range(len(good) - 60, len(good))):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1 << position % 8]) + good[position + 1 :])
        with pytest.raises(CheckpointError, match="checksum"):
            load_checkpoint(path)
    path.write_bytes(good)
    assert torch.equal(load_checkpoint(path)["weights"], torch.arange(20.0))


def test_a_checkpoint_is_an_ordinary_file_of_torch_and_one_without_our_checksum_is_read_and_verified_too(path):
    assert torch.equal(torch.load(path, weights_only=True, mmap=True)["weights"], STATE["weights"])
    torch.save({"format": 1} | STATE, path)
    assert torch.equal(load_checkpoint(path)["weights"], STATE["weights"])
    data = bytearray(path.read_bytes())
    data[data.index(STATE["weights"].numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_a_truncated_or_foreign_file_is_refused(path, content):
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(CheckpointError, match="last.pt"):
        load_checkpoint(path)


def test_a_missing_file_a_foreign_zip_and_a_newer_format_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "list.pt")
    torch.save({"format": 99}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="newer"):
        load_checkpoint(tmp_path / "newer.pt")


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_the_checkpoint_before_is_used_when_the_last_is_damaged(path):
    save_checkpoint(path, STATE | {"step": 2}, keep_previous=True)
    assert load_latest(path)[0]["step"] == 2
    path.write_bytes(b"junk")
    state, warning = load_latest(path)
    assert torch.equal(state["weights"], STATE["weights"])
    assert "last.pt" in warning


@pytest.mark.parametrize("damaged", [b"", b"junk", "truncated", "flipped"])
def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one_before_it(path, damaged):
    save_checkpoint(path, STATE | {"step": 2}, keep_previous=True)
    good = path.read_bytes()
    changed = {"truncated": good[:-1], "flipped": good[:999] + bytes([good[999] ^ 1]) + good[1000:]}
    path.write_bytes(changed.get(damaged, damaged))
    save_checkpoint(path, STATE | {"step": 3}, keep_previous=True)
    assert load_checkpoint(path)["step"] == 3
    assert "step" not in load_checkpoint(path.with_name("last.prev.pt"))


def test_old_checkpoints_are_rotated(path):
    for step in range(2, 7):
        save_checkpoint(path, STATE | {"step": step}, keep_previous=True)
    assert sorted(os.listdir(path.parent)) == ["last.prev.pt", "last.pt"]
    assert [load_checkpoint(path.with_name(name))["step"] for name in ("last.prev.pt", "last.pt")] == [5, 6]


def test_nothing_to_load_is_none_and_nothing_usable_is_an_error(path, tmp_path):
    assert load_latest(tmp_path / "none.pt") == (None, "")
    path.write_bytes(b"junk")
    with pytest.raises(CheckpointError):
        load_latest(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path):
    before = path.read_bytes()

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.pt"]


def test_too_little_memory_is_no_fault_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "ckpt.pt"
    save_checkpoint(path, STATE)
    with pytest.raises(torch.OutOfMemoryError), fitting(path):
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        load_latest(path)
