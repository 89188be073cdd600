"""`python -m lm.train` as a real process: killed at random, two at a time, its memory; and what determinism costs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from lm.base.device import set_determinism
from lm.bench import random_run
from lm.config.values import make_config
from lm.study.ledger import read_ledger
from lm.train import update
from tests.forks import environment
from tests.rundir import checkpoint, event_steps
from tests.trials import SAVE_EVERY, Trials, check_ending, saved_step


def start(place: Path, flags: list[object]) -> subprocess.Popen[str]:
    """`python -m lm.train` in a working directory."""
    command = [sys.executable, "-m", "lm.train", *map(str, flags)]
    return subprocess.Popen(
        command, cwd=place, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a run that nothing disturbs."""
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr


def last_step(run: Path) -> int:
    """Updates that metrics.jsonl has recorded so far; a killed process may have cut its last line."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return 0
    lines = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(lines[-1])["step"] if lines else 0


def doing(run: Path, epoch_ends: set[int]) -> str:
    """What a run was at when it was killed, from what it left."""
    if list(run.rglob(".*.tmp")):
        return "a save"
    if not (run / "ckpt" / "last.pt").exists():
        return "training, before the first checkpoint"
    if checkpoint(run, "last")["progress"]["finished"]:
        return "final scores and result"
    return "evaluation at the end of an epoch" if last_step(run) in epoch_ends else "training"


def live(place: Path, flags: list[object], generator: random.Random, seconds: float) -> str:
    """Start a run and kill it at a random moment, mostly within `seconds` of its first update.

    Returns `completed` if it was faster, `start-up` if it had not begun to train, else `running`.
    """
    process, state = start(place, flags), "start-up"
    try:
        if generator.random() < 0.15:
            process.wait(generator.uniform(0, 5))
        while state == "start-up" and (line := process.stderr.readline()):
            if "parameters;" in line:
                state = "running"
        process.wait(generator.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
    _, stderr = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), stderr
    return state if process.returncode else "completed"


def kill_at_random(trials: Trials, kills: int, seed: int) -> tuple[int, Counter[str]]:
    """Kill real processes at random moments, run after run, until there were so many kills.

    How long they live follows the machine's speed, so that about two lives in three save something.
    Returns how many runs were ended and compared, and what was being done when the kills came.
    """
    generator, runs, counts, seconds = random.Random(seed), 0, Counter(), 0.7
    epoch_ends = {r["step"] for r in trials.expected["metrics"] if r["kind"] == "epoch"}
    while counts.total() < kills:
        place = trials.new_place()
        run, saved = place / "run", 0
        while counts.total() < kills and (state := live(place, trials.flags, generator, seconds)) != "completed":
            if state == "running":
                seconds *= 0.9 if saved_step(run) > saved else 1.25
                saved = saved_step(run)
            counts[doing(run, epoch_ends) if state == "running" else state] += 1
            assert last_step(run) - saved_step(run) <= SAVE_EVERY, (last_step(run), saved_step(run))
        finish(start(place, trials.flags))
        check_ending(run, trials.expected)
        for tag in ("step/loss", "epoch/valid_loss"):
            steps = {r["step"] for r in trials.expected["metrics"] if tag.startswith(r["kind"])}
            assert set(event_steps(run, tag)) == steps, tag
        runs += 1
    return runs, counts


def two_processes(place: Path, flags: list[object], expected: dict[str, Any]) -> None:
    """The second process on a run directory refuses and names the first; when that is killed, it takes over."""
    first = start(place, flags)
    while not last_step(place / "run"):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it cannot finish while the second starts
    second = start(place, flags)
    _, stderr = second.communicate()
    assert second.returncode == 2 and f"process {first.pid} is training" in stderr, stderr
    first.kill()
    first.communicate()
    finish(start(place, flags))
    check_ending(place / "run", expected)


def deleted_directory(place: Path, flags: list[object], expected: dict[str, Any]) -> None:
    """A run's directory is deleted and the run begun anew: the first process ends, and the second is not disturbed."""
    run = place / "run"
    first = start(place, flags)
    while not (run / "ckpt" / "last.pt").exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    shutil.rmtree(run)
    second = start(place, flags)
    while not (run / "ckpt" / "last.pt").exists():
        assert second.poll() is None, second.stderr.read()
        time.sleep(0.01)
    second.send_signal(signal.SIGSTOP)
    first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate()
    assert first.returncode == 1 and "was deleted or replaced" in stderr, stderr
    second.send_signal(signal.SIGCONT)
    finish(second)
    check_ending(run, expected)


