"""`bash run.sh setup` and the folder that it is given."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "run.sh"


def set_up(place, python="python3"):
    """Run it with VENV; returns exit code and stderr."""
    environment = os.environ | {"VENV": str(place), "PYTHON": str(python)}
    done = subprocess.run(["bash", SCRIPT, "setup"], env=environment, capture_output=True, text=True, check=False)
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
