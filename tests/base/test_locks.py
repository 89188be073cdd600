"""Locks on files: one holder, who notices that the file was deleted."""

import errno
import os

import pytest

from lm.base import locks
from lm.base.locks import holds, take_lock


def test_a_lock_on_a_deleted_file_is_none(tmp_path):
    path = tmp_path / "lock"
    first = take_lock(path, wait=False)
    assert holds(path, first)
    assert take_lock(path, wait=False) is None
    path.unlink()
    assert not holds(path, first)
    second = take_lock(path, wait=False)
    assert holds(path, second)
    assert not holds(path, first)
    os.close(first)
    os.close(second)


def test_a_lock_whose_file_was_deleted_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, real, calls = tmp_path / "lock", locks._lock, []

    def deleted_meanwhile(*arguments):
        descriptor = real(*arguments)
        if not calls:
            path.unlink()
        calls.append(descriptor)
        return descriptor

    monkeypatch.setattr(locks, "_lock", deleted_meanwhile)
    descriptor = take_lock(path, wait=False)
    assert len(calls) == 2
    assert holds(path, descriptor)
    os.close(descriptor)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(*arguments, **keywords):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "lock", none)
    with pytest.raises(OSError, match="No locks available") as caught:
        take_lock(tmp_path / "lock", wait=False)
    assert caught.value.filename == str(tmp_path / "lock")