def closed_streams(place: Path, flags: list[object], expected: dict[str, Any]) -> None:
    """A run that was started with all standard streams closed."""
    command = [sys.executable, "-m", "lm.train", *map(str, flags)]
    closed = subprocess.Popen(command, cwd=place, env=environment(), preexec_fn=lambda: os.closerange(0, 3))
    assert closed.wait() == 0
    check_ending(place / "run", expected)


def repeated_signals(place: Path, flags: list[object], expected: dict[str, Any], first: int) -> None:
    """A signal, and SIGTERM every 50 ms from then on, as of an impatient batch system: the first one decides."""
    process = start(place, flags)
    while not last_step(place / "run"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(first)
    while process.poll() is None:
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 128 + first and "Traceback" not in stderr, (process.returncode, stderr)
    finish(start(place, flags))
    check_ending(place / "run", expected)


def start_sweep(place: Path) -> subprocess.Popen[str]:
    """`python -m lm.sweep --jobs 2` of the study in `place`."""
    command = [sys.executable, "-m", "lm.sweep", "study", "--jobs=2", "--device=cpu", "--no-report"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=place, env=environment(), text=True, **pipes)


def sweep_figures(place: Path) -> dict[str, Any]:
    """What the ledger says of each run, without what a clock decides."""
    names = ("status", "valid_loss", "test_loss", "train_loss", "curve", "steps", "best_epoch", "activation")
    return {record["id"]: {name: record[name] for name in names} for record in read_ledger(place / "study/runs.jsonl")}


def disturb_sweep(folder: Path, study: str, kills: int, seed: int) -> Counter[str]:
    """Sweeps of four runs, two at a time, killed or stopped at random moments until there were so many.

    Every sweep that is let to its end has the figures of an undisturbed one. Returns what was sent.
    """
    generator, counts, expected, number = random.Random(seed), Counter(), None, 0
    while expected is None or counts.total() < kills:
        number += 1
        place = folder / f"sweep{number}"
        (place / "study").mkdir(parents=True)
        (place / "study" / "study.toml").write_text(study)
        seconds = 0.0
        while expected is not None and counts.total() < kills:
            signum = generator.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
            process = start_sweep(place)
            try:
                while not seconds and "start" not in (line := process.stderr.readline()) and line:
                    pass
                process.wait(generator.uniform(0.5, 4 + seconds))
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signum)
            _, stderr = process.communicate()
            code = -signum if signum == signal.SIGKILL else 128 + signum
            # Before its runs have started a signal ends it as any program, after its last one it is complete.
            assert process.returncode in (0, code, -signum), (process.returncode, stderr)
            counts[signum.name] += 1
            seconds += 1
        finish(start_sweep(place))
        found = sweep_figures(place)
        assert expected is None or found == expected, (found, expected)
        assert len(found) == 4
        expected = found
    return counts


def memory_growth(place: Path, flags: list[object], steps: int) -> tuple[float, float]:
    """Resident memory in MB at the middle of a run of `steps` updates, and the largest change from there on, in %."""
    process = start(place, [*flags, f"--max-steps={steps}"])
    sizes = []
    while process.poll() is None:
        if steps / 2 <= last_step(place / "run") < steps:
            pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
            sizes.append(int(pages) * 4096 / 1e6)
        time.sleep(0.05)
    finish(process)
    growth = (max(sizes) - min(sizes)) / sizes[0] * 100
    assert len(sizes) > 10 and growth <= 2, sizes
    return sizes[0], growth


def deterministic_cost(turns: int = 9, updates: int = 4) -> float:
    """CPU time of an update with --deterministic over that without, median over turns (examples-200, PTB's sizes)."""
    run = random_run(make_config("examples-200", "ptb"), 10_000)

    def turn(deterministic: bool) -> float:
        set_determinism(deterministic, 1)
        update(run, next(run.windows))  # caches are cold
        started = time.process_time()
        for _ in range(updates):
            update(run, next(run.windows))
        return time.process_time() - started

    plain_then_deterministic = [(turn(False), turn(True)) for _ in range(turns)]
    set_determinism(False, 1)
    return statistics.median(deterministic / plain for plain, deterministic in plain_then_deterministic)
