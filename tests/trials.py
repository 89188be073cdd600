"""Ways to break a training run, each compared with an undisturbed run.

Each function here breaks a run once, or a few times, continues it, and raises AssertionError where a promise is not
kept: a run that is killed loses at most --save-every updates, a full disk ends in one message and leaves what was good
as it was, and what is resumed ends in the same bits. tests/test_reliability.py tries a few moments of each,
`python -m tests.stress` all of them, and real processes killed at random (tests/processes.py) besides.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lm.base.rundir import RunDir
from lm.training.checkpoint import load_latest
from lm.training.log import RunLog
from tests.conftest import TINY
from tests.faults import Faults
from tests.forks import Ended
from tests.rundir import differences, ending, records

SAVE_EVERY = 10
COMMON = [*TINY, "--nonmono=1", "--lr=10", "--clip=1", f"--save-every={SAVE_EVERY}", "--resume=auto", "--out-dir=run"]
SHORT = [*COMMON, "--epochs=5", "--log-interval=5", "--no-tensorboard"]
# So that these average in their last two epochs, which are the best: every kind of state is in the checkpoints.
SWITCH = 3
# Signals in the order of their arrival, and the exit code.
SIGNALS = {
    (signal.SIGINT,): 130,
    (signal.SIGTERM,): 143,
    (signal.SIGHUP,): 129,
    (signal.SIGINT, signal.SIGINT): 130,
    (signal.SIGINT, signal.SIGTERM): 130,
    (signal.SIGTERM, signal.SIGINT): 130,
    (signal.SIGTERM, signal.SIGTERM): 143,
    (signal.SIGTERM, signal.SIGHUP): 143,
    (signal.SIGHUP, signal.SIGTERM): 129,
}


class Trials:
    """Runs of one command line, each in a folder of its own, and the undisturbed one that they must end like.

    NT-ASGD switches after epoch `switch`, or where the losses say so (0), which differs between CPUs.
    """

    def __init__(self, faults: Faults, folder: Path, flags: list[object], switch: int = 0) -> None:
        self.faults, self.folder, self.flags, self.switch = faults, folder, flags, switch
        self._number = 0
        self.place = self.new_place()
        done = self.train(self.place)
        assert done.returncode == 0, done.stderr
        self.calls, self.expected = done.calls, ending(self.place / "run")

    def train(self, place: Path, *more: object, **how: Any) -> Ended:
        """One run with further flags, and `how` it is disturbed (`tests.faults.install`)."""
        return self.faults.train(place, *self.flags, *more, switch=self.switch, **how)

    def new_place(self) -> Path:
        """A fresh working directory."""
        self._number += 1
        place = self.folder / str(self._number)
        place.mkdir(parents=True)
        return place

    def positions(self, pattern: str) -> list[int]:
        """Numbers of the undisturbed run's calls that match."""
        return [number for number, call in enumerate(self.calls, 1) if re.search(pattern, call)]

    def finish(self, place: Path) -> None:
        """Continue a run without faults; it must end as the undisturbed one."""
        done = self.train(place)
        assert done.returncode == 0, done.stderr
        check_ending(place / "run", self.expected)
        shutil.rmtree(place)


def check_ending(run: Path, expected: dict[str, Any]) -> None:
    """Weights, optimizer, generators, result.json, metrics.jsonl and the names of all files are as expected."""
    found = differences(ending(run), expected)
    assert not found, found[:5]


def saved_step(run: Path) -> int:
    """Updates in the newest checkpoint, 0 where there is none; raises if there is one that cannot be read."""
    state, _ = load_latest(run / "ckpt" / "last.pt")
    return state["progress"]["step"] if state else 0


def made_updates(calls: list[str]) -> int:
    """Updates that a run from the start had made when its last call came."""
    return sum(call.startswith("training") for call in calls[:-1])


def check_message(ended: Ended, folder: Path) -> str:
    """A failed write is one line that names the file, and exit code 1. Returns the file, for counting."""
    assert ended.returncode == 1, (ended.returncode, ended.stderr)
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr, ended.stderr
    messages = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, ended.stderr
    named = re.fullmatch(r"error: (\S+): (File too large|No space left on device)", messages[0])
    assert named, messages
    return Path(named[1]).name


def kill_at(trials: Trials, number: int) -> None:
    """SIGKILL at one call, in the middle of it if it is a write."""
    place = trials.new_place()
    ended = trials.train(place, action="kill", at=number)
    assert ended.returncode == -signal.SIGKILL
    assert 0 <= made_updates(ended.calls) - saved_step(place / "run") <= SAVE_EVERY
    trials.finish(place)


def kill_after_damage(trials: Trials, number: int) -> None:
    """SIGKILL at one call, damage to the newest checkpoint, and SIGKILL in the next save, before its last rename."""
    place, twin = trials.new_place(), trials.new_place()
    trials.train(place, action="kill", at=number)
    last = place / "run" / "ckpt" / "last.pt"
    assert last.with_name("last.prev.pt").exists()
    last.write_bytes(b"damaged")
    shutil.copytree(place, twin, dirs_exist_ok=True)
    calls = trials.train(twin).calls
    rename = next(n for n, call in enumerate(calls, 1) if re.search("replace .*ckpt/.last.pt", call))
    ended = trials.train(place, action="kill", at=rename)
    assert ended.returncode == -signal.SIGKILL
    trials.finish(place)


