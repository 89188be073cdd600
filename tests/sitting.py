"""One sitting on a borrowed GPU: AWD-LSTM's short recipe on PTB and WikiText-2, each run scored and brought home.

    python3 -m tests.sitting --studies ptb-fast --out DIR         # there; the same again resumes what is left
    python3 -m tests.sitting --join DIR/ptb-fast.* --out EXPORT   # here: the weights, put together and verified
    python3 -m tests.sitting --tiny --minutes 5 --out DIR         # every line of it on a CPU, in tiny sizes

Needs data/ptb and data/wikitext-2, which git ignores, so that they have to be taken along (data/cache as well spares
the encoding), and keeps its state in runs/sitting and the runs in runs/STUDY, which must survive for a second call. DIR
gets what is to be kept (tests/sitting_home.py). The epochs of a study are chosen once, after half a minute of
measuring, and written into its study.toml; if results/STUDY has runs already, they are as many as those had.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lm.base.errors import DivergedError, run_cli
from lm.base.files import ROOT, write_atomic
from lm.base.rundir import RunDir
from lm.base.signals import StopSignals
from lm.study.executors import Job, outcome_of, read_metrics
from lm.study.scheduler import Sweep, finished
from lm.study.specification import load_study
from lm.sweep import parse_args
from lm.text.finding import configured_corpus
from tests.mps import mps
from tests.parcel import join, unpack
from tests.sitting_home import FILE_BYTES, Home
from tests.sitting_plan import (
    MODES,
    PLAN,
    PTB,
    START_S,
    WT2,
    Task,
    choose_epochs,
    epoch_seconds,
    scoring_seconds,
    tiny_study,
    with_epochs,
)

logger = logging.getLogger("lm.sitting")
MEASURE_MINUTES = 0.4
MEASURE_START_S = 90.0  # that a process has to begin in; after them and the minutes it is killed
WORTH_STARTING_S = 90.0
END_S = 25.0  # for everything that runs to save and end in
WELL_ENDED = (0, -signal.SIGTERM, 128 + signal.SIGTERM)  # exit codes, also of a process that was asked to stop


class Sitting:
    """The plan's runs within the time given: what is missing, what runs, and what is brought home."""

    def __init__(self, args: argparse.Namespace, device: str, end: float, stop: StopSignals) -> None:
        self.args = args
        self.device = device
        self.end = end
        self.stop = stop
        self.state = ROOT / "runs" / ("sitting-tiny" if args.tiny else "sitting")
        self.plan = [run for run in PLAN if run[0] in args.studies][: 2 if args.tiny else args.runs]
        self.todo: list[Task] = []
        self.scores: list[Task] = []
        self.running: dict[subprocess.Popen[bytes], Task] = {}
        self.retried: set[str] = set()
        self.sweeps: dict[str, Sweep] = {}
        self.tokens: dict[str, list[int]] = {}
        self.state.mkdir(parents=True, exist_ok=True)
        self.home = Home(args.out, self.state, self.sweeps, 4096 if args.tiny else FILE_BYTES)
        if args.tiny:
            self._make_tiny()
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    def _make_tiny(self) -> None:
        from tests.conftest import write_corpus

        os.environ["LM_CORPORA"] = str(self.state / "corpora")
        if not (self.state / "corpora").exists():
            write_corpus(self.state / "corpora" / "tiny")

    def left(self) -> float:
        """Seconds until everything must have ended."""
        return self.end - time.monotonic()

    def asked(self, study: str) -> str:
        """The study.toml of the repository."""
        text = (ROOT / "results" / study / "study.toml").read_text()
        return tiny_study(text) if self.args.tiny else text

    def sweep(self, study: str) -> Sweep:
        """The study as it is computed here."""
        runs = ROOT / "runs" / ("tiny" if self.args.tiny else "")
        flags = [str(self.state / study), f"--runs-dir={runs}", "--no-report"]
        flags += ["--device=cuda"] if self.device == "cuda" else []
        return Sweep(load_study(self.state / study), parse_args("", flags))

    def settle_epochs(self) -> None:
        """Give each study its folder, with its ledger so far and the number of epochs of all its runs.

        A study that could not be measured is left out of the plan.
        """
        open_studies = []
        for study in dict.fromkeys(run[0] for run in self.plan):
            folder = self.state / study
            home = ROOT / "results" / study / "runs.jsonl"
            if (folder / "study.toml").exists():
                continue
            folder.mkdir(exist_ok=True)
            if home.exists() and not self.args.tiny:
                shutil.copy(home, folder / "runs.jsonl")
                (folder / "study.toml").write_text(self.asked(study))
            else:
                open_studies.append(study)
        jobs = {study: self._trial(study) for study in open_studies}
        lanes = self.args.lanes
        groups = [open_studies[first : first + lanes] for first in range(0, len(open_studies), lanes)]
        measured = [self._measure({study: jobs[study] for study in group}) for group in groups]
        found = {study: seconds for group in measured for study, seconds in group.items()}
        for study, epoch in found.items():
            most = jobs[study].config.epochs
            starts = 3 if self.args.then else 1
            seconds = (self.left() + 60 * self.args.then) / len(groups)
            seconds -= starts * START_S + scoring_seconds(*self.tokens[study])
            epochs = choose_epochs(seconds, epoch, most)
            logger.info("%s: %.2f s an epoch, %.0f s for them: %d of %d epochs", study, epoch, seconds, epochs, most)
            text = with_epochs(self.asked(study), epochs)
            write_atomic(self.state / study / "study.toml", lambda file, text=text: file.write(text.encode()))
        self.plan = [run for run in self.plan if (self.state / run[0] / "study.toml").exists()]

    def _trial(self, study: str) -> Job:
        """The study's most important run, as the repository asks for it."""
        scratch = self.state / "scratch" / study
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "study.toml").write_text(self.asked(study))
        flags = [str(scratch), f"--runs-dir={self.state / 'scratch' / 'runs'}", f"--device={self.device}"]
        sweep = Sweep(load_study(scratch), parse_args("", flags))
        _, alpha, beta, seed = next(run for run in PLAN if run[0] == study)
        return sweep.job({"alpha": alpha, "beta": beta}, seed)

    def _measure(self, jobs: Mapping[str, Job]) -> dict[str, float]:
        """Seconds of an epoch of each study's job, with as many runs side by side as there will be."""
        scratch = self.state / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        studies = list(jobs)
        for study, job in jobs.items():
            self._count(study, job)
        minutes = MEASURE_MINUTES / 8 if self.args.tiny else MEASURE_MINUTES
        for lane in reversed(range(self.args.lanes)):
            study = studies[lane % len(studies)]
            flags = ("--no-eval-test", "--log-interval=20", f"--out-dir={scratch / str(lane)}")
            self._train(Task(study, jobs[study]), minutes, *flags)
        self._wait(60 * minutes + MEASURE_START_S)
        for process, task in self.running.items():
            process.kill()
            if process.wait() not in WELL_ENDED:
                logger.warning("measuring %s failed: %s", task.study, outcome_of(task.job, process.returncode).tail)
        self.running.clear()
        found = {}
        for lane, study in enumerate(studies):
            train, valid, _ = self.tokens[study]
            try:
                found[study] = epoch_seconds(read_metrics(RunDir(scratch / str(lane))), train, valid)
            except ValueError as problem:
                logger.warning("%s: left out: %s", study, problem)
        shutil.rmtree(scratch, ignore_errors=True)
        return found

    def _wait(self, seconds: float) -> None:
        """Until everything that runs has ended, at most so long, or until this process is to stop."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in self.running) and time.monotonic() < end:
            if self.stop.asked:
                return
            time.sleep(0.2)

    def _count(self, study: str, job: Job) -> None:
        """Encode the corpus of a study, once for all its processes, and keep its splits' sizes."""
        splits = configured_corpus(job.config).splits
        self.tokens[study] = [len(splits[name]) for name in ("train", "valid", "test")]

    def _train(self, task: Task, minutes: float, *flags: str) -> None:
        flags = (f"--max-minutes={minutes:.3f}", "--save-minutes=1", "--no-tensorboard", *flags)
        self._start(task, ["python", "-m", "lm.train", *task.job.arguments, *flags], task.job.run_dir.output)

    def _start(self, task: Task, command: Sequence[str], output: Path) -> None:
        logger.info("%.0f s left: %s", self.left(), " ".join(command))
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "wb" if task.modes else "ab") as out, open(task.job.run_dir.output, "ab") as log:
            process = subprocess.Popen([sys.executable, *command[1:]], cwd=ROOT, stdout=out, stderr=log)
        self.running[process] = task

    def work(self) -> None:
        """Train, score and bring home until nothing is left or the time is up; whatever happens, all is kept."""
        try:
            self.settle_epochs()
            self.sweeps |= {study: self.sweep(study) for study in dict.fromkeys(run[0] for run in self.plan)}
            for study, alpha, beta, seed in self.plan:
                task = Task(study, self.sweeps[study].job({"alpha": alpha, "beta": beta}, seed))
                if study not in self.tokens:
                    self._count(study, task.job)
                if finished(task.job):  # in an earlier call
                    self.sweeps[study].run([task.job])  # enters it, if it is not
                    self._keep(task)
                if self.sweeps[study].missing([task.job]):
                    self.todo.append(task)
            while self.left() > 0 and not self.stop.asked and self._turn():
                time.sleep(0.2)
        finally:
            self._end()

    def _turn(self) -> bool:
        """Take note of what has ended and start what there is room for; False when nothing is left to wait for."""
        for process in [process for process in self.running if process.poll() is not None]:
            self._ended(process)
        training = sum(not task.modes for task in self.running.values())
        if self.todo and training < self.args.lanes and self._training_seconds() > self._worth():
            task = self.todo.pop(0)
            self._train(task, self._training_seconds() / 60)
        elif self.scores and len(self.running) - training < self.args.lanes:
            self.scores.sort(key=lambda task: MODES.index(task.modes))
            if self.scores[0].modes == MODES[0] or not training:  # reading that adapts takes minutes
                task = self.scores.pop(0)
                self._start(task, task.scoring, task.figures)
        return bool(self.running or self.scores)

    def _worth(self) -> float:
        return 0.0 if self.args.tiny else WORTH_STARTING_S

    def _training_seconds(self) -> float:
        """Seconds that a run has if it starts now; what cannot be scored here any more is scored at home."""
        return self.left() - START_S

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        task = self.running.pop(process)
        folder = task.job.run_dir.path
        code = process.returncode
        what = " ".join(task.modes) or "training"
        logger.info("%.0f s left: exit code %d: %s of %s", self.left(), code, what, folder)
        if task.modes and code == 0:
            with open(folder / "adapt.txt", "a") as file:
                file.write(f"$ {' '.join(task.scoring)}\n{task.figures.read_text()}")
        elif not task.modes and (finished(task.job) or code == DivergedError.exit_code):
            logger.info("%s", self.sweeps[task.study].settle(outcome_of(task.job, code)))
            self._keep(task)
        elif code not in WELL_ENDED:
            logger.warning("%s", outcome_of(task.job, code).tail)
            if not task.modes and task.job.id not in self.retried:  # from its last checkpoint, a minute old at most
                self.retried.add(task.job.id)
                self.todo.insert(0, task)
        task.figures.unlink(missing_ok=True)
        self.home.bring()

    def _keep(self, task: Task) -> None:
        """Bring home what is in the ledger: first the logs, then the weights; scoring is to follow."""
        self.home.bring()
        if finished(task.job):
            self.home.send_weights(self.args.weights)
            self.scores += [each for modes in MODES if not (each := Task(task.study, task.job, modes)).scored]

    def _end(self) -> None:
        """Stop what runs: a training saves and goes on in the next call, a scoring is done anew there.

        Under MPS a process that is killed at work can take the others along, so trainings save first.
        """
        end = time.monotonic() + END_S
        for scoring in (False, True):
            ending = [process for process, task in self.running.items() if bool(task.modes) == scoring]
            for process in ending:
                process.terminate()
            for process in ending:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        for process in list(self.running):
            process.kill()
            process.wait()
            self._ended(process)
        self.home.bring()
        self.home.send_weights(self.args.weights)
        logger.info("the sitting is over; left to score: %d", len(self.scores))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m tests.sitting", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="after these everything has ended (default: 9)")
    parser.add_argument(
        "--then", type=float, default=0.0, help="minutes that a second call adds, for a new study's epochs"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="what is brought home; --join: EXPORT")
    parser.add_argument("--lanes", type=int, default=2, metavar="N", help="runs side by side (default: 2)")
    parser.add_argument("--studies", nargs="+", default=[WT2, PTB], choices=[WT2, PTB], help="which of them to run")
    parser.add_argument("--runs", type=int, metavar="N", help="the plan's first N runs of these studies only")
    parser.add_argument("--weights", nargs="*", default=[PTB, WT2], metavar="STUDY", help="whose weights come home")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes and corpus, two runs")
    parser.add_argument("--join", nargs="+", type=Path, metavar="PIECE", help="restore an export from its pieces")
    args = parser.parse_args()
    if args.join:
        numbered = sorted(args.join, key=lambda path: int(path.suffix[1:].split("of")[0]))
        unpack(join([path.read_bytes() for path in numbered]), args.out)
        sys.stdout.write(f"{args.out}\n")
        return
    end = time.monotonic() + 60 * args.minutes
    with mps() as device, StopSignals() as stop:
        sitting = Sitting(args, device, end, stop)
        file = logging.FileHandler(sitting.state / "sitting.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger("lm").addHandler(file)
        sitting.work()


if __name__ == "__main__":
    run_cli(main)
