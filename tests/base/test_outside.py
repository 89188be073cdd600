"""The program finds itself in other processes, in a checkout and where it is installed."""

import os
import site
import subprocess
import sys
from pathlib import Path

from lm.base import files

ROOT = Path(__file__).resolve().parent.parent.parent


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