def lose_last_after(trials: Trials, number: int) -> str:
    """SIGKILL at one call, and last.pt deleted: begun anew where nothing is lost by it, else refused, all kept."""
    place = trials.new_place()
    trials.train(place, action="kill", at=number)
    run = place / "run"
    for path in run.glob("ckpt/last*"):
        path.unlink()
    if not (run / "ckpt" / "best.pt").exists():
        trials.finish(place)
        return "begun anew"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ended = trials.train(place)
    assert (ended.returncode, "last.pt: not there" in ended.stderr) == (5, True), ended.stderr
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    shutil.rmtree(place)
    return "refused"


def cut_metrics_after(trials: Trials, number: int) -> None:
    """SIGKILL at one call, and half of metrics.jsonl lost: what is left are whole lines, the bits the same."""
    place = trials.new_place()
    trials.train(place, action="kill", at=number)
    metrics = place / "run" / "metrics.jsonl"
    with metrics.open("r+b") as file:
        file.truncate(metrics.stat().st_size // 2)
    done = trials.train(place)
    assert done.returncode == 0, done.stderr
    found, expected = ending(place / "run"), trials.expected
    steps = [record["step"] for record in found["metrics"]]
    assert steps == sorted(steps) and [r for r in expected["metrics"] if r in found["metrics"]] == found["metrics"]
    assert not differences(found | {"metrics": 0}, expected | {"metrics": 0})
    shutil.rmtree(place)


def fill_disk_at(trials: Trials, number: int) -> str:
    """No room from one call on; room again after that. Returns the file that the message names."""
    place = trials.new_place()
    ended = trials.train(place, action="full", at=number)
    name = check_message(ended, place)
    check_nothing_damaged(place / "run", made_updates(ended.calls))
    trials.finish(place)
    return name


def check_nothing_damaged(run: Path, updates: int) -> None:
    """After a failed write: the checkpoint is readable and recent, every record whole, nothing half-written is left."""
    assert 0 <= updates - saved_step(run) <= SAVE_EVERY
    if (run / "metrics.jsonl").exists():
        records(run)
    assert not list(run.rglob(".*.tmp"))


def send_at(trials: Trials, number: int, signals: tuple[int, ...]) -> None:
    """Signals at one call. A single one loses nothing; after the last look for signals the run completes instead."""
    place = trials.new_place()
    ended = trials.train(place, action=list(signals), at=number)
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr, ended.stderr
    over = any("result.json" in call for call in trials.calls[number - 1 : number])
    assert ended.returncode == SIGNALS[signals] or (over and ended.returncode == 0), (ended.returncode, ended.stderr)
    made = sum(call.startswith("training") for call in ended.calls)
    if len(signals) == 1 and ended.returncode:
        status = json.loads((place / "run" / "result.json").read_text())["status"]
        assert (status, saved_step(place / "run")) == ("interrupted", made)
    assert made - saved_step(place / "run") <= SAVE_EVERY + 1
    trials.finish(place)


def limit_files(trials: Trials, limits: list[int]) -> Counter[str]:
    """One run on a disk where files can grow up to a limit that rises from try to try."""
    place, hit = trials.new_place(), Counter()
    for limit in limits:
        ended = trials.train(place, file_limit=limit)
        hit[check_message(ended, place)] += 1
        check_nothing_damaged(place / "run", saved_step(place / "run"))
    trials.finish(place)
    return hit


def can_mount(place: Path) -> bool:
    """Whether this process may mount a small disk in memory."""
    try:
        mount(place, 1)
    except (OSError, subprocess.SubprocessError):
        return False
    subprocess.run(["umount", str(place)], check=True)
    return True


def mount(place: Path, kibibytes: int, *options: str) -> None:
    """Mount a disk in memory, or resize it with the option `remount`."""
    options = ",".join((f"size={kibibytes}k", *options))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True, capture_output=True)


def fill_small_disk(trials: Trials, sizes: list[int]) -> Counter[str]:
    """One run on a disk of so many KiB, which grows from try to try until it is enough."""
    place, hit = trials.new_place(), Counter()
    mount(place, sizes[0])
    try:
        for size in sizes:
            mount(place, size, "remount")
            ended = trials.train(place)
            if not ended.returncode:
                break
            hit[check_message(ended, place)] += 1
            check_nothing_damaged(place / "run", saved_step(place / "run"))
        check_ending(place / "run", trials.expected)
    finally:
        subprocess.run(["umount", str(place)], check=True)
    return hit


def log_megabytes(folder: Path, metrics: list[dict[str, Any]], epochs: int = 500) -> dict[str, float]:
    """MB of metrics.jsonl and tb/ after `epochs` of PTB at batch 20 and bptt 70, from records like `metrics`."""
    steps_an_epoch = 929_589 / 20 / 68.25  # 95 % of the windows are 70 long on average, 5 % are 35
    needed = {"step": epochs * steps_an_epoch / 200, "epoch": epochs}
    sizes = dict.fromkeys(("metrics.jsonl", "tb"), 0.0)
    for kind, count in needed.items():
        record = next(r for r in metrics if r["kind"] == kind)
        values = {key: value for key, value in record.items() if key not in ("kind", "step")}
        written, place = 50, folder / kind
        place.mkdir(parents=True)
        with RunLog(RunDir(place)) as log:
            for i in range(written):
                log.record(kind, 340_000 + i, values)
                if kind == "epoch":
                    log.histogram("activation", torch.randn(70, 10, 400) * 0.2, 340_000 + i)
        for name in sizes:
            files = [path for path in (place, *place.rglob("*")) if path.is_file() and name in path.parts]
            sizes[name] += sum(path.stat().st_size for path in files) * count / written / 1e6
    assert all(0.1 < size < 50 for size in sizes.values()), sizes
    return sizes
