"""A run loses nothing, whatever happens to its process or disk: some moments of what `tests.stress` tries in full."""

import errno
import json
import logging
import os
import signal

import pytest

from lm.base.files import LineFile, write_atomic
from lm.base.rundir import RunDir
from lm.training.log import RunLog, log_to
from tests import trials as cases
from tests.conftest import TINY, write_corpus
from tests.forks import THREADS
from tests.rundir import checkpoint, event_steps, same, weights
from tests.trials import SHORT, SIGNALS, SWITCH, Trials


@pytest.fixture(scope="module")
def trials(faults, tmp_path_factory):
    """Averages from its fourth epoch on; every moment below is one of its undisturbed run."""
    folder = tmp_path_factory.mktemp("trials")
    trials = Trials(faults, folder, ["--data", write_corpus(folder / "corpus", train=50, held_out=30), *SHORT], SWITCH)
    assert trials.expected["result"]["averaged"]
    return trials


@pytest.mark.parametrize(
    ("pattern", "which"),
    [
        ("write .*data/cache/.*train.bin", 0),
        ("rename .*/new$", 0),  # the cache appears
        ("replace .*config.json", 0),
        ("^training", 14),
        ("^training", -5),  # which averages
        ("write .*metrics.jsonl", -1),
        ("write .*ckpt/.last.pt", 3),
        ("replace .*ckpt/last.pt", 1),  # before the previous checkpoint is kept
        ("replace .*ckpt/.last.pt", 2),  # and before the new one takes its place
        ("replace .*ckpt/.best.pt", 0),
        ("^evaluation", -1),  # scoring test
        ("write .*result.json", 0),
    ],
)
def test_a_run_killed_at_any_call_ends_in_the_same_bits(pattern, which, trials):
    cases.kill_at(trials, trials.positions(pattern)[which])


def test_a_run_killed_in_its_first_save_after_its_last_checkpoint_was_damaged_ends_in_the_same_bits(trials):
    cases.kill_after_damage(trials, trials.positions("^training")[25])


@pytest.mark.parametrize(
    ("pattern", "which", "named"),
    [
        ("write .*data/cache/.*train.bin", 0, "run"),
        ("write .*train.lock", 0, "train.lock"),
        ("write .*train.log", 3, "train.log"),
        ("write .*metrics.jsonl", 3, "metrics.jsonl"),
        ("fsync .*metrics.jsonl", 1, "metrics.jsonl"),
        ("write .*ckpt/.last.pt", 4, "last.pt"),
        ("write .*ckpt/.best.pt", 0, "best.pt"),
        ("write .*result.json", 0, "result.json"),
    ],
)
def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(pattern, which, named, trials):
    assert cases.fill_disk_at(trials, trials.positions(pattern)[which]) == named


def test_files_that_cannot_grow_are_one_message_with_tensorboard_too(faults, trials, tmp_path):
    with_tensorboard = Trials(faults, tmp_path, [*trials.flags, "--tensorboard"], SWITCH)
    hit = cases.limit_files(with_tensorboard, [1, 900, 4_000, 20_000])
    assert {"tb", "last.pt"} <= hit.keys()


@pytest.mark.parametrize(
    ("signals", "pattern", "which"),
    [
        ((signal.SIGINT,), "^training", 14),
        ((signal.SIGTERM,), "^evaluation", 1),
        ((signal.SIGTERM,), "^evaluation", 4),  # after the last update, so that none sets the rate again
        ((signal.SIGTERM,), "^evaluation", -1),
        ((signal.SIGINT,), "write .*ckpt/.last.pt", 4),
        ((signal.SIGINT, signal.SIGINT), "write .*ckpt/.last.pt", 4),
        ((signal.SIGINT, signal.SIGTERM), "^training", 14),
        ((signal.SIGTERM, signal.SIGINT), "^evaluation", 1),
        ((signal.SIGTERM, signal.SIGTERM), "^training", 14),
    ],
    ids=lambda value: "+".join(s.name for s in value) if isinstance(value, tuple) else value,
)
def test_stop_signals_end_with_their_code_and_lose_nothing(signals, pattern, which, trials):
    assert signals in SIGNALS
    cases.send_at(trials, trials.positions(pattern)[which], signals)


