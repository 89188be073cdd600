"""`bash run.sh` in a copy of the project, with a tiny corpus and study; and the commands it gives, which are noted."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm.config.presets import PRESETS
from lm.train import configure
from tests.conftest import write_corpus
from tests.forks import environment

ROOT = Path(__file__).resolve().parent.parent
# Bash that stands for Python: it notes its arguments, and ends as $ANSWERS says of those that contain a text.
PYTHON = """#!/usr/bin/env bash
[ "$1" = -c ] && exit 0
echo "$*" >>commands
while read -r code text; do
  [ -z "$text" ] || case "$*" in *"$text"*) exit "$code" ;; esac
done <<<"$ANSWERS"
"""
STUDY = """
dataset = "ptb"
seeds = [1]
[flags]
emsize = 8
nhid = 12
nlayers = 2
batch_size = 4
bptt = 7
epochs = 1
max_steps = 9
[[grid]]
alpha = [0, 2]
"""


class Project:
    """A copy of what run.sh needs, in which the environment is installed already."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("run.sh", "requirements.txt", "requirements-export.txt"):
            shutil.copy(ROOT / name, folder)
        self.venv = folder / "venv"
        self.venv.joinpath("bin").mkdir(parents=True)
        executable = self.venv / "bin" / "python"
        executable.write_text(python)
        executable.chmod(0o755)
        for name in ("requirements", "requirements-export"):
            with (folder / f"{name}.txt").open() as requirements:
                stamp = subprocess.run(["cksum"], stdin=requirements, capture_output=True, check=True).stdout
            (self.venv / f".lm-{name}").write_bytes(stamp)

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`bash run.sh WORDS` from another folder."""
        given = {"VENV": str(self.venv), "PYTHON": sys.executable, "LM_CORPORA": "", "ANSWERS": "", "PYTHONPATH": ""}
        return subprocess.run(
            ["bash", self.folder / "run.sh", *words], cwd="/", env=environment() | given | variables,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def commands(self) -> list[str]:
        """What Python was called with since the last time, where PYTHON stands for it."""
        file = self.folder / "commands"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The program itself, for which a tiny text is PTB; WikiText-2 cannot be had."""
    project = Project(tmp_path_factory.mktemp("project") / "lm", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    shutil.copytree(ROOT / "lm", project.folder / "lm", ignore=shutil.ignore_patterns("__pycache__"))
    corpus = write_corpus(project.folder / "data" / "ptb", train=60, held_out=30)
    texts = {split: (corpus / f"{split}.txt").read_text() for split in ("train", "valid", "test")}
    counts = {
        "lines": {split: text.count("\n") for split, text in texts.items()},
        "tokens": {split: len(text.split()) + text.count("\n") for split, text in texts.items()},
        "sha256": {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()},
    }
    card = ['title = "T"', 'licence = "L"', 'source = "S"', 'files = ["train.txt"]', "vocab_size = 42"]
    card += [f"{key}.{split} = {value!r}" for key, values in counts.items() for split, value in values.items()]
    other = '\n[wikitext-2]\ntitle = "W"\nlicence = "L"\nsource = "S"\n'
    (project.folder / "lm/text/corpora.toml").write_text("[ptb]\n" + "\n".join(card) + other)
    study = project.folder / "results/quick/ptb"
    study.mkdir(parents=True)
    (study / "study.toml").write_text(STUDY)
    return project


def test_the_main_job_ends_in_tables_and_plots_and_started_again_it_runs_nothing(real):
    study = real.folder / "results/quick/ptb"
    first = real.run()
    assert first.returncode == 0, first.stderr
    assert "corpus wikitext-2 not found" in first.stderr and "pydocs, English" not in first.stdout
    assert "baseline" in first.stdout and "alpha 2" in first.stdout  # the table
    ledger = (study / "runs.jsonl").read_bytes()
    assert sorted(json.loads(line)["config"]["alpha"] for line in ledger.splitlines()) == [0, 2]
    assert {"README.md", "table.csv", "alpha.png"} <= set(os.listdir(study))
    runs = {path: path.stat().st_mtime_ns for path in real.folder.glob("runs/**/*")}
    again = real.run()
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert (study / "runs.jsonl").read_bytes() == ledger
    assert {path: path.stat().st_mtime_ns for path in real.folder.glob("runs/**/*")} == runs


def test_a_damaged_corpus_ends_it_with_3_instead_of_being_passed_over(real):
    file = real.folder / "data/ptb/valid.txt"
    before = file.read_bytes()
    try:
        file.write_bytes(before[:-9])
        done = real.run()
    finally:
        file.write_bytes(before)
    assert done.returncode == 3
    assert "does not hold the published ptb" in done.stderr and "pydocs, English" not in done.stdout


@pytest.fixture
def noted(tmp_path):
    """Nothing runs, all is noted."""
    return Project(tmp_path / "project", PYTHON)


QUICK = ["-m lm.corpus --dataset ptb", "-m lm.corpus --dataset wikitext-2"]


def test_each_corpus_that_can_be_had_gets_its_study(noted):
    assert noted.run().returncode == 0
    assert noted.commands() == [*QUICK, "-m lm.sweep results/quick/ptb", "-m lm.sweep results/quick/wikitext-2"]
    assert noted.run("quick", ANSWERS="3 ptb").returncode == 0
    assert noted.commands() == [*QUICK, "-m lm.sweep results/quick/wikitext-2"]


def test_where_neither_can_be_had_it_says_loudly_that_pydocs_stands_in(noted):
    done = noted.run(ANSWERS="3 --dataset ptb\n3 --dataset wikitext-2")
    assert done.returncode == 0
    assert "Neither PTB nor WikiText-2 can be had here" in done.stdout
    assert done.stdout.count("=" * 80) == 2
    assert noted.commands() == [*QUICK, "-m lm.corpus --dataset pydocs", "-m lm.sweep results/quick/pydocs"]


@pytest.mark.parametrize("place", ["data", "corpora"])
def test_a_corpus_that_is_there_and_refused_is_not_passed_over(noted, place):
    folder = noted.folder / place / "wikitext-2"
    folder.mkdir(parents=True)
    variables = {"ANSWERS": "3 --dataset wikitext-2", "LM_CORPORA": str(noted.folder / "corpora")}
    assert noted.run(**variables).returncode == 0  # an empty folder is no corpus
    noted.commands()
    (folder / "train.txt").touch()
    assert noted.run(**variables).returncode == 3
    assert noted.commands() == QUICK


@pytest.mark.parametrize("code", [1, 2, 4, 130])
def test_what_fails_ends_it_with_its_exit_code(noted, code):
    assert noted.run(ANSWERS=f"{code} results/quick/ptb").returncode == code
    assert noted.commands() == [*QUICK, "-m lm.sweep results/quick/ptb"]
    assert noted.run(ANSWERS=f"{code} --dataset ptb").returncode == code
    assert noted.commands() == QUICK[:1]


def test_a_study_is_named_by_its_folder_below_results_and_takes_flags_of_the_sweep(noted):
    assert noted.run("study", "ptb-200", "--jobs=3", "--dry-run").returncode == 0
    assert noted.commands() == ["-m lm.sweep results/ptb-200 --jobs=3 --dry-run"]


def test_the_paper_is_trained_fine_tuned_and_given_a_cache_on_both_corpora_after_the_short_recipe(noted):
    assert noted.run("paper").returncode == 0
    commands = [shlex.split(line)[1:] for line in noted.commands()]
    short = commands[:4]
    del commands[:4]
    for (_, *trained), (_, *evaluated), name in zip(short[::2], short[1::2], ("ptb", "wikitext-2"), strict=True):
        config, options = configure(trained)
        assert (config.preset, config.dataset, options.resume) == ("awd-lstm-fast", name, "auto")
        assert evaluated == [options.out_dir, "--adapt", "none", "cache"]
    assert [command[0] for command in commands] == ["lm.train", "lm.train", "lm.evaluate"] * 2
    for (_, *trained), (_, *tuned), (_, *evaluated) in zip(*[iter(commands)] * 3, strict=True):
        config, options = configure(trained)
        assert config.preset in PRESETS and options.resume == "auto"
        assert tuned[:2] == ["--finetune", options.out_dir]
        assert evaluated[0] == tuned[tuned.index("--out-dir") + 1]


CHECKS = ["-m ruff check", "-m ruff format --check", "-m mypy"]


def test_the_tests_come_after_ruff_and_mypy_and_alone_where_words_choose_among_them(noted):
    path = os.pathsep.join(("/usr/bin", "/bin"))  # where there is no nvidia-smi
    assert noted.run("test", PATH=path).returncode == 0
    *checks, tests = noted.commands()
    assert checks == CHECKS and tests.startswith("-m pytest --numprocesses auto")
    assert noted.run("test", "-k", "a word", PATH=path).returncode == 0
    (tests,) = noted.commands()
    assert tests.startswith("-m pytest") and tests.endswith("-k a word")


@pytest.mark.parametrize(("number", "failing"), list(enumerate([*CHECKS, "-m pytest"])))
def test_the_first_check_that_fails_ends_the_tests(noted, number, failing):
    assert noted.run("test", ANSWERS=f"7 {failing}").returncode == 7
    commands = noted.commands()
    assert len(commands) == number + 1 and commands[-1].startswith(failing)


@pytest.mark.parametrize("words", [["quack"], ["study"], ["--help"]])
def test_another_word_shows_the_usage(noted, words):
    done = noted.run(*words)
    assert (done.returncode, done.stdout, noted.commands()) == (2, "", [])
    lines = done.stderr.splitlines()
    assert lines[0].startswith("bash run.sh ") and lines[-1].startswith("Needs Python")
    for word in ("setup", "test", "study NAME", "paper"):
        assert any(f"run.sh {word}" in line for line in lines)


def test_requirements_are_installed_once_and_again_when_they_change(noted):
    assert noted.run("setup").returncode == 0
    assert noted.commands() == []
    (noted.folder / "requirements.txt").write_text("another\n")
    for expected in (["-m pip install"], []):
        assert noted.run("setup").returncode == 0
        assert [" ".join(line.split()[:3]) for line in noted.commands()] == expected


def test_tests_run_without_the_programs_that_exports_are_for_where_those_cannot_be_installed(noted):
    (noted.folder / "requirements-export.txt").write_text("another\n")
    done = noted.run("test", "tests", ANSWERS="1 requirements-export.txt")
    assert (done.returncode, "will be skipped" in done.stderr) == (0, True)
    install, tests = noted.commands()
    assert install.endswith("-r requirements-export.txt") and tests.startswith("-m pytest")
    for expected in (2, 1):
        assert noted.run("test", "tests").returncode == 0
        assert len(noted.commands()) == expected


def set_up(place, python="python3"):
    """Run it with VENV; returns exit code and stderr."""
    environment = os.environ | {"VENV": str(place), "PYTHON": str(python)}
    command = ["bash", ROOT / "run.sh", "setup"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    code, error = set_up(tmp_path)
    assert (code, f"{tmp_path} is neither empty nor a virtual environment" in error) == (2, True), error
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_half_an_environment_is_removed(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$2" = venv ] || exec python3 "$@"\nmkdir -p "$3/bin"\ntouch "$3/bin/python"\nexit 1\n'
    )
    python.chmod(0o755)
    code, error = set_up(tmp_path / "new", python)
    assert (code, "no venv module" in error) == (2, True), error
    assert os.listdir(tmp_path) == ["python"]
