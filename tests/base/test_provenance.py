"""What a result says it was made by: commit and changes of the code, the CPU."""

import platform
import subprocess
from pathlib import Path

import pytest

from lm.base import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the code's layout that `git_state` takes for its own."""
    place = tmp_path / "lm" / "base" / "provenance.py"
    place.parent.mkdir(parents=True)
    for path in (place, tmp_path / "requirements.txt", tmp_path / "README.md"):
        path.touch()
    monkeypatch.setattr(provenance, "__file__", str(place))
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # no checkout around it counts
    return tmp_path


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


def test_outside_a_checkout_the_git_state_is_unknown(checkout):
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
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert provenance.cpu_name() == name