def test_what_a_killed_run_wrote_is_in_tensorboard_once(faults, trials, tmp_path):
    flags = [*trials.flags, "--tensorboard", "--log-interval=1"]
    seventh = next(n for n, call in enumerate(trials.calls, 1) if call.startswith("training")) + 7
    faults.train(tmp_path, *flags, action="kill", at=seventh)
    assert not (tmp_path / "run" / "ckpt" / "last.pt").exists()  # killed before its first checkpoint
    assert faults.train(tmp_path, *flags).returncode == 0
    steps = trials.expected["result"]["steps"]
    assert event_steps(tmp_path / "run", "step/loss") == list(range(1, steps + 1))


def test_equal_seeds_give_equal_bits_and_another_seed_gives_others(faults, trials, tmp_path):
    trials.finish(trials.new_place())  # another process, from the start
    assert trials.train(tmp_path, "--seed=2").returncode == 0
    assert not same(weights(tmp_path / "run"), trials.expected["last"]["model"])


def test_deterministic_algorithms_change_no_bit_on_a_cpu(faults, trials, tmp_path):
    assert trials.train(tmp_path, "--deterministic").returncode == 0
    assert same(weights(tmp_path / "run"), trials.expected["last"]["model"])


@pytest.mark.gpu
def test_deterministic_runs_on_cuda_end_in_the_same_bits(cli, corpus_dir, tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        flags = [*TINY, "--device=cuda", "--deterministic", "--epochs=2", "--no-tensorboard", "--out-dir", run]
        done = cli("train", "--data", corpus_dir, *flags)
        assert done.returncode == 0, done.stderr
    assert same(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize(
    ("device", "kernel"),
    [
        ("cpu", "native"),
        pytest.param("cuda", "native", marks=pytest.mark.gpu),
        pytest.param("cuda", "triton", marks=pytest.mark.gpu),
    ],
)
def test_the_short_recipe_killed_within_an_epoch_ends_in_the_same_bits(device, kernel, faults, corpus_dir, tmp_path):
    flags = ["train", "--data", corpus_dir, *TINY, f"--device={device}", f"--kernel={kernel}", "--deterministic"]
    flags += ["--optimizer=adam", "--lr=4e-3", "--schedule=trapezoid", "--average-last=0.3", "--epochs=12"]
    flags += ["--precision=bf16", "--no-tensorboard", "--save-every=3", "--resume=auto"]
    killed = RunDir(tmp_path / "killed")
    faults.run(*flags, "--out-dir", killed.path, folder=tmp_path, action="kill", at=150)
    saved = checkpoint(killed.path, "last")["progress"]["step"]
    for run in ("killed", "whole"):
        done = faults.run(*flags, "--out-dir", tmp_path / run, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "whole" / "result.json").read_text())["steps"]
    assert saved % (steps // 12) and saved < steps
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_resuming_with_another_number_of_threads_says_that_rounding_differs(faults, trials, tmp_path):
    trials.train(tmp_path, action="kill", at=trials.positions("^training")[30])
    done = trials.train(tmp_path, "--threads=3", "--dry-run")
    assert done.returncode == 0
    assert f"resuming with threads=3 (was {THREADS}): results will not be bit-identical" in done.stderr


def test_memory_does_not_grow(faults, trials, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", train=600, held_out=20)
    flags = [*trials.flags, "--data", corpus, "--epochs=1000", "--max-steps=400", "--save-every=50"]
    assert faults.train(tmp_path, *flags).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    peaks = {line["step"]: line["peak_rss_mb"] for line in lines if line["kind"] == "step"}
    assert peaks[400] <= 1.02 * peaks[200]


def test_the_logs_of_a_run_of_paper_length_are_small(trials, tmp_path):
    assert cases.log_megabytes(tmp_path, trials.expected["metrics"]).keys() == {"metrics.jsonl", "tb"}


def test_a_log_message_that_does_not_fit_raises_and_names_the_file(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught, log_to(tmp_path / "train.log"):
        monkeypatch.setattr(os, "write", full)
        logging.getLogger("lm.test").info("a message")
    assert caught.value.filename == str(tmp_path / "train.log")


def test_a_line_that_does_not_fit_whole_is_cut_off(tmp_path, fill_disk):
    file = LineFile(tmp_path / "lines")
    file.write("first\n")
    fill_disk()
    with pytest.raises(OSError, match="No space left"):
        file.write("second\n")
    assert (tmp_path / "lines").read_text() == "first\n"
    file.close()


def test_records_are_on_the_disk_before_a_checkpoint_may_refer_to_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with RunLog(RunDir(tmp_path), tensorboard=False) as log:
        log.record("step", 1, {"loss": 1.0})
        assert log.sync() == (tmp_path / "metrics.jsonl").stat().st_size
    assert synced == [str(tmp_path / "metrics.jsonl")]


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(path, lambda file: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
