"""Files appear whole, replace nothing but files, and leave nothing behind."""

import os
import platform
import subprocess
import sys

import pytest

from lm.base.files import LineFile, scratch_folder, scratch_folders, write_bytes


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(os.devnull, path)])
def test_what_is_no_regular_file_is_not_replaced(make, tmp_path):
    make(tmp_path / "a")
    before = os.lstat(tmp_path / "a").st_mode
    with pytest.raises(OSError, match="no regular file") as caught:
        write_bytes(tmp_path / "a", b"new")
    assert caught.value.filename == str(tmp_path / "a")
    assert (os.listdir(tmp_path), os.lstat(tmp_path / "a").st_mode) == (["a"], before)


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127])
def test_a_name_may_be_as_long_as_the_file_system_allows(name, tmp_path):
    write_bytes(tmp_path / name, b"new")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("content", "kept"), [("", ""), ("a", ""), ("a\n", "a\n"), ("a\nb", "a\n"), ("a\n" + "b" * 200_000, "a\n")]
)
def test_half_a_line_at_the_end_is_cut_off(content, kept, tmp_path):
    path = tmp_path / "lines"
    path.write_text(content)
    file = LineFile(path)
    file.cut_partial_line()
    file.write("c\n")
    file.close()
    assert path.read_text() == kept + "c\n"


def test_a_scratch_folder_is_removed_with_those_of_killed_processes_and_no_others(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, mine = platform.node(), "notes-1"
    left = tmp_path / f".lm-scratch-{here}-abc-{ended.pid}"
    others = [f".lm-scratch-{here}{host}-abc-{ended.pid}" for host in (".other", "-1")]
    in_use = [f".lm-scratch-{here}-abc-{os.getppid()}", *others, mine]
    for name in (left.name, *in_use):
        (tmp_path / name / "inside").mkdir(parents=True)
    with scratch_folder(tmp_path) as scratch:
        assert scratch.parent == tmp_path
        assert scratch in scratch_folders(tmp_path)
        assert not left.exists()
    assert sorted(os.listdir(tmp_path)) == sorted(in_use)
