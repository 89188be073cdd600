"""A run loses nothing: full disks and leftovers of killed processes, with the real program."""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch

from lm.checkpoint import load_checkpoint, load_latest
from lm.files import write_atomic
from tests.conftest import TINY

FLAGS = [*TINY, "--epochs=2", "--save-every=20", "--log-interval=5", "--no-tensorboard", "--no-eval-test"]


def limited(limit, environment, cwd, arguments):
    """`python -m lm.train` where no file can grow beyond `limit` bytes, as on a disk with no more space."""
    return subprocess.run(
        [sys.executable, "-m", "lm.train", *map(str, arguments)], cwd=cwd, env=environment, capture_output=True,
        text=True, timeout=120, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip


def ending(run):
    last = load_checkpoint(run / "ckpt" / "last.pt")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("tokens_per_s", "peak_rss_mb", "seconds")
    return last["model"], [{k: v for k, v in line.items() if k not in clock} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(cli, corpus_dir, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = cli("train", "--data", corpus_dir, *FLAGS, "--out-dir", run)
    assert done.returncode == 0, done.stderr
    return run


def test_a_full_disk_ends_in_one_message_and_the_run_goes_on_when_there_is_space(
    undisturbed, cli, corpus_dir, environment, work_dir, tmp_path
):
    largest = (undisturbed / "ckpt" / "last.pt").stat().st_size
    run = tmp_path / "run"
    arguments = ["--data", corpus_dir, *FLAGS, "--out-dir", run, "--resume=auto"]
    for limit in (1 << 7, largest // 8, largest // 2, largest - 1):
        done = limited(limit, environment, work_dir, arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert f"error: {run}" in done.stderr and "File too large" in done.stderr
        load_latest(run / "ckpt" / "last.pt")  # there is none yet, or a good one
    assert cli("train", *arguments).returncode == 0
    (ours, our_log), (theirs, their_log) = ending(run), ending(undisturbed)
    assert our_log == their_log
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_killed_processes_left_half_written_is_removed_by_the_next(undisturbed, cli, corpus_dir):
    left = [undisturbed / ".result.json.123.tmp", undisturbed / "ckpt" / ".last.new.pt.456.tmp"]
    for path in left:
        path.write_bytes(b"half")
    (undisturbed / "result.json").unlink()
    done = cli("train", "--data", corpus_dir, *FLAGS, "--out-dir", undisturbed, "--resume=auto")
    assert done.returncode == 0, done.stderr
    assert not any(path.exists() for path in left)


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(path, lambda file: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
