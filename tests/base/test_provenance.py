"""What a result says it was made by: commit and changes of the code, the CPU."""

import platform
import subprocess
from pathlib import Path

import pytest

from lm.base import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the code's layout that `git_state` takes for its own."""
    root = tmp_path / "checkout"
    place = root / "lm" / "base" / "provenance.py"
    place.parent.mkdir(parents=True)
    for path in (place, root / "requirements.txt", root / "README.md"):
        path.touch()
    monkeypatch.setattr(provenance, "__file__", str(place))
    monkeypatch.setattr(provenance, "ROOT", root.resolve())
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))  # no checkout around it counts
    return root


def git(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_names_the_commit_and_whether_code_or_requirements_were_changed_since(checkout):
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message=one")
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance.git_state() == {"commit": commit, "dirty": False}
    (checkout / "README.md").write_text("changed")  # decides no result
    assert provenance.git_state() == {"commit": commit, "dirty": False}
    for path in ("requirements.txt", "lm/base/provenance.py"):
        (checkout / path).write_text("changed")
        assert provenance.git_state() == {"commit": commit, "dirty": True}
        git(checkout, "checkout", "--quiet", path)


def test_the_repository_that_the_environment_names_is_not_ours(checkout, tmp_path, monkeypatch):
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message=one")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert provenance.git_state() == {"commit": commit, "dirty": False}


def test_outside_a_checkout_the_git_state_is_unknown(checkout):
    assert provenance.git_state() == {"commit": None, "dirty": None}


def test_the_commit_of_somebody_elses_checkout_around_an_installed_package_is_not_ours(checkout, monkeypatch):
    monkeypatch.delenv("GIT_CEILING_DIRECTORIES")
    theirs = checkout.parent
    git(theirs, "init", "--quiet")
    git(theirs, "commit", "--quiet", "--allow-empty", "--message=theirs")
    assert provenance.git_state() == {"commit": None, "dirty": None}


def test_the_commit_of_a_checkout_that_the_package_was_installed_into_is_not_ours(checkout):
    git(checkout, "init", "--quiet")
    git(checkout, "add", "README.md")
    git(checkout, "commit", "--quiet", "--message=theirs")
    assert provenance.git_state() == {"commit": None, "dirty": None}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n",
         "AMD EPYC (family 25, model 17)"),
        ("processor : 0\nmodel name : A CPU\n", "A CPU"),
        ("processor : 0\nCPU architecture: 8\n", platform.machine()),
    ],
)  # fmt: skip
def test_a_cpu_is_named_by_its_generation_too(monkeypatch, text, name):
    monkeypatch.setattr(Path, "read_text", lambda path, **keywords: text)
    assert provenance.cpu_name() == name
