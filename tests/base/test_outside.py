"""What the program knows of the place it lies in: its checkout, or wherever it was installed."""

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from lm.base import files, provenance

ROOT = Path(__file__).resolve().parent.parent.parent
NOTHING = {"commit": None, "dirty": None}


def git(folder, *arguments):
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Lay this module of the package into a folder of its own; returns that folder."""

    def lay(folder):
        copy = folder / "lm" / "base" / "provenance.py"
        copy.parent.mkdir(parents=True)
        shutil.copy(provenance.__file__, copy)
        monkeypatch.setattr(provenance, "__file__", str(copy))
        monkeypatch.setattr(provenance, "ROOT", folder.resolve())
        return folder

    return lay


def test_a_checkout_has_its_commit_and_whether_the_code_was_changed(place, tmp_path):
    checkout = place(tmp_path / "checkout")
    (checkout / "README.md").touch()
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "all")
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance.git_state() == {"commit": commit, "dirty": False}
    (checkout / "README.md").write_text("no code")
    assert provenance.git_state() == {"commit": commit, "dirty": False}
    with open(checkout / "lm" / "base" / "provenance.py", "a") as file:
        file.write("# changed\n")
    assert provenance.git_state() == {"commit": commit, "dirty": True}


@pytest.mark.parametrize("inside", [".", ".venv/lib/python3/site-packages"])
def test_the_commit_of_somebody_elses_checkout_is_not_taken_for_ours(place, tmp_path, inside):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    git(theirs, "init", "--quiet")
    git(theirs, "commit", "--quiet", "--allow-empty", "-m", "theirs")
    place(theirs / inside)
    assert provenance.git_state() == NOTHING


def test_without_a_checkout_there_is_no_commit(place, tmp_path):
    place(tmp_path / "site-packages")
    assert provenance.git_state() == NOTHING


def test_another_process_is_told_of_a_checkout_and_not_of_an_installed_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    assert files.import_path() == os.pathsep.join([str(ROOT), "/theirs"])
    monkeypatch.setattr(files, "ROOT", Path(site.getsitepackages()[0]).resolve())
    assert files.import_path() == "/theirs"
    monkeypatch.delenv("PYTHONPATH")
    assert files.import_path() == ""


def test_a_run_of_a_sweep_is_of_the_package_that_started_it(tmp_path):
    """A working directory with another package called lm, as that of an older checkout."""
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "__init__.py").write_text("raise SystemExit('the other lm')")
    code = (
        "import subprocess\n"
        "from lm.base.rundir import RunDir\nfrom lm.config.values import make_config\n"
        "from lm.study.executors import Job, launch\n"
        "launch(Job('id', 'name', make_config(), ('--print-config',), RunDir('run')), {}).wait()\n"
        "print(open('run/output.log').read())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert '"emsize": 400' in done.stdout, done.stderr
